package main

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// maxToken is the longest fencing token, in bytes.
const maxToken = 36

// checkToken refuses what no token can be.
func checkToken(what, token string) error {
	if len(token) > maxToken {
		return usagef("--%s: %d bytes, a token has at most %d", what, len(token), maxToken)
	}
	if !utf8.ValidString(token) {
		return usagef("--%s %q: is not UTF-8", what, token)
	}
	return nil
}

func newTopicFenceCommand(a *app) *cobra.Command {
	var partition int32
	var current string
	var expected int64
	cmd := &cobra.Command{
		Use:   "fence TOPIC TOKEN -p N",
		Short: "Set a partition's fencing token: who writes with another one is refused",
		Long: `Sets a partition's fencing token. From then on, appends that name a token succeed only with this one; appends
that name none are not held back. '' takes the token away.

Prints topic:partition:token and the partition's next offset: whatever was written under tokens before
lies below it. With conditions it fails, changing nothing, if they do not hold; setting the token that
is there succeeds.`,
		Example: `  varve topic fence ledger writer-2 -p 0
  varve topic fence ledger writer-2 -p 0 --current writer-1
  varve topic fence ledger writer-2 -p 0 --current '' --expected-offset 0`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.Int32VarP(&partition, "partition", "p", -1, "the partition `N`")
	flags.StringVar(&current, "current", "", "only if the token is `TOKEN` now ('': none)")
	flags.Int64Var(&expected, "expected-offset", 0, "only if the partition's next offset is `N`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		given := cmd.Flags().Changed
		switch {
		case !given("partition"):
			return usagef("-p is missing: each partition has a token of its own")
		case partition < 0:
			return usagef("--partition %d: partitions count from 0", partition)
		case len(args[1]) > maxToken || !utf8.ValidString(args[1]):
			return usagef("token %q: want at most %d bytes of UTF-8", args[1], maxToken)
		case expected < 0:
			return usagef("--expected-offset %d: offsets count from 0", expected)
		}
		var opts client.FenceOptions
		if given("current") {
			if err := checkToken("current", current); err != nil {
				return err
			}
			opts.CurrentToken = &current
		}
		if given("expected-offset") {
			opts.ExpectedOffset = &expected
		}
		return a.fence(cmd, args[0], partition, args[1], opts)
	}
	return cmd
}

func (a *app) fence(cmd *cobra.Command, topic string, partition int32, token string, opts client.FenceOptions) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	res, err := c.Fence(cmd.Context(), topic, partition, token, opts)
	switch {
	case errors.Is(err, client.ErrUnknownOutcome):
		return fmt.Errorf("%w; set it again to know: that succeeds if it is there", err)
	case errors.Is(err, client.ErrFenced):
		return fmt.Errorf("%w; 'varve topic describe' shows it", err)
	case err != nil:
		return err
	}
	if a.json() {
		return printJSON(a.stdout, struct {
			Topic        string `json:"topic"`
			Partition    int32  `json:"partition"`
			FencingToken string `json:"fencing_token"`
			NextOffset   int64  `json:"next_offset"`
		}{topic, partition, res.Token, res.NextOffset})
	}
	_, err = fmt.Fprintf(a.stdout, "%s:%d:%s %d\n", topic, partition, res.Token, res.NextOffset)
	return err
}
