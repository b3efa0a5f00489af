package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// variableOf names a flag's environment variable: VARVE_MAX_RECORDS for --max-records. It is empty for the
// flags that only show something.
func variableOf(f *pflag.Flag) string {
	if f.Name == "help" || f.Name == "version" {
		return ""
	}
	return "VARVE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
}

// documentEnvironment adds the variables to the usage of a command's own flags.
func documentEnvironment(cmd *cobra.Command) {
	add := func(f *pflag.Flag) {
		if v := variableOf(f); v != "" && !strings.Contains(f.Usage, v) {
			f.Usage += " (" + v + ")"
		}
	}
	cmd.PersistentFlags().VisitAll(add)
	cmd.LocalNonPersistentFlags().VisitAll(add)
}

// applyEnvironment sets the flags that the command line left out and the environment has. An empty
// variable counts as absent.
func (a *app) applyEnvironment(cmd *cobra.Command) error {
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := variableOf(f)
		if err != nil || f.Changed || name == "" {
			return
		}
		value, ok := a.lookupEnv(name)
		if !ok || value == "" {
			return
		}
		if bad := cmd.Flags().Set(f.Name, value); bad != nil {
			err = fmt.Errorf("the environment variable %s: %w", name, bad)
		}
	})
	return err
}
