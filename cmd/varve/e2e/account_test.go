package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// kind is how an operation was sent.
type kind uint8

const (
	plain       kind = iota // committed, sent once
	idempotent              // committed, with a producer id, sent again until it is answered
	conditional             // committed, at an expected offset
	buffered                // acked as buffered, sent once
	kinds
)

func (k kind) String() string {
	return [...]string{"plain", "idempotent", "conditional", "buffered"}[k]
}

// outcome is what a client was told.
type outcome uint8

const (
	underway  outcome = iota
	confirmed         // committed at base, or safe on disk if the kind is buffered
	unknown
	refused
	outcomes
)

func (o outcome) String() string {
	return [...]string{"underway", "acked", "unknown", "refused"}[o]
}

// operation is an append of some records of one partition, all or nothing.
type operation struct {
	kind      kind
	outcome   outcome
	client    int
	partition int32
	records   int
	base      int64 // of a committed one
}

// account holds what clients were told. Each record's value names its operation and
// its place in it.
type account struct {
	mu         sync.Mutex
	operations []*operation
	repeats    int // answers that said "that was there already"
	faults     []string
}

// begin opens an operation and returns the values of its records.
func (a *account) begin(k kind, client int, partition int32, records int) (op *operation, values [][]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := len(a.operations)
	op = &operation{kind: k, client: client, partition: partition, records: records, base: -1}
	a.operations = append(a.operations, op)
	for i := range records {
		values = append(values, fmt.Appendf(nil, "%d %d", id, i))
	}
	return op, values
}

func (a *account) end(op *operation, o outcome, base int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if op.outcome != underway {
		a.faults = append(a.faults, fmt.Sprintf("two answers to one %s operation: %s, then %s", op.kind, op.outcome, o))
	}
	op.outcome, op.base = o, base
}

func (a *account) repeated() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.repeats++
}

// fault notes that a client saw what nobody may see.
func (a *account) fault(format string, args ...any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.faults = append(a.faults, fmt.Sprintf(format, args...))
}

// sum counts operations.
func (a *account) sum(match func(*operation) bool) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, op := range a.operations {
		if match(op) {
			n++
		}
	}
	return n
}

// table is the account of operations by kind and outcome, for people.
func (a *account) table() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var counts [kinds][outcomes]int
	for _, op := range a.operations {
		counts[op.kind][op.outcome]++
	}
	var b strings.Builder
	for k := range kinds {
		fmt.Fprintf(&b, "  %-12s", k)
		for o := range outcomes {
			fmt.Fprintf(&b, " %s %6d ", o, counts[k][o])
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "  %d repetitions were recognised\n", a.repeats)
	return b.String()
}

// The anomalies keep the names that Jepsen's kafka workload gave them.
const (
	lostWrite    = "lost write"          // acked and absent
	inconsistent = "inconsistent offset" // acked elsewhere
	duplicate    = "duplicate"
	abortedRead  = "aborted read" // refused for certain, and there
	tornBatch    = "torn batch"   // there in part
	unheardOf    = "unheard of"   // there and never sent, or in another partition
	nonmonotonic = "nonmonotonic send"
	mistold      = "wrong answer"
)

// copyOf is an operation as it was found in the log.
type copyOf struct {
	partition int32
	base      int64
}

// check compares the account with what is in the log: values by partition, in order of
// offset, from 0 on. It returns what was found of unknown outcomes.
func (a *account) check(t *testing.T, logs map[int32][]string) (foundUnknown int) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	anomalies := map[string]int{lostWrite: 0, inconsistent: 0, duplicate: 0, abortedRead: 0, tornBatch: 0, unheardOf: 0, nonmonotonic: 0, mistold: 0}
	note := func(name, format string, args ...any) {
		if anomalies[name]++; anomalies[name] <= 5 {
			t.Errorf("%s: %s", name, fmt.Sprintf(format, args...))
		}
	}
	for _, f := range a.faults {
		note(mistold, "%s", f)
	}
	found := a.locate(logs, note)
	for id, op := range a.operations {
		copies := found[id]
		if len(copies) > 1 {
			note(duplicate, "%s operation %d (%s) is at %v", op.kind, id, op.outcome, copies)
		}
		switch {
		case op.outcome == underway:
			note(mistold, "%s operation %d never got an answer", op.kind, id)
		case op.outcome == confirmed && len(copies) == 0:
			note(lostWrite, "%s operation %d was acked at %d/%d", op.kind, id, op.partition, op.base)
		case op.outcome == confirmed && op.base >= 0 && copies[0].base != op.base:
			note(inconsistent, "%s operation %d was acked at %d/%d, and is at %v", op.kind, id, op.partition, op.base, copies)
		case op.outcome == refused && len(copies) > 0:
			note(abortedRead, "%s operation %d was refused, and is at %v", op.kind, id, copies)
		case op.outcome == unknown:
			foundUnknown += len(copies)
		}
	}
	t.Logf("anomalies: %s", inOrder(anomalies))
	return foundUnknown
}

// locate finds each operation's copies. Only whole ones count; the rest is noted.
func (a *account) locate(logs map[int32][]string, note func(string, string, ...any)) map[int][]copyOf {
	found := make(map[int][]copyOf)
	for partition, values := range logs {
		last := make(map[int]int) // by client: its newest idempotent operation
		for offset := 0; offset < len(values); {
			var id, index int
			if _, err := fmt.Sscanf(values[offset], "%d %d", &id, &index); err != nil || id >= len(a.operations) {
				note(unheardOf, "%q at %d/%d", values[offset], partition, offset)
				offset++
				continue
			}
			op := a.operations[id]
			n := 0
			for offset+n < len(values) && n < op.records && values[offset+n] == fmt.Sprintf("%d %d", id, n) {
				n++
			}
			switch {
			case n < op.records:
				note(tornBatch, "%s operation %d: record %d of %d at %d/%d, %d in a row", op.kind, id, index, op.records, partition, offset, n)
			case op.partition != partition:
				note(unheardOf, "%s operation %d was for partition %d, and is at %d/%d", op.kind, id, op.partition, partition, offset)
			}
			if op.kind == idempotent {
				if before, any := last[op.client]; any && before > id {
					note(nonmonotonic, "client %d sent operation %d before %d, they are the other way round in partition %d", op.client, id, before, partition)
				}
				last[op.client] = id
			}
			found[id] = append(found[id], copyOf{partition, int64(offset)})
			offset += max(n, 1)
		}
	}
	return found
}

func inOrder(counts map[string]int) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
