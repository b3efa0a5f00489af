package sim

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"runtime/pprof"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	oneSeed = flag.Int64("seed", -1, "run this seed alone, with the gateways' logs")
	seeds   = flag.Int("seeds", 40, "how many seeds to run")
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
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				t.Parallel()
				runSeed(t, OptionsOf(seed), account)
			})
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
const patience = 2 * time.Minute

// examples of one anomaly are told in full.
const examples = 4

func runSeed(t *testing.T, o Options, account *Account) {
	stuck := time.AfterFunc(patience, func() {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
		panic(fmt.Sprintf("no end after %s: %s", patience, o))
	})
	defer stuck.Stop()
	var log *slog.Logger
	if *oneSeed >= 0 && testing.Verbose() {
		log = slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var r *Result
	synctest.Test(t, func(*testing.T) { r = Run(o, log) })
	account.Add(r)
	told := make(map[string]int)
	for _, a := range r.Anomalies {
		if told[a.Name]++; told[a.Name] <= examples {
			t.Errorf("%s: %s", a.Name, a.What)
		}
	}
	for _, why := range r.Idle() {
		t.Errorf("this run proves nothing: %s", why)
	}
	if t.Failed() {
		t.Errorf("%s\nanomalies %v, ended by themselves:\n%s\nagain with: go test ./sim -run TestSeeds -seed %d", o, told, strings.Join(r.Ends[:min(len(r.Ends), 10)], "\n"), o.Seed)
	}
}
