package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// The anomalies keep the names that Jepsen's kafka workload gave them, where it has one.
const (
	lostWrite        = "lost write"          // acked and absent
	inconsistent     = "inconsistent offset" // acked elsewhere, or seen differently
	duplicate        = "duplicate"
	abortedRead      = "aborted read" // refused for certain, and there
	tornBatch        = "torn batch"   // there in part
	unheardOf        = "unheard of"   // there and never sent, or in another partition
	nonmonotonic     = "nonmonotonic send"
	mistold          = "wrong answer"
	unseen           = "unseen"            // there, and a follower never gets it
	pollSkip         = "poll skip"         // a follower was led past it
	nonmonotonicPoll = "nonmonotonic poll" // a follower was led back
	precommitted     = "precommitted read" // seen, and not there
	fallenWatermark  = "fallen watermark"  // an end that was before the one told earlier
	staleRead        = "stale read"        // a linearizable read without what was acked before it
	fencedWrite      = "fenced write"      // appended with a token after another one was set
	wrongTime        = "wrong time"        // a lookup by time that brute force answers differently
	fallenStart      = "fallen start"      // a log start below one that was told before
	cameBack         = "came back"         // a record that had been deleted by its key
	leaked           = "leaked object"     // named by nothing, and there when all is settled
)

// anomalies counts them, and keeps the first of each. It is safe for concurrent use.
type anomalies struct {
	mu       sync.Mutex
	counts   map[string]int
	examples []string
}

func newAnomalies() *anomalies {
	a := &anomalies{counts: make(map[string]int)}
	for _, name := range []string{
		lostWrite, inconsistent, duplicate, abortedRead, tornBatch, unheardOf, nonmonotonic, mistold, unseen, pollSkip,
		nonmonotonicPoll, precommitted, fallenWatermark, staleRead, fencedWrite, wrongTime, fallenStart, cameBack, leaked,
	} {
		a.counts[name] = 0
	}
	return a
}

// examplesOfEach is how many of one name are told in full.
const examplesOfEach = 5

func (a *anomalies) note(name, format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counts[name]++; a.counts[name] <= examplesOfEach {
		a.examples = append(a.examples, name+": "+fmt.Sprintf(format, args...))
	}
}

// report fails the test if there is any, and logs their numbers, zeros too.
func (a *anomalies) report(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, example := range a.examples {
		t.Error(example)
	}
	t.Logf("anomalies: %s", inOrder(a.counts))
}

// inOrder lists counts by name.
func inOrder(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
