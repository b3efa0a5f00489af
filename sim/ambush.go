package sim

import (
	"strings"
	"sync"
	"time"

	"github.com/varvelog/varve/metadata"
)

// step is a write that an ambush waits for: its owner is killed or stopped right before it has its
// effect, or right after, before it hears of it. What goes wrong between two writes of one
// procedure would hardly ever be met by chance.
type step string

const (
	pageStep    step = "page"
	nodeStep    step = "tree node"
	leaseStep   step = "lease row"
	trimStep    step = "trimmed-to"
	removalStep step = "removal of a row"
	entryStep   step = "journal entry"
	memberStep  step = "row of a gateway"
	uploadStep  step = "upload"
)

// stepOdds is once in how many of its writes there is an ambush: the frequent ones seldom.
var stepOdds = map[step]int{pageStep: 8, nodeStep: 6, leaseStep: 150, trimStep: 60, removalStep: 300, entryStep: 400, memberStep: 300, uploadStep: 400}

// stepOf is the step that writing a row is; "" for none.
func stepOf(key metadata.Key) step {
	kind, _, _ := strings.Cut(key.Sort, "/")
	switch {
	case strings.HasPrefix(key.Partition, "journal/") && strings.Trim(key.Sort, "0") == "":
		return trimStep
	case strings.HasPrefix(key.Partition, "journal/"):
		return entryStep
	case key.Partition == "gateways":
		return memberStep
	case !strings.HasPrefix(key.Partition, "partition/"):
		return ""
	case kind == "page":
		return pageStep
	case kind == "tree":
		return nodeStep
	case kind == "lease":
		return leaseStep
	}
	return ""
}

// ambushes lie in wait until the safety phase is over.
type ambushes struct {
	cluster *Cluster
	dice    *dice
	running sync.WaitGroup
	over    chan struct{}

	mu    sync.Mutex
	ended bool
}

func newAmbushes(c *Cluster) *ambushes {
	return &ambushes{cluster: c, dice: newDice(c.options.Seed, "ambushes"), over: make(chan struct{})}
}

// end returns when whoever fell into one is up again.
func (a *ambushes) end() {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	close(a.over)
	a.running.Wait()
}

// around has the effect of a step, unless there is an ambush before it.
func (a *ambushes) around(w *way, s step, effect func() error) error {
	odds := stepOdds[s]
	if odds == 0 || !a.dice.chance(odds) {
		return effect()
	}
	if a.dice.chance(2) {
		a.spring(w, s, "before")
		if err := w.life.pass(); err != nil {
			return &failure{"dead", true, err}
		}
		return effect()
	}
	err := effect()
	a.spring(w, s, "after")
	return err
}

// spring kills or stops the process whose way it is, if no other episode has its host.
func (a *ambushes) spring(w *way, s step, when string) {
	o := a.cluster.options
	kill := o.Has(Kills) && (!o.Has(Pauses) || a.dice.chance(2))
	if !kill && !o.Has(Pauses) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	h := a.cluster.seizeProcess(w.life)
	if h == nil {
		return
	}
	longest := 2*o.LeaseTime + 2*o.CloseAfter
	if kill {
		a.cluster.weather.befall(killedAtStep, h.name, when, s)
		h.kill(false)
	} else {
		a.cluster.weather.befall(stoppedAtStep, h.name, when, s)
		w.life.stop()
	}
	a.running.Go(func() {
		defer a.cluster.release(h)
		t := time.NewTimer(a.dice.between(50*time.Millisecond, longest))
		defer t.Stop()
		select {
		case <-t.C:
		case <-a.over:
		}
		if kill {
			h.start()
		} else {
			w.life.goOn()
		}
	})
}

// seizeProcess takes the host whose process has that life; nil if none has any more, or an episode has it.
func (c *Cluster) seizeProcess(l *life) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.hosts {
		if p := h.process; p != nil && p.life == l && !h.busy && !h.gone && !p.asked {
			h.busy = true
			return h
		}
	}
	return nil
}
