package verify_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets properties run a quarter as often as rapid would, unless it is told how often: each run starts
// gateways.
func TestMain(m *testing.M) {
	flag.Parse()
	told := false
	flag.Visit(func(f *flag.Flag) { told = told || f.Name == "rapid.checks" })
	if !told {
		if err := flag.Set("rapid.checks", "25"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}
