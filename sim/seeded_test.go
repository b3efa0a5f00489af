//go:build seeded

package sim

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/varvelog/varve/internal/seeded"
)

var (
	bugs = flag.String("bugs", "", "plant these alone, separated by commas; empty: all of them")
	hunt = flag.Int("hunt", 0, "look in so many seeds from -from on for what each bug shows, and tell all of it")
)

// atOnce is how many seeds run at a time.
const atOnce = 4

func runSome(t *testing.T, seeds []uint64) []*Result {
	results := make([]*Result, len(seeds))
	var all sync.WaitGroup
	for i := range results {
		all.Go(func() {
			synctest.Test(t, func(*testing.T) { results[i] = Run(OptionsOf(seeds[i]), nil) })
		})
	}
	all.Wait()
	return results
}

func TestHunt(t *testing.T) {
	if *hunt == 0 {
		t.Skip()
	}
	defer seeded.Plant("")
	for _, bug := range seeded.All {
		if *bugs != "" && !slices.Contains(strings.Split(*bugs, ","), string(bug)) {
			continue
		}
		seeded.Plant(bug)
		total := make(map[string]int)
		for seed := *from; seed < *from+uint64(*hunt); seed += atOnce {
			var list []uint64
			for i := range uint64(atOnce) {
				list = append(list, seed+i)
			}
			for _, r := range runSome(t, list) {
				counts := make(map[string]int)
				for _, a := range r.Anomalies {
					counts[a.Name]++
				}
				for name := range counts {
					total[name]++
				}
				if len(counts) > 0 {
					fmt.Println("HUNT", bug, r.Options.Seed, counts)
				}
			}
		}
		fmt.Println("TOTAL", bug, slices.Sorted(maps.Keys(total)), total)
	}
}
