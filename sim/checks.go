package sim

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Anomaly is one way in which the log was wrong.
type Anomaly struct{ Name, What string }

// The names of anomalies. Those that Jepsen's kafka workload has are its own.
const (
	LostWrite          = "lost write"          // acked and absent
	InconsistentOffset = "inconsistent offset" // acked elsewhere, or two see different records at an offset
	Duplicate          = "duplicate"
	Unseen             = "unseen"       // there, and a follower never gets it
	AbortedRead        = "aborted read" // refused for certain, and there
	PollSkip           = "poll skip"    // a follower was led past it
	NonmonotonicPoll   = "nonmonotonic poll"
	NonmonotonicSend   = "nonmonotonic send"
	PrecommittedRead   = "precommitted read" // seen, and not there
	TornBatch          = "torn batch"        // there in part
	UnheardOf          = "unheard of"        // there and never sent, or sent elsewhere
	OffsetGap          = "offset gap"
	FallenWatermark    = "fallen watermark"
	StaleRead          = "stale read"   // a linearizable read without what was acked before it
	FutureRead         = "future read"  // an answer about what nobody had appended yet
	OrderBroken        = "order broken" // acked before another was sent, and behind it
	FencedWrite        = "fenced write" // appended with a token after another one was set
	WrongTime          = "wrong time"   // a lookup that brute force answers differently
	Unlinearizable     = "unlinearizable"
	NotLive            = "not live" // it does not work although nothing is wrong any more
	BrokenTable        = "broken table or bucket"
	ViewsDiffer        = "views differ" // two gateways show different logs when all is over
)

// Names lists the names of all anomalies.
var Names = []string{LostWrite, Duplicate, InconsistentOffset, Unseen, AbortedRead, PollSkip, NonmonotonicPoll, NonmonotonicSend, PrecommittedRead,
	TornBatch, UnheardOf, OffsetGap, FallenWatermark, StaleRead, FutureRead, OrderBroken, FencedWrite, WrongTime, Unlinearizable, NotLive, BrokenTable, ViewsDiffer}

// Check finds what is wrong with a history that is over.
func Check(h *History) []Anomaly {
	c := newChecker(h)
	c.found = slices.Clone(h.Loose)
	for _, log := range c.logs() {
		c.dense(log)
	}
	c.heardOf()
	for _, op := range h.Ops {
		if op.appends() {
			c.appended(op)
		}
	}
	c.sent()
	c.ordered()
	c.tails()
	c.fences()
	for _, f := range h.Follows {
		c.followed(f)
	}
	c.lookups()
	return c.found
}

func newChecker(h *History) *checker {
	c := &checker{h: h, at: make(map[string][]place)}
	for _, log := range c.logs() {
		for _, r := range log.Records {
			c.at[r.Value] = append(c.at[r.Value], place{log.Partition, r.Offset})
		}
	}
	return c
}

type checker struct {
	h     *History
	found []Anomaly
	// at is where each value is.
	at map[string][]place
}

type place struct {
	Partition
	offset int64
}

func (c *checker) note(name, format string, args ...any) {
	c.found = append(c.found, Anomaly{name, fmt.Sprintf(format, args...)})
}

// logs in order.
func (c *checker) logs() []*Log {
	var list []*Log
	for _, log := range c.h.Logs {
		list = append(list, log)
	}
	slices.SortFunc(list, func(a, b *Log) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Number, b.Number))
	})
	return list
}

// dense checks that offsets follow each other from the log's start to its end.
func (c *checker) dense(log *Log) {
	next := log.Start
	for _, r := range log.Records {
		switch {
		case r.Offset > next:
			c.note(OffsetGap, "%s: after %d comes %d", log.Partition, next-1, r.Offset)
		case r.Offset < next:
			c.note(InconsistentOffset, "%s: offset %d is given twice, or comes after %d", log.Partition, r.Offset, next-1)
		}
		next = r.Offset + 1
	}
	if next != log.End {
		c.note(OffsetGap, "%s: the records end at %d, the log at %d", log.Partition, next, log.End)
	}
}

// heardOf checks that whatever is there was sent, to there.
func (c *checker) heardOf() {
	sent := make(map[string]Partition)
	for _, op := range c.h.Ops {
		for _, v := range op.Values {
			sent[v] = op.Partition
		}
	}
	for _, log := range c.logs() {
		for _, r := range log.Records {
			if to, ok := sent[r.Value]; !ok || to != log.Partition {
				c.note(UnheardOf, "%q is at %s offset %d, it was sent to %s", r.Value, log.Partition, r.Offset, to)
			}
		}
	}
}

// baseOf is where an append is, by the log: the offset of its first record. False: it is not there, or
// below the log's start.
func (c *checker) baseOf(op *Op) (int64, bool) {
	for i, v := range op.Values {
		if at := c.at[v]; len(at) > 0 {
			return at[0].offset - int64(i), true
		}
	}
	return -1, false
}

// appended checks an append against the log.
func (c *checker) appended(op *Op) {
	log := c.h.Logs[op.Partition]
	if log == nil {
		return // its topic was deleted
	}
	present := 0
	for _, v := range op.Values {
		if len(c.at[v]) > 1 {
			c.note(Duplicate, "%q is at %v: %s", v, c.at[v], op)
		}
		if len(c.at[v]) > 0 {
			present++
		}
	}
	base, found := c.baseOf(op)
	trimmed := op.Base >= 0 && op.Base < log.Start || found && base < log.Start
	switch {
	case trimmed:
	case found && present < len(op.Values):
		c.note(TornBatch, "%d of %d records are there: %s", present, len(op.Values), op)
	case found && op.Outcome == No:
		c.note(AbortedRead, "it is at %d: %s", base, op)
	case !found && op.Outcome == Done && op.Kind == Buffered:
		if log.Start == 0 && !op.excused() && !op.aside() {
			c.note(LostWrite, "%s", op)
		}
	case !found && op.Outcome == Done:
		c.note(LostWrite, "%s", op)
	case found && op.Base >= 0 && op.Base != base:
		c.note(InconsistentOffset, "it is at %d: %s", base, op)
	}
	if !trimmed && found && op.Expected != nil && base != *op.Expected {
		c.note(InconsistentOffset, "it is at %d: %s", base, op)
	}
	for i, v := range op.Values {
		if at := c.at[v]; found && len(at) == 1 && at[0].offset != base+int64(i) {
			c.note(TornBatch, "record %d is at %d, the first at %d: %s", i, at[0].offset, base, op)
		}
	}
}

// excused: the operation may be gone with a disk.
func (o *Op) excused() bool {
	return slices.ContainsFunc(o.Disks, func(d *disk) bool { return d.lost })
}

// aside: the operation's record is in a buffer file that came too late, and was kept.
func (o *Op) aside() bool {
	return slices.ContainsFunc(o.Disks, func(d *disk) bool { return d != nil && d.kept(o.Values[0]) })
}

// sent checks that what an idempotent client sent is in that order. Where the client was told that an outcome is not
// known, it goes on under another producer id, and what it gave up may come last.
func (c *checker) sent() {
	type lane struct {
		client string
		Partition
	}
	lanes := make(map[lane][]*Op)
	for _, op := range c.h.Ops {
		if op.Kind == Idempotent && op.Outcome == Done {
			k := lane{op.Client, op.Partition}
			lanes[k] = append(lanes[k], op)
		}
	}
	for _, ops := range lanes {
		slices.SortFunc(ops, func(a, b *Op) int { return cmp.Compare(a.Order, b.Order) })
		last, before := int64(-1), (*Op)(nil)
		for _, op := range ops {
			base, found := c.baseOf(op)
			if !found {
				continue
			}
			if base <= last {
				c.note(NonmonotonicSend, "sent first, at %d: %s; sent later, at %d: %s", last, before, base, op)
			}
			last, before = base, op
		}
	}
}

// ordered checks that what was acked before another append was sent lies before it.
func (c *checker) ordered() {
	c.inRealTime(OrderBroken, func(op *Op) (early, late int64, ok bool) {
		base, found := c.baseOf(op)
		ok = op.appends() && found
		// An ack as buffered says nothing about where.
		if op.Outcome != Done || op.Kind == Buffered {
			return -1, base, ok
		}
		return base, base, ok
	})
}

// tails checks linearizable reads: they have whatever was acked before they were sent, and
// nothing that was sent after they were answered.
func (c *checker) tails() {
	c.inRealTime(StaleRead, func(op *Op) (early, late int64, ok bool) {
		base, found := c.baseOf(op)
		switch {
		case op.Kind == Tail && op.Outcome == Done:
			return op.Next, op.Next, true
		case op.appends() && found && op.Outcome == Done && op.Kind != Buffered:
			return base + int64(len(op.Values)), noBound, true
		}
		return 0, 0, false
	})
	for _, op := range c.h.Ops {
		log := c.h.Logs[op.Partition]
		if (op.Kind == Tail || op.Kind == Read) && op.Outcome == Done && log != nil && op.Next > log.End {
			c.note(PrecommittedRead, "the log ends at %d: %s", log.End, op)
		}
	}
	c.inRealTime(FutureRead, func(op *Op) (early, late int64, ok bool) {
		base, found := c.baseOf(op)
		switch {
		case (op.Kind == Tail || op.Kind == Fence) && op.Outcome == Done:
			return op.Next, noBound, true
		case op.appends() && found:
			return -1, base, true
		}
		return 0, 0, false
	})
	for _, op := range c.h.Ops {
		if op.Kind == Read && op.Outcome == Done && op.Next < op.Watermark {
			c.note(FallenWatermark, "the client had been told %d: %s", op.Watermark, op)
		}
	}
}

// noBound is a late bound that nothing breaks.
const noBound = int64(1) << 62

// inRealTime checks, per partition, that what an operation shows when it returns (early) is not more than
// what one that is called afterwards stands at (late).
func (c *checker) inRealTime(name string, bounds func(*Op) (early, late int64, ok bool)) {
	type event struct {
		at    time.Duration
		call  bool
		op    *Op
		bound int64
	}
	events := make(map[Partition][]event)
	for _, op := range c.h.Ops {
		early, late, ok := bounds(op)
		if !ok || c.h.Logs[op.Partition] == nil {
			continue
		}
		events[op.Partition] = append(events[op.Partition], event{op.Call, true, op, late})
		if op.Return >= 0 && op.Outcome == Done {
			events[op.Partition] = append(events[op.Partition], event{op.Return, false, op, early})
		}
	}
	for _, list := range events {
		slices.SortStableFunc(list, func(a, b event) int {
			if a.at == b.at && a.call != b.call { // what happens at one moment is at once
				if a.call {
					return -1
				}
				return 1
			}
			return cmp.Compare(a.at, b.at)
		})
		high, by := int64(-1), (*Op)(nil)
		for _, e := range list {
			if e.call && e.bound < high {
				c.note(name, "answered first: %s; called later, at %d: %s", by, e.bound, e.op)
			}
			if !e.call && e.bound > high {
				high, by = e.bound, e.op
			}
		}
	}
}

// fences checks that once a fence was answered, nothing is appended with another token until the next
// fence was called.
func (c *checker) fences() {
	for _, log := range c.logs() {
		var fences []*Op
		for _, op := range c.h.Ops {
			if op.Kind == Fence && op.Partition == log.Partition && op.Outcome != No {
				fences = append(fences, op)
			}
		}
		for _, op := range c.h.Ops {
			base, found := c.baseOf(op)
			if op.Partition != log.Partition || op.Token == nil || !op.appends() || !found {
				continue
			}
			for i, f := range fences {
				if f.Outcome != Done || base < f.Next || *f.Token == *op.Token {
					continue
				}
				// Any other fence may have set the token after f, unless it was answered before f was called.
				another := slices.ContainsFunc(fences, func(g *Op) bool {
					return g != fences[i] && *g.Token == *op.Token && (g.Outcome == Unknown || g.Return >= f.Call)
				})
				if !another {
					c.note(FencedWrite, "it is at %d: %s; after: %s", base, op, f)
				}
			}
		}
	}
}

// followed checks what a follower got against the log.
func (c *checker) followed(f *Follow) {
	log := c.h.Logs[f.Partition]
	if log == nil {
		return
	}
	next, high := int64(0), int64(0)
	for i, p := range f.Polls {
		if p.Watermark < high {
			c.note(FallenWatermark, "%s of %s was told %d, then %d", f.Follower, f.Partition, high, p.Watermark)
		}
		high = max(high, p.Watermark)
		for j, r := range p.Records {
			switch {
			case p.Restarted && j == 0 && r.Offset >= next && r.Offset <= log.Start:
			case r.Offset > next && !(i == 0 && j == 0 && r.Offset <= log.Start):
				c.note(PollSkip, "%s of %s got %d after %d", f.Follower, f.Partition, r.Offset, next-1)
			case r.Offset < next:
				c.note(NonmonotonicPoll, "%s of %s got %d after %d", f.Follower, f.Partition, r.Offset, next-1)
			}
			next = r.Offset + 1
			c.agrees(f, log, r)
		}
	}
	if f.Complete && next < log.End {
		c.note(Unseen, "%s of %s got nothing from %d on, the log ends at %d", f.Follower, f.Partition, next, log.End)
	}
}

// agrees checks that what a follower got is there.
func (c *checker) agrees(f *Follow, log *Log, r Record) {
	if r.Offset < log.Start {
		return
	}
	i, found := slices.BinarySearchFunc(log.Records, r.Offset, func(r Record, offset int64) int { return cmp.Compare(r.Offset, offset) })
	switch {
	case !found:
		c.note(PrecommittedRead, "%s of %s got %q at %d, which is not there", f.Follower, f.Partition, r.Value, r.Offset)
	case log.Records[i] != r:
		c.note(InconsistentOffset, "%s of %s got %v, the log has %v", f.Follower, f.Partition, r, log.Records[i])
	}
}

// lookups checks questions about time that were asked when the log did not change any more.
func (c *checker) lookups() {
	for _, op := range c.h.Ops {
		log := c.h.Logs[op.Partition]
		if op.Kind != Lookup || op.Outcome != Done || log == nil {
			continue
		}
		i := slices.IndexFunc(log.Records, func(r Record) bool { return r.Timestamp >= op.At })
		switch {
		case op.Found != (i >= 0):
			c.note(WrongTime, "at or after %d: found is %v, brute force says %v: %s", op.At, op.Found, i >= 0, op)
		case i >= 0 && log.Records[i].Offset != op.Base:
			c.note(WrongTime, "at or after %d: %d, brute force says %d: %s", op.At, op.Base, log.Records[i].Offset, op)
		}
	}
}
