package storetest

import (
	"context"
	"fmt"
	"sync"

	"github.com/varvelog/varve/segments"
)

// Op is a method of a store.
type Op = segments.Op

// The methods that can be made to fail.
const (
	Put    = segments.OpPut
	Get    = segments.OpGet
	Delete = segments.OpDelete
	List   = segments.OpList
)

// Call is one call of a store.
type Call struct {
	Op  Op
	Key string // the prefix for List
	N   int    // the how-manieth call of Op it is, from 1
}

// Fault says what goes wrong with a call; the zero Fault lets it pass. Hooks run
// without locks, in the caller's goroutine.
type Fault struct {
	// Name is counted in [Faulty.Fired]; a default is made from what is set.
	Name string
	// Hold is called first and may block: a slow store. An error ends the call
	// without effect. It should end when ctx does.
	Hold func(ctx context.Context) error
	// Before ends the call with this error, without effect.
	Before error
	// After ends the call with this error after it took effect: the answer is lost.
	After error
	// Late is closed by the test, and the call takes effect then, though the caller
	// was answered with After (or a timeout) at once.
	Late <-chan struct{}
	// Data changes what Get returns: a short or a wrong answer. It may write to data.
	Data func(data []byte) []byte
}

func (f *Fault) name() string {
	switch {
	case f.Name != "":
		return f.Name
	case f.Late != nil:
		return "late"
	case f.Before != nil:
		return "before"
	case f.After != nil:
		return "after"
	case f.Data != nil:
		return "data"
	case f.Hold != nil:
		return "hold"
	}
	return ""
}

// Faulty is a store that fails as a test tells it to. Without faults it only counts.
type Faulty struct {
	store segments.Store
	late  sync.WaitGroup

	mu     sync.Mutex
	decide func(Call) Fault
	next   map[Op][]Fault
	calls  map[Op]int
	fired  map[string]int
}

var _ segments.Store = (*Faulty)(nil)

// NewFaulty wraps a store.
func NewFaulty(store segments.Store) *Faulty {
	return &Faulty{store: store, next: make(map[Op][]Fault), calls: make(map[Op]int), fired: make(map[string]int)}
}

// Decide sets what happens to each call from now on; nil lets all pass. The function
// is called by one goroutine at a time and must not call the store.
func (f *Faulty) Decide(decide func(Call) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decide = decide
}

// Next queues faults for the next calls of op, one each; they come before what
// Decide says.
func (f *Faulty) Next(op Op, faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.next[op] = append(f.next[op], faults...)
}

// Calls is how often op was called.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Fired is how often the fault of that name happened.
func (f *Faulty) Fired(name string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired[name]
}

// Settle waits until every late call has taken effect.
func (f *Faulty) Settle() { f.late.Wait() }

func (f *Faulty) fault(op Op, key string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[op]++
	var fault Fault
	if queue := f.next[op]; len(queue) > 0 {
		fault, f.next[op] = queue[0], queue[1:]
	} else if f.decide != nil {
		fault = f.decide(Call{Op: op, Key: key, N: f.calls[op]})
	}
	if name := fault.name(); name != "" {
		f.fired[name]++
	}
	return fault
}

// call runs one call with its fault around it.
func (f *Faulty) call(ctx context.Context, fault Fault, effect func(context.Context) error) error {
	if fault.Hold != nil {
		if err := fault.Hold(ctx); err != nil {
			return fmt.Errorf("faulty store: %w", err)
		}
	}
	if fault.Before != nil {
		return fmt.Errorf("faulty store: %w", fault.Before)
	}
	if fault.Late != nil {
		f.late.Go(func() {
			<-fault.Late
			// Whatever becomes of it, nobody is there to be told.
			_ = effect(context.WithoutCancel(ctx))
		})
		if fault.After == nil {
			return fmt.Errorf("faulty store: %w: %w", segments.ErrUnavailable, context.DeadlineExceeded)
		}
		return fmt.Errorf("faulty store: %w", fault.After)
	}
	err := effect(ctx)
	if fault.After != nil {
		return fmt.Errorf("faulty store: %w", fault.After)
	}
	return err
}

// Put implements [segments.Store].
func (f *Faulty) Put(ctx context.Context, key string, body segments.Body) error {
	return f.call(ctx, f.fault(Put, key), func(ctx context.Context) error { return f.store.Put(ctx, key, body) })
}

// Get implements [segments.Store].
func (f *Faulty) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	fault := f.fault(Get, key)
	fault.Late = nil // a read has no effect
	var data []byte
	var size int64
	err := f.call(ctx, fault, func(ctx context.Context) (err error) {
		data, size, err = f.store.Get(ctx, key, offset, length)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	if fault.Data != nil {
		data = fault.Data(data)
	}
	return data, size, nil
}

// Delete implements [segments.Store].
func (f *Faulty) Delete(ctx context.Context, key string) error {
	return f.call(ctx, f.fault(Delete, key), func(ctx context.Context) error { return f.store.Delete(ctx, key) })
}

// List implements [segments.Store].
func (f *Faulty) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	fault := f.fault(List, prefix)
	fault.Late = nil
	var objects []segments.ObjectInfo
	err := f.call(ctx, fault, func(ctx context.Context) (err error) {
		objects, err = f.store.List(ctx, prefix, after, limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return objects, nil
}

// String implements [segments.Store].
func (f *Faulty) String() string { return f.store.String() }

// Unconditional wraps a store that ignores the condition of a put and replaces the
// object, as some S3 servers do.
type Unconditional struct {
	segments.Store
	mu sync.Mutex
}

// NewUnconditional wraps a store.
func NewUnconditional(store segments.Store) *Unconditional { return &Unconditional{Store: store} }

// Put replaces what is there.
func (u *Unconditional) Put(ctx context.Context, key string, body segments.Body) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.Store.Delete(ctx, key); err != nil {
		return err
	}
	return u.Store.Put(ctx, key, body)
}
