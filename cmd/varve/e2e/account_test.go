package e2e

import (
	"fmt"
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
	fenced                  // committed, with a fencing token
	kinds
)

func (k kind) String() string {
	return [...]string{"plain", "idempotent", "conditional", "buffered", "fenced"}[k]
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
	// beaten: it was refused since its condition did not hold, as it should be.
	beaten bool
	// expected is the offset that a conditional one was sent for, else -1.
	expected int64
	// token is what a fenced one named.
	token string
	// disks are where a buffered one may lie, if disks can be lost.
	disks []*disk
}

// excused says that the operation may be gone with a disk.
func (op *operation) excused() bool {
	return slices.ContainsFunc(op.disks, func(d *disk) bool { return d.lost })
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
	op = &operation{kind: k, client: client, partition: partition, records: records, base: -1, expected: -1}
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
	var all, beaten [kinds]int
	for _, op := range a.operations {
		counts[op.kind][op.outcome]++
		all[op.kind]++
		if op.beaten {
			beaten[op.kind]++
		}
	}
	var b strings.Builder
	for k := range kinds {
		if all[k] == 0 {
			continue // not part of this run
		}
		fmt.Fprintf(&b, "  %-12s", k)
		for o := range outcomes {
			fmt.Fprintf(&b, " %s %6d ", o, counts[k][o])
		}
		if beaten[k] > 0 {
			fmt.Fprintf(&b, " (%d of these by their condition)", beaten[k])
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "  %d repetitions were recognised\n", a.repeats)
	return b.String()
}

// copyOf is an operation as it was found in the log.
type copyOf struct {
	partition int32
	base      int64
}

// check compares the account with what is in the log: values by partition, in order of
// offset, from 0 on. It returns what was found of unknown outcomes.
func (a *account) check(t *testing.T, logs map[int32][]string) (foundUnknown int) {
	t.Helper()
	found := newAnomalies()
	foundUnknown, _ = a.judge(logs, found)
	found.report(t)
	return foundUnknown
}

// judge does the same and notes what is wrong. lost are operations that are gone with a disk, as they may.
func (a *account) judge(logs map[int32][]string, anomalies *anomalies) (foundUnknown, lost int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, f := range a.faults {
		anomalies.note(mistold, "%s", f)
	}
	found := a.locate(logs, anomalies.note)
	for id, op := range a.operations {
		copies := found[id]
		if len(copies) > 1 {
			anomalies.note(duplicate, "%s operation %d (%s) is at %v", op.kind, id, op.outcome, copies)
		}
		switch {
		case op.outcome == underway:
			anomalies.note(mistold, "%s operation %d never got an answer", op.kind, id)
		case op.outcome == confirmed && len(copies) == 0 && op.excused():
			lost++
		case op.outcome == confirmed && len(copies) == 0:
			anomalies.note(lostWrite, "%s operation %d was acked at %d/%d", op.kind, id, op.partition, op.base)
		case op.outcome == confirmed && op.base >= 0 && copies[0].base != op.base:
			anomalies.note(inconsistent, "%s operation %d was acked at %d/%d, and is at %v", op.kind, id, op.partition, op.base, copies)
		case op.outcome == refused && len(copies) > 0:
			anomalies.note(abortedRead, "%s operation %d was refused, and is at %v", op.kind, id, copies)
		case op.outcome == unknown:
			foundUnknown += len(copies)
		}
		if op.expected >= 0 && len(copies) > 0 && copies[0].base != op.expected {
			anomalies.note(inconsistent, "%s operation %d (%s) expected offset %d, and is at %v", op.kind, id, op.outcome, op.expected, copies)
		}
	}
	return foundUnknown, lost
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
