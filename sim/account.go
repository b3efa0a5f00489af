package sim

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Account sums up runs. It is safe for concurrent use.
type Account struct {
	mu        sync.Mutex
	seeds     int
	simulated time.Duration
	ops       map[Kind]map[Outcome]int
	fired     map[Fault]int
	anomalies map[string]int
	starts    int
	ends      int
	records   int
	lost      int
	polls     int
}

// NewAccount returns one of no runs.
func NewAccount() *Account {
	return &Account{ops: make(map[Kind]map[Outcome]int), fired: make(map[Fault]int), anomalies: make(map[string]int)}
}

// Add adds a run.
func (a *Account) Add(r *Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seeds++
	a.simulated += r.Simulated
	for kind, outcomes := range r.Ops {
		if a.ops[kind] == nil {
			a.ops[kind] = make(map[Outcome]int)
		}
		for outcome, n := range outcomes {
			a.ops[kind][outcome] += n
		}
	}
	for fault, n := range r.Fired {
		a.fired[fault] += n
	}
	for _, found := range r.Anomalies {
		a.anomalies[found.Name]++
	}
	a.starts, a.ends, a.records, a.lost, a.polls = a.starts+r.Starts, a.ends+len(r.Ends), a.records+r.Records, a.lost+r.Lost, a.polls+r.Polls
}

// String says what the runs did.
func (a *Account) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %.2f simulated hours, %d starts of gateways (%d after an end that nobody had asked for), %d records in the logs, %d messages to followers, %d buffered appends gone with their disk\n",
		a.seeds, a.simulated.Hours(), a.starts, a.ends, a.records, a.polls, a.lost)
	b.WriteString("operations:\n")
	for _, kind := range slices.Sorted(maps.Keys(a.ops)) {
		fmt.Fprintf(&b, "  %-20s ok %7d  no %7d  unknown %7d\n", kind, a.ops[kind][Done], a.ops[kind][No], a.ops[kind][Unknown])
	}
	b.WriteString("faults fired:\n")
	faults := slices.Collect(maps.Keys(a.fired))
	slices.SortFunc(faults, func(x, y Fault) int { return cmp.Or(cmp.Compare(a.fired[y], a.fired[x]), cmp.Compare(x, y)) })
	for _, fault := range faults {
		fmt.Fprintf(&b, "  %-36s %7d\n", fault, a.fired[fault])
	}
	b.WriteString("anomalies:\n")
	for _, name := range Names {
		fmt.Fprintf(&b, "  %-24s %7d\n", name, a.anomalies[name])
	}
	return b.String()
}
