package sim

import (
	"fmt"
	"sync"
	"time"
)

// Kind is what a client asked for.
type Kind string

// The kinds of operations.
const (
	Plain       Kind = "plain append"       // sent once
	Idempotent  Kind = "idempotent append"  // with a producer id, sent again until it is answered
	Conditional Kind = "conditional append" // at an expected offset, sent once
	Fenced      Kind = "fenced append"      // with a fencing token, sent once
	Buffered    Kind = "buffered append"    // acked as buffered, sent once
	Fence       Kind = "fence"
	Tail        Kind = "linearizable tail"
	Read        Kind = "fetch"
	Lookup      Kind = "time lookup"
	Trim        Kind = "trim"
	Create      Kind = "create topic"
	Delete      Kind = "delete topic"
)

// Outcome is what a client was told.
type Outcome string

// The outcomes of operations.
const (
	Done    Outcome = "ok"
	No      Outcome = "no"      // for certain
	Unknown Outcome = "unknown" // it may have had its effect, or may yet
)

// Partition is one partition of a topic, by name.
type Partition struct {
	Topic  string
	Number int32
}

func (p Partition) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Number) }

// Op is an operation of a client. Times count from the beginning of the run.
type Op struct {
	Kind    Kind
	Client  string
	Gateway string // host; empty: several may have been asked
	Partition
	Call, Return time.Duration
	Outcome      Outcome
	Reason       string // of a no, or why it is not known

	// Values are those of the records of an append, all or nothing, Order where it comes among
	// those of an idempotent client.
	Values []string
	Order  int
	// Base is the first offset that an append was told, -1 if none.
	Base int64
	// Expected is the offset that was to be the next one, nil without a condition.
	Expected *int64
	// Token is what an append named or a fence set, Current what a fence wanted to be there before.
	Token, Current *string
	// Next is the end that a tail, a fence or a fetch was told, Watermark what the client had
	// been told before it asked.
	Next, Watermark int64
	// Disks are those that a buffered record may lie on.
	Disks []*disk
	// At is what a lookup asked for (ms), Found and Base what it was told.
	At    int64
	Found bool
}

func (o *Op) String() string {
	s := fmt.Sprintf("%s by %s on %s, %s–%s at %q: %s", o.Kind, o.Client, o.Partition, o.Call, o.Return, o.Gateway, o.Outcome)
	if o.Reason != "" {
		s += " (" + o.Reason + ")"
	}
	if len(o.Values) > 0 {
		s += fmt.Sprintf(" %v at %d", o.Values, o.Base)
	}
	if o.Expected != nil {
		s += fmt.Sprintf(", expected %d", *o.Expected)
	}
	if o.Token != nil {
		s += fmt.Sprintf(", token %q", *o.Token)
	}
	if o.Kind == Tail || o.Kind == Fence || o.Kind == Read {
		s += fmt.Sprintf(", end %d", o.Next)
	}
	return s
}

// appends says that the operation has records.
func (o *Op) appends() bool { return len(o.Values) > 0 }

// Record is one that was read.
type Record struct {
	Offset    int64
	Timestamp int64 // ms
	Value     string
}

// Follow is what one follower got of one partition, from its beginning on.
type Follow struct {
	Follower string
	Partition
	Polls []Poll
	// Complete: it had all the time it needs to get everything.
	Complete bool
	next     int64
}

// Poll is a message that a follower got.
type Poll struct {
	// Restarted: the follower was told that what it wanted next is gone, and began at the log's start.
	Restarted bool
	Records   []Record
	Watermark int64
	// At is when, since the run began.
	At time.Duration
}

func (p Poll) String() string {
	text := fmt.Sprintf("%s high watermark %d", p.At, p.Watermark)
	if p.Restarted {
		text += ", restarted"
	}
	if n := len(p.Records); n > 0 {
		text += fmt.Sprintf(", offsets %d to %d", p.Records[0].Offset, p.Records[n-1].Offset)
	}
	return text
}

// Log is a partition as it was when all was over.
type Log struct {
	Partition
	Start, End int64
	Records    []Record
}

// History is all that clients saw of a cluster.
type History struct {
	began time.Time

	mu      sync.Mutex
	Ops     []*Op
	Follows []*Follow
	Logs    map[Partition]*Log
	// Loose is what was found wrong on the way, by name.
	Loose []Anomaly
}

// NewHistory returns an empty one that begins now.
func NewHistory() *History { return &History{began: time.Now(), Logs: make(map[Partition]*Log)} }

// begin notes that an operation was called.
func (h *History) begin(op *Op) *Op {
	op.Call, op.Return, op.Outcome, op.Base = time.Since(h.began), -1, Unknown, -1
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Ops = append(h.Ops, op)
	return op
}

// end notes how it went.
func (h *History) end(op *Op, outcome Outcome, reason string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op.Return, op.Outcome, op.Reason = time.Since(h.began), outcome, reason
}

// follow notes that somebody follows a partition.
func (h *History) follow(follower string, p Partition) *Follow {
	f := &Follow{Follower: follower, Partition: p}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Follows = append(h.Follows, f)
	return f
}

// loose notes an anomaly that shows on the way.
func (h *History) loose(name, format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.Loose = append(h.Loose, Anomaly{name, fmt.Sprintf(format, args...)})
}
