package compactor

import (
	"context"
	"sync"
	"time"
)

const (
	// mostYielded is how long merging stands back for producers in one go, and a tenth of the time in the long run: there
	// is the more to merge the longer they go on.
	mostYielded = 30 * time.Second
	yieldShare  = 10
	// yieldLook is how often it looks whether they still wait.
	yieldLook = 100 * time.Millisecond
)

// pacer spaces what is read and written: who takes bytes waits until those taken before have had their time, and while
// producers are pressed. For many goroutines.
type pacer struct {
	perSecond int64       // bytes; 0: no limit
	pressed   func() bool // producers wait with all that they have in flight; nil: never

	mu      sync.Mutex
	next    time.Time     // when the next bytes may be taken
	yielded time.Duration // that is not made up for yet, as of
	asOf    time.Time
	until   time.Time // up to when standing back counts already: many do at once
}

// yield waits while producers are pressed.
func (p *pacer) yield(ctx context.Context) error {
	for p.pressed != nil && p.pressed() && p.spend(yieldLook) {
		if err := pause(ctx, yieldLook); err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// spend says whether it may stand back for so long.
func (p *pacer) spend(d time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.asOf.IsZero() {
		p.yielded = max(0, p.yielded-now.Sub(p.asOf)/yieldShare)
	}
	p.asOf = now
	until := now.Add(d)
	if p.until.After(now) {
		d = max(0, until.Sub(p.until))
	}
	if p.yielded+d > mostYielded {
		return false
	}
	p.yielded += d
	p.until = until
	return true
}

func (p *pacer) take(ctx context.Context, bytes int64) error {
	if err := p.yield(ctx); err != nil {
		return err
	}
	if p.perSecond <= 0 {
		return nil
	}
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	wait := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(bytes) / float64(p.perSecond) * float64(time.Second)))
	p.mu.Unlock()
	return pause(ctx, wait)
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
