package main

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/varvelog/varve/client"
)

// entry is one record, as its producer knows it.
type entry struct {
	producer  int
	partition int32
	phase     int // in which it was sent
	acked     bool
	failed    bool
	found     int
}

// phase is a stretch of the run, with what happened in it.
type phase struct {
	name              string
	gateways          string
	requests, repeats int64 // produce requests as the balancer saw them, and those that the client had to repeat
	batches, failed   int   // as the client's caller saw them: failed ones are those it was told of
	acks              []time.Duration
	moves             uint64 // of partitions from one gateway to another
	lost, duplicated  int
}

// ledger has all records. It is safe for concurrent use.
type ledger struct {
	mu      sync.Mutex
	entries []entry
	open    int
	phases  []*phase
	// last is, by producer and partition, the newest record found: they keep the order in which they were sent.
	last map[[2]int]int64
}

func newLedger() *ledger { return &ledger{last: make(map[[2]int]int64)} }

// begin begins a phase; what happens belongs to it from now on.
func (l *ledger) begin(name, gateways string) *phase {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &phase{name: name, gateways: gateways}
	l.phases = append(l.phases, p)
	return p
}

// send enters a record and returns its number.
func (l *ledger) send(producer int, partition int32) (id int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries = append(l.entries, entry{producer: producer, partition: partition, phase: len(l.phases) - 1})
	l.open++
	return int64(len(l.entries) - 1)
}

// end enters what became of it.
func (l *ledger) end(id int64, took time.Duration, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := &l.entries[id]
	e.acked, e.failed = err == nil, err != nil
	l.open--
	if err == nil {
		p := l.phases[len(l.phases)-1]
		p.acks = append(p.acks, took)
	}
}

// batch counts what the client's caller was told.
func (l *ledger) batch(_ client.Ack, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.phases[len(l.phases)-1]
	p.batches++
	if err != nil {
		p.failed++
	}
}

// totals counts records that were acked, and those without an answer.
func (l *ledger) totals() (acked int64, underway int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.entries {
		if l.entries[i].acked {
			acked++
		}
	}
	return acked, l.open
}

// found takes note of a record in the log, in the order of the log.
func (l *ledger) found(id int64, partition int32) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id < 0 || id >= int64(len(l.entries)) || l.entries[id].partition != partition {
		return fmt.Errorf("record %d in partition %d: nobody sent that", id, partition)
	}
	e := &l.entries[id]
	e.found++
	key := [2]int{e.producer, int(partition)}
	if before, any := l.last[key]; any && before > id {
		return fmt.Errorf("record %d stands behind %d of the same producer in partition %d", id, before, partition)
	}
	l.last[key] = id
	return nil
}

// settle counts, by phase, what is lost and what is there twice.
func (l *ledger) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		p := l.phases[e.phase]
		switch {
		case e.acked && e.found == 0:
			p.lost++
		case e.found > 1:
			p.duplicated += e.found - 1
		}
	}
}

// table writes the phases in Markdown, and returns the sums of what must be zero.
func (l *ledger) table(out io.Writer) (failed, lost, duplicated int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintln(out, "| phase | gateways | requests | repeated by the client | failed | records acked | p50 ack | p99 ack | lost | duplicated | partitions moved |")
	fmt.Fprintln(out, "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
	for _, p := range l.phases {
		slices.Sort(p.acks)
		fmt.Fprintf(out, "| %s | %s | %d | %d | %d | %d | %s | %s | %d | %d | %d |\n", p.name, p.gateways, p.requests, p.repeats, p.failed,
			len(p.acks), inMilliseconds(percentile(p.acks, 50)), inMilliseconds(percentile(p.acks, 99)), p.lost, p.duplicated, p.moves)
		failed, lost, duplicated = failed+p.failed, lost+p.lost, duplicated+p.duplicated
	}
	return failed, lost, duplicated
}

// percentile of sorted times; 0 of none.
func percentile(sorted []time.Duration, n int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, len(sorted)*n/100)]
}

func inMilliseconds(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}
