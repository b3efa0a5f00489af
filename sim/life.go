package sim

import (
	"context"
	"errors"
	"sync"
	"time"
)

// errDead is what a process finds that was killed and does not know it.
var errDead = errors.New("sim: the process is dead")

// life is that of a process. Goroutines cannot be killed or stopped: instead everything that they
// do to the outside passes here first. In a dead process nothing has an effect any more, in
// a stopped one it waits.
type life struct {
	over context.Context
	die  context.CancelFunc

	mu   sync.Mutex
	gate chan struct{} // closed while the process may run
}

func newLife() *life {
	l := &life{gate: make(chan struct{})}
	l.over, l.die = context.WithCancel(context.Background())
	close(l.gate)
	return l
}

// pass waits while the process is stopped, whatever deadlines pass meanwhile.
func (l *life) pass() error {
	for {
		if l.dead() {
			time.Sleep(time.Millisecond) // a dead process that keeps trying must not stop time
			return errDead
		}
		l.mu.Lock()
		gate := l.gate
		l.mu.Unlock()
		select {
		case <-gate:
			return nil
		default:
		}
		select {
		case <-gate:
		case <-l.over.Done():
		}
	}
}

func (l *life) dead() bool { return l.over.Err() != nil }

func (l *life) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.gate:
		l.gate = make(chan struct{})
	default:
	}
}

func (l *life) goOn() {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.gate:
	default:
		close(l.gate)
	}
}

// rest sleeps unless ctx ends before.
func rest(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
