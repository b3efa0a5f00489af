package gateway

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// restAfter is how long nothing was asked of the gateway when it gives memory back.
const restAfter = 10 * time.Second

// resting gives memory back to the system after work, so that an idle gateway is small.
// The runtime would do it too, but takes minutes. Nothing runs while the gateway idles.
type resting struct {
	g     *Gateway
	calls atomic.Uint64
	awake atomic.Bool
	wake  chan struct{}
	free  func()
}

func newResting(g *Gateway) *resting {
	return &resting{g: g, wake: make(chan struct{}, 1), free: freeMemory}
}

// freeMemory gives what nobody uses back to the system. A [sync.Pool] keeps what it has over one collection, even if nobody has the
// pool any more: the second one, of FreeOSMemory, takes it.
func freeMemory() {
	runtime.GC()
	debug.FreeOSMemory()
}

// touch says that there is work.
func (r *resting) touch() {
	r.calls.Add(1)
	if r.awake.CompareAndSwap(false, true) {
		r.wake <- struct{}{} // there is room: it was taken before awake became false
	}
}

func (r *resting) run(ctx context.Context) error {
	for {
		select {
		case <-r.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for seen := r.calls.Load(); ; {
			select {
			case <-time.After(restAfter):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			now := r.calls.Load()
			if now == seen && r.g.tenure.Load().intake.outstanding.Load() == 0 {
				break
			}
			seen = now
		}
		r.awake.Store(false)
		r.g.reader.fresh.clear()
		r.g.reader.blocks.clear()
		r.g.bodies.clear()
		r.free()
	}
}
