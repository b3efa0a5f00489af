package gateway

import (
	"sync"

	"github.com/varvelog/varve/metadata"
)

// litter counts what may have left garbage, so that a collector begins when there is some, and rests when there is
// none: what this gateway decided, what other gateways' rows say that they decided, and gateways that were closed.
type litter struct {
	mu         sync.Mutex
	own, count uint64
	changed    chan struct{}
}

func newLitter() *litter { return &litter{changed: make(chan struct{})} }

// note counts changes that this gateway decided.
func (l *litter) note(n uint64) {
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own += n
	l.addLocked(n)
}

func (l *litter) addLocked(n uint64) {
	l.count += n
	close(l.changed)
	l.changed = make(chan struct{})
}

// heard counts what another gateway's row says that it did not say before.
func (l *litter) heard(was, is *metadata.Gateway, own metadata.GatewayID) {
	if is.ID == own {
		return
	}
	n := is.Garbage - min(was.Garbage, is.Garbage)
	if is.State == metadata.GatewayClosed && was.State != metadata.GatewayClosed {
		n++
	}
	if n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(n)
}

// poke has those look again who wait for more.
func (l *litter) poke() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.addLocked(0)
}

// ofOwn is how much of it this gateway decided, for its row.
func (l *litter) ofOwn() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.own
}

// litters says whether a change may leave something that nothing names: a trim, a swap, the end of a partition, a segment of which
// nothing was taken.
func litters(c *metadata.Change) bool {
	switch c.Kind {
	case metadata.ChangeAppend:
		return len(c.Entries) == 0
	case metadata.ChangeFence:
		return false
	}
	return true
}
