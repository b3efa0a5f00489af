package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// app is what the verbs share: the streams, and the flags that every verb has.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	lookupEnv      func(string) (string, bool)
	now            func() time.Time

	servers []string
	output  string
	timeout time.Duration
	// dials are those of the client in use.
	dials *dialNotes
	// started: usage was right, the verb runs.
	started bool
}

// execute runs one command line and returns the exit status.
func execute(ctx context.Context, args []string, a *app) int {
	a.stdout = &dataWriter{a.stdout}
	root := newRootCommand(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	return a.conclude(cmd, err)
}

func newRootCommand(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "varve",
		Short: "A log on object storage",
		Long: `Varve is a log on object storage: records of many topics in a bucket, found by offset or by time.

'varve serve' starts a gateway. The other commands talk to one.

  TIME   2018-02-07T01:26:13.84Z (UTC when no zone is given), milliseconds since 1970, or a
         duration back from now: -2h, -90m, -1d12h
  PLACE  earliest, latest, an offset, -N (N before the end of each partition), or @TIME (the first
         offset at or after it)

Exit status: 0 done, 1 something failed or is damaged, 2 wrong usage.`,
		Version:           buildVersion(),
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		RunE:              needsVerb,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare(cmd) },
	}
	root.SetVersionTemplate("varve {{.Version}}\n")
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringSliceVar(&a.servers, "server", []string{client.DefaultServer}, "`URL`s of gateways of one cluster: one is drawn, the others stand in when it fails")
	flags.StringVarP(&a.output, "output", "o", "text", "`FORMAT` of standard output: text, or json (an object a line)")
	flags.DurationVar(&a.timeout, "timeout", 10*time.Second, "how long a gateway may take to answer, all tries together")
	completeWith(root, "output", "text", "json")
	root.AddCommand(
		newServeCommand(),
		newTopicCommand(a),
		newProduceCommand(a),
		newCatCommand(a),
		newTailCommand(a),
		newOffsetsCommand(a),
		newGatewaysCommand(a),
		newCostCommand(a),
		newDumpCommand(a),
		newVerifyCommand(a),
		newCompactCommand(a),
		newCollectCommand(a),
		newBenchCommand(a),
		newVersionCommand(a),
		newCompletionCommand(a),
	)
	a.finish(root)
	return root
}

// finish gives every flag its environment variable, and marks where usage ends and the work begins.
func (a *app) finish(cmd *cobra.Command) {
	documentEnvironment(cmd)
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if check(cmd, args) != nil {
				return usagef("want: %s, not %s", cmd.UseLine(), count(int64(len(args)), "argument"))
			}
			if strings.HasPrefix(cmd.Use, cmd.Name()+" TOPIC") && !utf8.ValidString(args[0]) {
				return usagef("topic name %q is not UTF-8", args[0])
			}
			return nil
		}
	}
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.started = true
			return run(cmd, args)
		}
	}
	for _, c := range cmd.Commands() {
		a.finish(c)
	}
}

// prepare takes flags from the environment and checks those that every verb has.
func (a *app) prepare(cmd *cobra.Command) error {
	if err := a.applyEnvironment(cmd); err != nil {
		return err
	}
	if a.output != "text" && a.output != "json" {
		return usagef("--output %q: want text or json", a.output)
	}
	if a.timeout <= 0 {
		return usagef("--timeout %v: must be more than 0, for example 10s", a.timeout)
	}
	return nil
}

func (a *app) json() bool { return a.output == "json" }

// notef writes a line to standard error.
func (a *app) notef(format string, args ...any) {
	fmt.Fprintf(a.stderr, "varve: "+format+"\n", args...)
}

// needsVerb is what a command that only groups others runs.
func needsVerb(cmd *cobra.Command, args []string) error {
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	list := strings.Join(names, ", ")
	if len(args) == 0 {
		return usagef("%s needs a command: %s", cmd.CommandPath(), list)
	}
	return usagef("%s has no command %q; it has %s", cmd.CommandPath(), args[0], list)
}

// completeWith completes a flag's value from a list.
func completeWith(cmd *cobra.Command, flag string, values ...string) {
	// It fails only for a flag that does not exist, which would be a mistake in this package.
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err)
	}
}

// excludeEachOther refuses two flags that were both given. (Cobra's own way says so in words of its own.)
func excludeEachOther(cmd *cobra.Command, one, other string) {
	before := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed(one) && cmd.Flags().Changed(other) {
			return usagef("--%s and --%s exclude each other", one, other)
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
}
