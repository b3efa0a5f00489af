package sim

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var here = Partition{"t", 0}

// forge makes a history of a partition that has these values at 0, 1, 2 …
func forge(values string, ops ...*Op) *History {
	h := &History{Logs: map[Partition]*Log{here: {Partition: here}}, Ops: ops}
	log := h.Logs[here]
	for i, v := range strings.Fields(values) {
		log.Records = append(log.Records, Record{int64(i), int64(100 + i), v})
	}
	log.End = int64(len(log.Records))
	return h
}

// sends is an append from one second to another.
func sends(kind Kind, call, ret int, outcome Outcome, base int64, values string) *Op {
	return &Op{Kind: kind, Client: "c", Partition: here, Call: time.Duration(call) * time.Second, Return: time.Duration(ret) * time.Second,
		Outcome: outcome, Base: base, Values: strings.Fields(values), Order: call}
}

func tails(call, ret int, next int64) *Op {
	op := sends(Tail, call, ret, Done, -1, "")
	op.Next = next
	return op
}

func fences(call, ret int, outcome Outcome, token string, next int64) *Op {
	op := sends(Fence, call, ret, outcome, -1, "")
	op.Token, op.Next = &token, next
	return op
}

func (o *Op) expecting(offset int64) *Op { o.Expected = &offset; return o }
func (o *Op) naming(token string) *Op    { o.Token = &token; return o }
func (o *Op) because(reason string) *Op  { o.Reason = reason; return o }
func (o *Op) on(d *disk) *Op             { o.Disks = append(o.Disks, d); return o }

func (h *History) followed(complete bool, polls ...Poll) *History {
	h.Follows = append(h.Follows, &Follow{Follower: "f", Partition: here, Polls: polls, Complete: complete})
	return h
}

func poll(watermark, from int64, values string) Poll {
	p := Poll{Watermark: watermark}
	for i, v := range strings.Fields(values) {
		p.Records = append(p.Records, Record{from + int64(i), 100 + from + int64(i), v})
	}
	return p
}

func (h *History) trimmedTo(start int64) *History {
	log := h.Logs[here]
	log.Start, log.Records = start, log.Records[start:]
	return h
}

func lookup(at int64, found bool, offset int64) *Op {
	return &Op{Kind: Lookup, Partition: here, Call: 9 * time.Second, Return: 10 * time.Second, Outcome: Done, At: at, Found: found, Base: offset}
}

// TestChecks feeds each check what it must find, and what it must not.
func TestChecks(t *testing.T) {
	abc := func() []*Op {
		return []*Op{sends(Plain, 0, 1, Done, 0, "a"), sends(Plain, 2, 3, Done, 1, "b"), sends(Plain, 4, 5, Done, 2, "c")}
	}
	with := func(ops ...*Op) []*Op { return append(abc(), ops...) }
	lost := &disk{lost: true}
	for _, c := range []struct {
		what string
		h    *History
		want string // names, in order; empty: nothing is wrong
	}{
		{"all is well", forge("a b c", abc()...), ""},
		{"acked and absent", forge("a b", abc()...), LostWrite},
		{"acked and trimmed", forge("a b c", abc()...).trimmedTo(2), ""},
		{"unknown and absent", forge("a b c", with(sends(Plain, 4, 6, Unknown, -1, "x"))...), ""},
		{"unknown and there", forge("a b c x", with(sends(Plain, 4, 6, Unknown, -1, "x"))...), ""},
		{"twice", forge("a b c b", abc()...), Duplicate},
		{"unknown, and twice", forge("a b c x x", with(sends(Plain, 4, 6, Unknown, -1, "x"))...), Duplicate},
		{"elsewhere", forge("b a c", abc()...), InconsistentOffset + "," + InconsistentOffset + "," + OrderBroken},
		{"refused and there", forge("a b c x", with(sends(Plain, 4, 6, No, -1, "x"))...), AbortedRead},
		{"in part", forge("a b c x", with(sends(Plain, 4, 6, Unknown, -1, "x y"))...), TornBatch},
		{"with another between", forge("a x b y c", sends(Plain, 0, 1, Unknown, -1, "x y"), sends(Plain, 0, 1, Done, 0, "a"), sends(Plain, 2, 3, Done, 2, "b"),
			sends(Plain, 4, 5, Done, 4, "c")), TornBatch},
		{"never sent", forge("a b c x", abc()...), UnheardOf},
		{"buffered and absent", forge("a b c", with(sends(Buffered, 4, 6, Done, -1, "x").on(&disk{}))...), LostWrite},
		{"buffered and lost with the disk", forge("a b c", with(sends(Buffered, 4, 6, Done, -1, "x").on(lost))...), ""},
		{"acked before, placed behind", forge("b a c", sends(Plain, 2, 3, Unknown, -1, "b"), sends(Plain, 0, 1, Done, 1, "a"), sends(Plain, 4, 5, Done, 2, "c")), OrderBroken},
		{"sent in order", forge("a b", sends(Idempotent, 0, 9, Done, 0, "a"), sends(Idempotent, 1, 9, Done, 1, "b")), ""},
		{"sent in another order", forge("b a", sends(Idempotent, 0, 9, Done, 1, "a"), sends(Idempotent, 1, 9, Done, 0, "b")), NonmonotonicSend},
		{"at the wrong expected offset", forge("a b c x", with(sends(Conditional, 4, 6, Unknown, -1, "x").expecting(2))...), InconsistentOffset + "," + Unlinearizable},
		{"two winners", forge("a b c x y", with(sends(Conditional, 4, 6, Done, 3, "x").expecting(3), sends(Conditional, 4, 6, Done, 4, "y").expecting(3))...),
			InconsistentOffset + "," + Unlinearizable},
		{"a mismatch that was none", forge("a b c", with(sends(Conditional, 6, 7, No, -1, "x").expecting(3).because(offsetMismatch))...), Unlinearizable},
		{"a mismatch", forge("a b c", with(sends(Conditional, 6, 7, No, -1, "x").expecting(2).because(offsetMismatch))...), ""},
		{"a tail that is late", forge("a b c", with(tails(6, 7, 2))...), StaleRead},
		{"a tail that is early", forge("a b c", with(tails(2, 3, 3))...), FutureRead},
		{"a tail past the end", forge("a b c", with(tails(6, 7, 4))...), PrecommittedRead},
		{"tails that go back", forge("a b c", sends(Plain, 0, 9, Done, 0, "a"), sends(Plain, 0, 9, Done, 1, "b"), sends(Plain, 0, 9, Done, 2, "c"), tails(1, 2, 2), tails(3, 4, 1)), StaleRead},
		{"a fetch behind what was told", forge("a b c", with(&Op{Kind: Read, Partition: here, Outcome: Done, Next: 1, Watermark: 2})...), FallenWatermark},
		{"fenced off", forge("a b c x", with(fences(6, 7, Done, "1", 3), sends(Fenced, 8, 9, Done, 3, "x").naming("1"))...), ""},
		{"written past a fence", forge("a b c x", with(fences(6, 7, Done, "1", 3), fences(8, 9, Done, "2", 3), sends(Fenced, 10, 11, Done, 3, "x").naming("1"))...),
			FencedWrite + "," + Unlinearizable},
		{"a fence that may have come later", forge("a b c x", with(fences(6, 7, Unknown, "1", 0), fences(8, 9, Done, "2", 3), sends(Fenced, 10, 11, Done, 3, "x").naming("1"))...), ""},
		{"a token that was never set", forge("a b c x", with(sends(Fenced, 8, 9, Done, 3, "x").naming("1"))...), Unlinearizable},
		{"a follower that has all", forge("a b c", abc()...).followed(true, poll(2, 0, "a b"), poll(3, 2, "c")), ""},
		{"a follower that was led past", forge("a b c", abc()...).followed(true, poll(3, 0, "a"), poll(3, 2, "c")), PollSkip},
		{"a follower that was led back", forge("a b c", abc()...).followed(true, poll(3, 0, "a b"), poll(3, 1, "b c")), NonmonotonicPoll},
		{"a follower that lacks the end", forge("a b c", abc()...).followed(true, poll(3, 0, "a b")), Unseen},
		{"a follower that had no time", forge("a b c", abc()...).followed(false, poll(3, 0, "a b")), ""},
		{"a follower that got something else", forge("a b c", abc()...).followed(true, poll(3, 0, "a x c")), InconsistentOffset},
		{"a follower that got too much", forge("a b c", abc()...).followed(true, poll(4, 0, "a b c x")), PrecommittedRead},
		{"a watermark that falls", forge("a b c", abc()...).followed(true, poll(3, 0, "a"), poll(2, 1, "b"), poll(3, 2, "c")), FallenWatermark},
		{"a follower of a trimmed log", forge("a b c", abc()...).trimmedTo(2).followed(true, poll(1, 0, "a"), Poll{Restarted: true, Watermark: 3, Records: poll(3, 2, "c").Records}), ""},
		{"lookups", forge("a b c", with(lookup(0, true, 0), lookup(101, true, 1), lookup(103, false, -1))...), ""},
		{"a lookup of the wrong place", forge("a b c", with(lookup(101, true, 2))...), WrongTime},
		{"a lookup of what is there", forge("a b c", with(lookup(101, false, -1))...), WrongTime},
		{"a lookup of what is not there", forge("a b c", with(lookup(103, true, 2))...), WrongTime},
	} {
		var got []string
		for _, a := range judged(c.h) {
			got = append(got, a.Name)
			if !slices.Contains(Names, a.Name) {
				t.Errorf("%s: %q is not among the names that accounts list", c.what, a.Name)
			}
		}
		slices.Sort(got)
		want := strings.FieldsFunc(c.want, func(r rune) bool { return r == ',' })
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v\n%v", c.what, got, want, judged(c.h))
		}
	}
}

// TestDense has offsets with a hole, and with one that comes twice.
func TestDense(t *testing.T) {
	for want, offsets := range map[string][]int64{OffsetGap: {0, 2}, InconsistentOffset: {0, 1, 1}} {
		h := forge("")
		log := h.Logs[here]
		for i, offset := range offsets {
			v := fmt.Sprint(i)
			h.Ops = append(h.Ops, sends(Buffered, 0, 9, Done, -1, v))
			log.Records = append(log.Records, Record{offset, 0, v})
			log.End = offset + 1
		}
		if got := judged(h); len(got) != 1 || got[0].Name != want {
			t.Errorf("offsets %v: %v, want %s", offsets, got, want)
		}
	}
}

// TestIdle has runs that prove nothing.
func TestIdle(t *testing.T) {
	quiet := &Result{Ops: map[Kind]map[Outcome]int{Plain: {Done: leastAppends}}}
	if why := quiet.Idle(); why != nil {
		t.Errorf("a good run: %v", why)
	}
	stormy := &Result{Options: Options{Faults: []Family{Kills}}, Ops: map[Kind]map[Outcome]int{Plain: {Done: 1, No: 5}}}
	if why := stormy.Idle(); len(why) != 2 {
		t.Errorf("no kill and hardly an append: %v", why)
	}
	a := NewAccount()
	a.Add(stormy)
	if why := a.Idle(); len(why) != 1 {
		t.Errorf("most operations failed: %v", why)
	}
}

// judged is all that is found in a history.
func judged(h *History) []Anomaly {
	found, _, _ := Models(h, modelTime)
	return append(Check(h), found...)
}
