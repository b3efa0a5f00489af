package sim

import (
	"sync/atomic"
	"time"
)

// wallClock is what a host takes for the time of day. Its monotonic clock is right.
type wallClock struct{ off atomic.Int64 }

// now has no monotonic part: who subtracts two of them sees the jumps.
func (w *wallClock) now() time.Time {
	return time.Now().Add(time.Duration(w.off.Load())).Round(0)
}

// set puts a host's clock wrong by as much as the options allow.
func (c *Cluster) setClock(h *host) {
	if c.options.Skew == 0 {
		return
	}
	h.clock.off.Store(int64(c.clocks.between(-c.options.Skew, c.options.Skew)))
}

// jumpClocks has wall clocks jump until the safety phase is over.
func (n *nemesis) jumpClocks() {
	for !n.wait(n.clocks.between(time.Second, 10*time.Second)) {
		h := pick(n.clocks, n.present())
		n.setClock(h)
		n.weather.befall(clockJumped, h.name, time.Duration(h.clock.off.Load()))
	}
}
