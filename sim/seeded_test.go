//go:build seeded

package sim

import (
	"flag"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/varvelog/varve/internal/seeded"
)

var (
	bugs     = flag.String("bugs", "", "plant these alone, separated by commas; empty: all of them")
	bugSeeds = flag.Int("bugseeds", 200, "in how many seeds a bug must show")
)

// elsewhere are bugs that other tests find: nothing here can.
var elsewhere = []seeded.Bug{}

// TestSeededBugs plants one bug after the other and runs seeds until it shows.
func TestSeededBugs(t *testing.T) {
	defer seeded.Plant("")
	for _, bug := range seeded.All {
		if *bugs != "" && !slices.Contains(strings.Split(*bugs, ","), string(bug)) || slices.Contains(elsewhere, bug) {
			continue
		}
		t.Run(string(bug), func(t *testing.T) {
			seeded.Plant(bug)
			for seed := uint64(1); seed <= uint64(*bugSeeds); seed += atOnce {
				for _, r := range runSome(t, seed) {
					if len(r.Anomalies) > 0 {
						t.Logf("seed %d: %s: %.300s", r.Options.Seed, r.Anomalies[0].Name, r.Anomalies[0].What)
						return
					}
				}
			}
			t.Errorf("not found in %d seeds", *bugSeeds)
		})
	}
}

// atOnce is how many seeds run at a time.
const atOnce = 4

func runSome(t *testing.T, from uint64) [atOnce]*Result {
	var results [atOnce]*Result
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			synctest.Test(t, func(*testing.T) { results[i] = Run(OptionsOf(from+uint64(i)), nil) })
		})
	}
	all.Wait()
	return results
}
