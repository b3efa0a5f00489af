package tabletest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// ErrInjected is wrapped by every error that Faulty made up.
var ErrInjected = errors.New("injected fault")

// Call is one call to a table.
type Call struct {
	Op metadata.Op
	// Key is the row's; of a range, its partition and From.
	Key         metadata.Key
	Consistency metadata.Consistency // of reads
	// Number counts the calls, from 1.
	Number int
}

// FaultKind is what goes wrong with a call. The zero kind is no fault.
type FaultKind uint8

const (
	// None passes the call on.
	None FaultKind = iota
	// Unavailable fails before any effect, with ErrUnavailable.
	Unavailable
	// LostAnswer passes a write on and answers ErrUnknown, whatever came of it. A
	// read answers ErrUnavailable.
	LostAnswer
	// Vanished answers ErrUnknown to a write that never happens. A read answers
	// ErrUnavailable.
	Vanished
	// Late answers ErrUnknown to a write that happens afterwards: before the
	// Fault.After-th later call, or when the test calls Release. A read answers
	// ErrUnavailable.
	Late
	// Slow passes the call on once Fault.Until is closed (if set) and Fault.Delay is
	// over, or, when the context ends before, not at all.
	Slow
	// Stale answers an Eventual read with a state of some writes ago. Other calls
	// are passed on.
	Stale

	kinds
)

func (k FaultKind) String() string {
	names := [kinds]string{"none", "unavailable", "lost answer", "vanished", "late", "slow", "stale"}
	if k >= kinds {
		return fmt.Sprintf("fault %d", k)
	}
	return names[k]
}

// Fault is what is done to one call.
type Fault struct {
	Kind  FaultKind
	After int             // Late
	Until <-chan struct{} // Slow
	Delay time.Duration   // Slow
}

// Plan chooses the fault of each call. It is called by one goroutine at a time.
type Plan func(Call) Fault

// staleWrites is how many writes a stale read lags behind, at most.
const staleWrites = 8

// Faulty is a table whose calls go wrong as a plan has it. It starts no goroutine
// and reads no clock but for Slow's Delay, so that it works in a synctest bubble and
// a seed repeats. Stale reads know only what was written through it: wrap an empty table.
type Faulty struct {
	table metadata.Table

	mu    sync.Mutex
	plan  Plan
	calls int
	fired [kinds]int
	late  []lateWrite

	// stale lags behind table: what was written is copied to it in order, once
	// there are more writes than staleWrites.
	stale  *memtable.Table
	recent []written
}

// written is what a key had right after a write.
type written struct {
	key    metadata.Key
	row    metadata.Row
	exists bool
}

type lateWrite struct {
	due   int // number of the call before which it happens; 0 waits for Release
	write func(context.Context) error
}

var _ metadata.Table = (*Faulty)(nil)

// NewFaulty wraps a table. A nil plan has no faults.
func NewFaulty(table metadata.Table, plan Plan) *Faulty {
	return &Faulty{table: table, plan: plan, stale: memtable.New()}
}

// RandomPlan draws each call's fault by its rate (0 to 1, their sum at most 1).
// Late writes happen up to eight calls later, slow calls take up to a second: set
// no rate for Slow where time is real.
func RandomPlan(seed uint64, rates map[FaultKind]float64) Plan {
	rng := rand.New(rand.NewPCG(seed, 0))
	return func(Call) Fault {
		at := rng.Float64()
		for kind := None; kind < kinds; kind++ {
			if at -= rates[kind]; at < 0 {
				return Fault{Kind: kind, After: 1 + rng.IntN(8), Delay: time.Duration(rng.Int64N(int64(time.Second)))}
			}
		}
		return Fault{}
	}
}

// SetPlan replaces the plan; nil ends the faults. Late writes stay.
func (f *Faulty) SetPlan(plan Plan) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan = plan
}

// Fired counts the faults so far: a test in which none fired proved nothing.
func (f *Faulty) Fired() map[FaultKind]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[FaultKind]int)
	for kind, n := range f.fired {
		if n > 0 && FaultKind(kind) != None {
			out[FaultKind(kind)] = n
		}
	}
	return out
}

// Calls counts the calls so far.
func (f *Faulty) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Release lets all late writes happen now, in order, and returns how many there were.
func (f *Faulty) Release() int {
	f.mu.Lock()
	late := f.late
	f.late = nil
	f.mu.Unlock()
	land(late)
	return len(late)
}

// land makes late writes happen. Nobody waits for what comes of them any more.
func land(late []lateWrite) {
	for _, l := range late {
		_ = l.write(context.Background())
	}
}

func (f *Faulty) String() string { return f.table.String() + " with faults" }

// Get implements metadata.Table.
func (f *Faulty) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	source, err := f.read(ctx, Call{Op: metadata.OpGet, Key: key, Consistency: c})
	if err != nil {
		return metadata.Row{}, err
	}
	return source.Get(ctx, key, c)
}

// Range implements metadata.Table.
func (f *Faulty) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	key := metadata.Key{Partition: r.Partition, Sort: r.From}
	source, err := f.read(ctx, Call{Op: metadata.OpRange, Key: key, Consistency: r.Consistency})
	if err != nil {
		return nil, err
	}
	return source.Range(ctx, r)
}

// Put implements metadata.Table.
func (f *Faulty) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	row.Value = slices.Clone(row.Value) // a late write outlives the call
	return f.write(ctx, Call{Op: metadata.OpPut, Key: row.Key}, func(ctx context.Context) error {
		return f.table.Put(ctx, row, cond)
	})
}

// Delete implements metadata.Table.
func (f *Faulty) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	return f.write(ctx, Call{Op: metadata.OpDelete, Key: key}, func(ctx context.Context) error {
		return f.table.Delete(ctx, key, cond)
	})
}

// begin counts the call, lands the late writes that are due and then draws the fault.
func (f *Faulty) begin(call Call) (Call, Fault) {
	f.mu.Lock()
	f.calls++
	call.Number = f.calls
	var due []lateWrite
	f.late = slices.DeleteFunc(f.late, func(l lateWrite) bool {
		if l.due == 0 || l.due > call.Number {
			return false
		}
		due = append(due, l)
		return true
	})
	f.mu.Unlock()
	land(due)
	return call, f.draw(call)
}

func (f *Faulty) draw(call Call) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	var fault Fault
	if f.plan != nil {
		fault = f.plan(call)
	}
	if fault.Kind == Stale && (!call.Op.Reads() || call.Consistency == metadata.Strong) {
		fault.Kind = None
	}
	f.fired[fault.Kind]++
	return fault
}

// read returns the table that answers the call.
func (f *Faulty) read(ctx context.Context, call Call) (metadata.Table, error) {
	call, fault := f.begin(call)
	switch fault.Kind {
	case None:
		return f.table, nil
	case Stale:
		return f.stale, nil
	case Slow:
		if err := fault.wait(ctx); err != nil {
			return nil, failure(metadata.ErrUnavailable, call, fault, err)
		}
		return f.table, nil
	}
	return nil, failure(metadata.ErrUnavailable, call, fault, nil)
}

func (f *Faulty) write(ctx context.Context, call Call, write func(context.Context) error) error {
	call, fault := f.begin(call)
	noted := func(ctx context.Context) error {
		err := write(ctx)
		f.wrote(call.Key)
		return err
	}
	switch fault.Kind {
	case Unavailable:
		return failure(metadata.ErrUnavailable, call, fault, nil)
	case LostAnswer:
		return failure(metadata.ErrUnknown, call, fault, noted(ctx))
	case Vanished:
		return failure(metadata.ErrUnknown, call, fault, nil)
	case Late:
		f.mu.Lock()
		l := lateWrite{write: noted}
		if fault.After > 0 {
			l.due = call.Number + fault.After
		}
		f.late = append(f.late, l)
		f.mu.Unlock()
		return failure(metadata.ErrUnknown, call, fault, nil)
	case Slow:
		if err := fault.wait(ctx); err != nil {
			return failure(metadata.ErrUnknown, call, fault, err)
		}
	}
	return noted(ctx)
}

func (fault Fault) wait(ctx context.Context) error {
	if fault.Until != nil {
		select {
		case <-fault.Until:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fault.Delay <= 0 {
		return nil
	}
	timer := time.NewTimer(fault.Delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failure is an error of the given kind. Of a cause only an ended context shows
// through: what came of a write is what the caller must not learn.
func failure(kind error, call Call, fault Fault, cause error) error {
	err := fmt.Errorf("%w: %w: %s of call %d, %s %s", kind, ErrInjected, fault.Kind, call.Number, call.Op, call.Key)
	if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", err, cause)
	}
	return err
}

// wrote notes what the row is after a write, and copies what was noted long enough
// ago to the stale table.
func (f *Faulty) wrote(key metadata.Key) {
	now, ok := f.look(key)
	if !ok {
		return
	}
	f.mu.Lock()
	f.recent = append(f.recent, now)
	var ripe written
	last := true // of the noted writes of ripe's key
	if len(f.recent) > staleWrites {
		ripe = f.recent[0]
		f.recent = slices.Delete(f.recent, 0, 1)
		last = !slices.ContainsFunc(f.recent, func(w written) bool { return w.key == ripe.key })
	}
	f.mu.Unlock()
	if ripe.key == (metadata.Key{}) {
		return
	}
	if last {
		// Writers who race each other may be noted out of order: what stays must be true.
		if ripe, ok = f.look(ripe.key); !ok {
			return
		}
	}
	if ripe.exists {
		_ = f.stale.Put(context.Background(), ripe.row, metadata.Condition{})
		return
	}
	_ = f.stale.Delete(context.Background(), ripe.key, metadata.Condition{})
}

// look reads what the key has now; not ok when the table fails by itself.
func (f *Faulty) look(key metadata.Key) (w written, ok bool) {
	row, err := f.table.Get(context.Background(), key, metadata.Strong)
	if err != nil && !errors.Is(err, metadata.ErrNotFound) {
		return written{}, false
	}
	return written{key: key, row: row, exists: err == nil}, true
}
