package sim

import (
	"bytes"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	oneSeed = flag.Int64("seed", -1, "run this seed alone, with the gateways' logs")
	seeds   = flag.Int("seeds", 12, "how many seeds to run")
	repeat  = flag.Int("repeat", 1, "how often to run each seed: the scheduler makes every run a little different")
	logs    = flag.String("logs", "", "a folder for the logs and the history of runs that fail")
	from    = flag.Uint64("from", 1, "the first seed")
)

// TestSeeds runs seeds, several at a time, and prints the account of them.
func TestSeeds(t *testing.T) {
	account := NewAccount()
	first, count := *from, *seeds
	if *oneSeed >= 0 {
		first, count = uint64(*oneSeed), 1
	}
	t.Run("all", func(t *testing.T) {
		for seed := first; seed < first+uint64(count); seed++ {
			for range *repeat {
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					t.Parallel()
					runSeed(t, OptionsOf(seed), account)
				})
			}
		}
	})
	t.Logf("\n%s", account)
	if *oneSeed >= 0 {
		return
	}
	for _, why := range account.Idle() {
		t.Errorf("this run proves nothing: %s", why)
	}
}

// patience is how long a seed may take, in real time. A mutex that is held while something waits stops the
// virtual time of its bubble for ever.
const patience = 4 * time.Minute

// modelTime is how long the models may search for an order of one partition's operations, in real time.
const modelTime = 10 * time.Second

// examples of one anomaly are told in full.
const examples = 4

func runSeed(t *testing.T, o Options, account *Account) {
	stuck := time.AfterFunc(patience, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		panic(fmt.Sprintf("no end after %s: %s", patience, o))
	})
	defer stuck.Stop()
	var log *slog.Logger
	var lines bytes.Buffer
	switch {
	case *logs != "":
		log = slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelDebug}))
	case *oneSeed >= 0 && *repeat == 1 && testing.Verbose():
		log = slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var r *Result
	synctest.Test(t, func(*testing.T) { r = Run(o, log) })
	r.Decide(modelTime)
	account.Add(r)
	told := make(map[string]int)
	for _, a := range r.Anomalies {
		if told[a.Name]++; told[a.Name] <= examples {
			t.Errorf("%s: %s", a.Name, a.What)
		}
	}
	for _, why := range r.Idle() {
		// Of many seeds some few may: the account counts them.
		if t.Logf("this run proves nothing: %s", why); *oneSeed >= 0 {
			t.Fail()
		}
	}
	if t.Failed() && *logs != "" {
		keep(t, o, r, lines.Bytes())
	}
	if t.Failed() {
		t.Errorf("%s\nanomalies %v, ended by themselves:\n%s\nagain with: go test ./sim -run TestSeeds -seed %d", o, told, strings.Join(r.Ends[:min(len(r.Ends), 10)], "\n"), o.Seed)
	}
}

// keep writes down what happened in a run that failed: another one of the seed may go well.
func keep(t *testing.T, o Options, r *Result, log []byte) {
	t.Helper()
	var b bytes.Buffer
	fmt.Fprintln(&b, o)
	for _, a := range r.Anomalies {
		fmt.Fprintf(&b, "%s: %s\n", a.Name, a.What)
	}
	for _, e := range r.Episodes {
		fmt.Fprintln(&b, e)
	}
	for _, op := range r.History.Ops {
		fmt.Fprintln(&b, op)
	}
	for _, f := range r.History.Follows {
		for _, p := range f.Polls {
			fmt.Fprintf(&b, "%s of %s: %s\n", f.Follower, f.Partition, p)
		}
	}
	b.Write(log)
	file, err := os.CreateTemp(*logs, fmt.Sprintf("seed-%d-*.txt", o.Seed))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	t.Logf("written down in %s", filepath.Base(file.Name()))
}
