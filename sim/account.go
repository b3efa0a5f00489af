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
	reasons   map[string]int
	anomalies map[string]int
	paths     map[Path]int
	starts    int
	ends      int
	records   int
	lost      int
	polls     int
	decided   int
	undecided int
	idle      int // seeds that prove nothing by themselves
}

// NewAccount returns one of no runs.
func NewAccount() *Account {
	return &Account{ops: make(map[Kind]map[Outcome]int), fired: make(map[Fault]int), reasons: make(map[string]int), anomalies: make(map[string]int), paths: make(map[Path]int)}
}

// Add adds a run.
func (a *Account) Add(r *Result) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seeds++
	if len(r.Idle()) > 0 {
		a.idle++
	}
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
	for path, n := range r.Paths {
		a.paths[path] += n
	}
	for reason, n := range r.Reasons {
		a.reasons[reason] += n
	}
	for _, found := range r.Anomalies {
		a.anomalies[found.Name]++
	}
	a.starts, a.ends, a.records, a.lost, a.polls = a.starts+r.Starts, a.ends+len(r.Ends), a.records+r.Records, a.lost+r.Lost, a.polls+r.Polls
	a.decided, a.undecided = a.decided+r.Decided, a.undecided+r.Undecided
}

// String says what the runs did.
func (a *Account) String() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "%d seeds, %.2f simulated hours, %d starts of gateways (%d after an end that nobody had asked for), %d records in the logs, %d messages to followers, %d buffered appends gone with their disk\n",
		a.seeds, a.simulated.Hours(), a.starts, a.ends, a.records, a.polls, a.lost)
	fmt.Fprintf(&b, "%d histories of conditional appends, fences and ends judged by porcupine, %d not decided in time\n", a.decided, a.undecided)
	fmt.Fprintf(&b, "%d seeds in which a fault that was to happen did not, or hardly an append succeeded\n", a.idle)
	b.WriteString("operations:\n")
	for _, kind := range slices.Sorted(maps.Keys(a.ops)) {
		fmt.Fprintf(&b, "  %-20s ok %7d  no %7d  unknown %7d\n", kind, a.ops[kind][Done], a.ops[kind][No], a.ops[kind][Unknown])
	}
	b.WriteString("why not:\n")
	for _, reason := range mostFirst(a.reasons)[:min(len(a.reasons), mostReasons)] {
		fmt.Fprintf(&b, "  %-64s %7d\n", reason, a.reasons[reason])
	}
	b.WriteString("faults fired:\n")
	for _, fault := range mostFirst(a.fired) {
		fmt.Fprintf(&b, "  %-64s %7d\n", fault, a.fired[fault])
	}
	b.WriteString("paths taken:\n")
	for _, path := range Paths {
		fmt.Fprintf(&b, "  %-64s %7d\n", path, a.paths[path])
	}
	b.WriteString("anomalies:\n")
	for _, name := range Names {
		fmt.Fprintf(&b, "  %-64s %7d\n", name, a.anomalies[name])
	}
	return b.String()
}

// mostReasons is how many reasons are worth telling.
const mostReasons = 25

// mostFirst lists the keys by their counts.
func mostFirst[K cmp.Ordered](counts map[K]int) []K {
	keys := slices.Collect(maps.Keys(counts))
	slices.SortFunc(keys, func(x, y K) int { return cmp.Or(cmp.Compare(counts[y], counts[x]), cmp.Compare(x, y)) })
	return keys
}

// Idle lists why all the runs together prove nothing.
func (a *Account) Idle() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var why []string
	done, all := 0, 0
	for kind, outcomes := range a.ops {
		if kind == Conditional || kind == Fenced {
			continue // most of them lose a race
		}
		for outcome, n := range outcomes {
			if all += n; outcome == Done {
				done += n
			}
		}
	}
	if a.idle > 1+a.seeds/50 {
		why = append(why, fmt.Sprintf("%d of %d seeds prove nothing by themselves", a.idle, a.seeds))
	}
	if 2*done < all {
		why = append(why, fmt.Sprintf("only %d of %d operations succeeded", done, all))
	}
	if a.seeds < manySeeds {
		return why
	}
	if a.decided < 5*a.undecided {
		why = append(why, fmt.Sprintf("%d of %d histories could not be decided", a.undecided, a.decided+a.undecided))
	}
	if a.fired[clockJumped] == 0 {
		why = append(why, "no wall clock jumped")
	}
	for _, path := range Paths {
		if a.paths[path] == 0 {
			why = append(why, fmt.Sprintf("not one %q in %d seeds", path, a.seeds))
		}
	}
	for _, faults := range faultsOf {
		for _, fault := range faults {
			if a.fired[fault] == 0 {
				why = append(why, fmt.Sprintf("not one %q in %d seeds", fault, a.seeds))
			}
		}
	}
	return why
}

// manySeeds must have had every fault.
const manySeeds = 200
