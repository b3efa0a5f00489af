package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"
)

// completionPatience is how long pressing Tab may take, whatever the gateway does.
const completionPatience = time.Second

func newCompletionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print a script that completes commands, flags and topics in a shell",
		Example: `  source <(varve completion bash)                                   # now, in this bash
  varve completion zsh > "${fpath[1]}/_varve"                       # zsh, for ever
  varve completion fish > ~/.config/fish/completions/varve.fish     # fish, for ever`,
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"bash", "zsh", "fish"},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.stdout)
			default:
				return cmd.Root().GenFishCompletion(a.stdout, true)
			}
		},
	}
}

// completeTopic completes the first argument with the names of topics there are; others are completed
// as directive says. A gateway that does not answer soon completes nothing.
func (a *app) completeTopic(directive cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, directive
		}
		return a.topicNames(cmd, prefix), cobra.ShellCompDirectiveNoFileComp
	}
}

// topicNames asks for at most what a terminal shows.
func (a *app) topicNames(cmd *cobra.Command, prefix string) []string {
	const most = 200
	// Completion does not run hooks: the environment was not looked at yet.
	if a.applyEnvironment(cmd) != nil {
		return nil
	}
	c, err := a.connectWithin(completionPatience, func(string, ...any) {})
	if err != nil {
		return nil
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	var names []string
	for t, err := range c.Topics(ctx, prefix) {
		if err != nil || len(names) == most {
			break
		}
		names = append(names, t.Name)
	}
	return names
}
