package sim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// Family is a group of faults that a run has or has not.
type Family string

// The families. Those of calls go wrong by chance, those of things come as episodes.
const (
	TableCalls   Family = "table calls"
	BucketCalls  Family = "bucket calls"
	NetworkCalls Family = "network calls"
	DiskCalls    Family = "disk calls"
	Partitions   Family = "partitions"
	Outages      Family = "outages"
	Kills        Family = "kills"
	Disks        Family = "disks"
	Pauses       Family = "pauses"
	Churn        Family = "churn"
)

// Families lists all of them.
var Families = []Family{TableCalls, BucketCalls, NetworkCalls, DiskCalls, Partitions, Outages, Kills, Disks, Pauses, Churn}

// Options are what a run is made of. A seed gives all of them.
type Options struct {
	Seed uint64
	// Gateways there are at first.
	Gateways int
	// Topics, and the Partitions of each.
	Topics, Partitions int
	// Faults that happen; none: a quiet run.
	Faults []Family
	// Length of the safety phase.
	Length time.Duration
	// LeaseTime and FlushInterval of the gateways.
	LeaseTime, FlushInterval time.Duration
	// FoldRows is after how many rows of a journal partitions are checkpointed; 0: the default, which
	// hardly comes in so short a run.
	FoldRows int
	// CloseAfter is how long the disk of a dead gateway is waited for; 0: the default of days.
	CloseAfter time.Duration
	// Slow is how many times longer than usual clients think between two appends.
	Slow int
	// LongOutage: one of the outages takes three hours.
	LongOutage bool
	// Skew is how far each host's wall clock may be off, one way or the other; they also jump.
	Skew time.Duration
	// Upkeep: small segments are merged once they are MergeAge old, what nothing names is collected after Grace (negative: at
	// once), and t0 keeps no more than KeepBytes of each partition (0: all).
	Upkeep          bool
	MergeAge, Grace time.Duration
	KeepBytes       int
}

// OptionsOf draws the options of a seed.
func OptionsOf(seed uint64) Options {
	r := rand.New(rand.NewPCG(seed, 0))
	o := Options{
		Seed: seed, Gateways: 3 + r.IntN(5), Topics: 1 + r.IntN(3), Partitions: 1 + r.IntN(4),
		Length:    time.Duration(15+r.IntN(30)) * time.Second,
		LeaseTime: []time.Duration{time.Second, 2 * time.Second, 5 * time.Second}[r.IntN(3)], FlushInterval: []time.Duration{5, 50, 250}[r.IntN(3)] * time.Millisecond,
	}
	quiet := seed%8 == 0
	if !quiet {
		for _, f := range Families {
			if r.IntN(5) < 2 {
				o.Faults = append(o.Faults, f)
			}
		}
		if len(o.Faults) == 0 {
			o.Faults = []Family{Families[r.IntN(len(Families))]}
		}
	}
	o.LongOutage = o.Has(Outages) && r.IntN(10) == 0
	if !quiet {
		o.Skew = time.Hour
	}
	o.FoldRows = []int{0, 1, 4, 16}[r.IntN(4)]
	if r.IntN(3) == 0 {
		o.CloseAfter = o.LeaseTime
	}
	o.Slow = 1
	if r.IntN(5) == 0 {
		o.Slow, o.Length = 6, 2*o.Length
	}
	if r.IntN(4) > 0 {
		o.Upkeep = true
		o.MergeAge = []time.Duration{time.Second, 3 * time.Second, 10 * time.Second}[r.IntN(3)]
		o.Grace = []time.Duration{-1, time.Second, 5 * time.Second}[r.IntN(3)]
		o.KeepBytes = []int{0, 2 << 10, 32 << 10}[r.IntN(3)]
	}
	return o
}

// Has says whether a family of faults happens.
func (o Options) Has(f Family) bool { return slices.Contains(o.Faults, f) }

// String is all of them on one line.
func (o Options) String() string {
	faults := make([]string, len(o.Faults))
	for i, f := range o.Faults {
		faults[i] = string(f)
	}
	return fmt.Sprintf("seed %d: %d gateways, %d topics of %d partitions, %s, lease %s, flush %s, checkpoints after %d rows, closing after %s, %d times slower, long outage %v, clocks off by up to %s, upkeep %v (merging after %s, grace %s, t0 keeps %d bytes), faults: [%s]",
		o.Seed, o.Gateways, o.Topics, o.Partitions, o.Length, o.LeaseTime, o.FlushInterval, o.FoldRows, o.CloseAfter, o.Slow, o.LongOutage, o.Skew, o.Upkeep, o.MergeAge, o.Grace, o.KeepBytes, strings.Join(faults, ", "))
}

// dice are randomness of one purpose, so that one part of a run does not shift another.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newDice(seed uint64, purpose string) *dice {
	h := uint64(14695981039346656037)
	for _, c := range []byte(purpose) {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return &dice{r: rand.New(rand.NewPCG(seed, h))}
}

// upTo is 0 to n-1.
func (d *dice) upTo(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

// chance is true once in n times.
func (d *dice) chance(n int) bool { return d.upTo(n) == 0 }

// between is a duration from least to most.
func (d *dice) between(least, most time.Duration) time.Duration {
	return least + time.Duration(d.upTo(int(most-least)+1))
}

func pick[T any](d *dice, list []T) T { return list[d.upTo(len(list))] }
