package compactor

import (
	"context"
	"sync"
	"time"
)

// pacer spaces what is read and written: who takes bytes waits until those taken before have had their time. For many
// goroutines.
type pacer struct {
	perSecond int64 // bytes; 0: no limit

	mu   sync.Mutex
	next time.Time // when the next bytes may be taken
}

func (p *pacer) take(ctx context.Context, bytes int64) error {
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
