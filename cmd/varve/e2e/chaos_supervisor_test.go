package e2e

import (
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"
)

const (
	// chaosLease is the gateways' lease time: short, so that much happens.
	chaosLease = 2 * time.Second
	// chaosDrain is how long a drain may take. A request that is kept past its deadline holds one up for half a minute.
	chaosDrain = 90 * time.Second
)

// supervisor disturbs a fleet. Everything it does it does in the test's goroutine: what others wait for comes as
// an event.
type supervisor struct {
	t     *testing.T
	r     *rand.Rand
	fleet *fleet
	// wanted is how many gateways are to be there, about.
	wanted int
	events chan func()
	ended  chan struct{} // closed when nobody takes events any more

	deck     []disturbance
	attic    []*disk // away, to come back
	fired    map[string]int
	launched []*process
	// slowestDrain and slowestStart are what they took at most.
	slowestDrain, slowestStart time.Duration
}

func newSupervisor(t *testing.T, r *rand.Rand, f *fleet, wanted int) *supervisor {
	s := &supervisor{t: t, r: r, fleet: f, wanted: wanted, events: make(chan func()), ended: make(chan struct{}), fired: make(map[string]int)}
	t.Cleanup(func() { close(s.ended) })
	return s
}

// when has f called after a channel is closed, or receives.
func when[T any](s *supervisor, happened <-chan T, f func()) {
	go func() {
		select {
		case <-happened:
		case <-s.ended:
			return
		}
		select {
		case s.events <- f:
		case <-s.ended:
		}
	}()
}

func (s *supervisor) after(d time.Duration, f func()) { when(s, time.After(d), f) }

// until handles events until something is true.
func (s *supervisor) until(what string, within time.Duration, done func() bool) {
	s.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case f := <-s.events:
			f()
		case <-tick.C: // what is waited for may be no event
		case <-deadline:
			for _, p := range s.fleet.posts {
				if p.process != nil {
					s.t.Logf("gateway %d (state %d, busy %v):\n%s", p.number, p.state, p.busy, p.process.said.tail(8))
				}
			}
			s.t.Fatalf("no sign of %s after %s", what, within)
		}
	}
}

// run disturbs for so long.
func (s *supervisor) run(d time.Duration) {
	end := time.After(d)
	next := time.After(s.pause())
	for {
		select {
		case <-end:
			return
		case f := <-s.events:
			f()
		case <-next:
			s.disturb()
			next = time.After(s.pause())
		}
	}
}

// pause is the time between two disturbances: it is what this is about, so it is slept for.
func (s *supervisor) pause() time.Duration {
	return 500*time.Millisecond + time.Duration(s.r.Float64()*float64(2*time.Second))
}

// disturbance is something to do to a fleet. It returns false if it cannot be done now.
type disturbance struct {
	name string
	do   func(*supervisor) bool
}

// disturbances are a deck of cards: one of each comes first, so that a short run sees every kind, then the rest of
// the deck, before any comes again.
var disturbances = []struct {
	disturbance
	cards int
}{
	{disturbance{"kill -9, same disk", (*supervisor).kill}, 5},
	{disturbance{"kill -9, disk away", func(s *supervisor) bool { return s.killAndSwap(false) }}, 2},
	{disturbance{"kill -9, disk lost", func(s *supervisor) bool { return s.killAndSwap(true) }}, 1},
	{disturbance{"kill -9, another's disk", (*supervisor).bringBack}, 2},
	{disturbance{"SIGSTOP past the lease", func(s *supervisor) bool { return s.freeze(chaosLease+time.Second, 2*chaosLease) }}, 3},
	{disturbance{"SIGSTOP, short", func(s *supervisor) bool { return s.freeze(0, chaosLease/2) }}, 1},
	{disturbance{"SIGTERM", (*supervisor).restart}, 3},
	{disturbance{"leave", (*supervisor).leave}, 2},
	{disturbance{"join", (*supervisor).join}, 2},
	{disturbance{"table cut off", func(s *supervisor) bool { return s.cutOff(true) }}, 1},
	{disturbance{"bucket cut off", func(s *supervisor) bool { return s.cutOff(false) }}, 1},
	{disturbance{"rolling restart", (*supervisor).roll}, 1},
	{disturbance{"kill -9 of all", (*supervisor).killAll}, 1},
}

// disturb draws a card. One that cannot be played now goes under the others.
func (s *supervisor) disturb() {
	if len(s.deck) == 0 {
		s.deck = s.newDeck()
	}
	for i, card := range s.deck {
		if card.do(s) {
			s.fired[card.name]++
			s.t.Logf("%s: %s", time.Now().Format("15:04:05.000"), card.name)
			s.deck = append(s.deck[:i:i], s.deck[i+1:]...)
			return
		}
	}
}

func (s *supervisor) newDeck() []disturbance {
	var first, rest []disturbance
	for _, d := range disturbances {
		first = append(first, d.disturbance)
		for range d.cards - 1 {
			rest = append(rest, d.disturbance)
		}
	}
	s.r.Shuffle(len(first), func(i, j int) { first[i], first[j] = first[j], first[i] })
	s.r.Shuffle(len(rest), func(i, j int) { rest[i], rest[j] = rest[j], rest[i] })
	return append(first, rest...)
}

// start launches a gateway and follows what becomes of it.
func (s *supervisor) start(p *post) {
	s.fleet.launch(s.t, p)
	process := p.process
	s.launched = append(s.launched, process)
	when(s, process.serves, func() {
		s.slowestStart = max(s.slowestStart, process.startTime)
		if p.process == process && p.state == starting {
			p.become(serving)
		}
	})
	when(s, process.exited, func() {
		if p.process == process && (p.state == starting || p.state == serving || p.state == paused) {
			s.endedByItself(p)
		}
	})
}

// endedByItself: a start gives up when bucket or table fail it for a minute, which they do not; nothing else may end.
func (s *supervisor) endedByItself(p *post) {
	said := p.process.said.tail(12)
	s.t.Errorf("gateway %d ended by itself (%s, state %d):\n%s", p.number, p.process.cmd.ProcessState, p.state, said)
	p.become(down)
	p.busy = true
	s.after(500*time.Millisecond, func() { p.busy = false; s.start(p) })
}

// target chooses a gateway to disturb, if enough others are left in peace.
func (s *supervisor) target(states ...state) *post {
	peaceful := 0
	for _, p := range s.fleet.posts {
		if p.state == serving && !p.busy {
			peaceful++
		}
	}
	if s.wanted > 1 && peaceful <= (s.wanted+1)/3 {
		return nil
	}
	return s.any(states...)
}

// any chooses a gateway with which nothing else happens.
func (s *supervisor) any(states ...state) *post {
	for _, i := range s.r.Perm(len(s.fleet.posts)) {
		p := s.fleet.posts[i]
		for _, wanted := range states {
			if p.state == wanted && !p.busy {
				return p
			}
		}
	}
	return nil
}

// killNow ends a process with SIGKILL.
func (s *supervisor) killNow(p *post) {
	p.become(down)
	p.process.kill()
}

// startSoon starts a gateway after a moment, whose length matters: within the lease it is back before
// others miss it.
func (s *supervisor) startSoon(p *post) {
	p.busy = true
	s.after(moment(s.r, 2*chaosLease), func() { p.busy = false; s.start(p) })
}

func (s *supervisor) kill() bool {
	p := s.target(serving, starting)
	if p == nil {
		return false
	}
	s.killNow(p)
	s.startSoon(p)
	return true
}

// strand has a gateway keep on its disk what it acks as buffered from now on, and kills it after a moment in which it does.
func (s *supervisor) strand(p *post, then func()) {
	p.busy = true
	p.bucket.SetCut(true)
	s.after(300*time.Millisecond+moment(s.r, time.Second), func() {
		p.busy = false
		s.killNow(p)
		p.bucket.SetCut(false)
		then()
		s.startSoon(p)
	})
}

// killAndSwap: the gateway comes back without its disk, which is lost, or comes back somewhere else later.
func (s *supervisor) killAndSwap(lost bool) bool {
	p := s.target(serving)
	if p == nil {
		return false
	}
	s.strand(p, func() {
		old := p.disk()
		if lost {
			old.lost = true
			if err := os.RemoveAll(old.folder); err != nil {
				s.t.Fatal(err)
			}
		} else {
			s.attic = append(s.attic, old)
		}
		p.insert(s.fleet.newDisk())
	})
	return true
}

// bringBack mounts a disk that was away on another gateway, whose own one goes away.
func (s *supervisor) bringBack() bool {
	if len(s.attic) == 0 {
		return false
	}
	p := s.target(serving)
	if p == nil {
		return false
	}
	back := s.attic[0]
	s.attic = s.attic[1:]
	s.strand(p, func() {
		s.attic = append(s.attic, p.disk())
		p.insert(back)
	})
	return true
}

// freeze stops a gateway for a time; it does not know.
func (s *supervisor) freeze(least, more time.Duration) bool {
	p := s.target(serving)
	if p == nil {
		return false
	}
	p.busy = true
	p.become(paused)
	p.process.signal(syscall.SIGSTOP)
	s.after(least+time.Duration(s.r.Float64()*float64(more)), func() {
		p.busy = false
		p.process.signal(syscall.SIGCONT)
		if p.state == paused {
			p.become(serving)
		}
	})
	return true
}

// drain ends a gateway kindly: it has to end with 0.
func (s *supervisor) drain(p *post, then func()) {
	p.busy = true
	p.become(draining)
	process, began := p.process, time.Now()
	process.signal(syscall.SIGTERM)
	when(s, process.exited, func() {
		took := time.Since(began)
		s.slowestDrain = max(s.slowestDrain, took)
		if status := process.cmd.ProcessState.ExitCode(); status != 0 {
			s.t.Errorf("gateway %d ended with status %d, %s after SIGTERM:\n%s", p.number, status, took.Round(time.Millisecond), process.said.tail(12))
		}
		p.busy = false
		p.become(down)
		then()
	})
}

func (s *supervisor) restart() bool {
	p := s.target(serving)
	if p != nil {
		s.drain(p, func() { s.start(p) })
	}
	return p != nil
}

func (s *supervisor) leave() bool {
	if s.fleet.inState(serving, starting, paused) < s.wanted {
		return false
	}
	p := s.target(serving)
	if p != nil {
		s.drain(p, func() {})
	}
	return p != nil
}

func (s *supervisor) join() bool {
	p := s.any(down)
	if p != nil {
		s.start(p)
	}
	return p != nil
}

// cutOff: a gateway's table or bucket cannot be reached, from shorter than the lease to longer.
func (s *supervisor) cutOff(table bool) bool {
	p := s.target(serving)
	if p == nil {
		return false
	}
	proxy := p.bucket
	if table {
		proxy = p.table
	}
	p.busy = true
	proxy.SetCut(true)
	s.after(chaosLease/2+time.Duration(s.r.Float64()*float64(2*chaosLease)), func() { p.busy = false; proxy.SetCut(false) })
	return true
}

// roll restarts those that serve, one after the other.
func (s *supervisor) roll() bool {
	if s.target(serving) == nil {
		return false
	}
	s.rollFrom(0)
	return true
}

func (s *supervisor) rollFrom(number int) {
	for ; number < len(s.fleet.posts); number++ {
		p := s.fleet.posts[number]
		if p.state != serving || p.busy {
			continue
		}
		s.drain(p, func() {
			s.start(p)
			when(s, p.process.serves, func() { s.rollFrom(number + 1) })
		})
		return
	}
}

func (s *supervisor) killAll() bool {
	killed := false
	for _, p := range s.fleet.posts {
		if !p.busy && (p.state == serving || p.state == starting) {
			s.killNow(p)
			s.startSoon(p)
			killed = true
		}
	}
	return killed
}

// settled says that nothing is under way.
func (s *supervisor) settled() bool {
	for _, p := range s.fleet.posts {
		if p.busy || p.state != serving && p.state != down {
			return false
		}
	}
	return true
}

// heal ends all disturbances and waits until every gateway that is wanted serves.
func (s *supervisor) heal() {
	s.fleet.setFaults(false)
	s.until("an end of the disturbances", chaosDrain+patience, s.settled)
	for s.fleet.inState(serving) < s.wanted {
		s.start(s.any(down))
		s.until("a gateway that serves", chaosDrain, s.settled)
	}
}

// recover waits until every disk that is not lost has been emptied, those that are away, too. There must be no load.
func (s *supervisor) recover() {
	for _, d := range s.fleet.disks {
		if d.lost || clean(s.t, d) {
			continue
		}
		if p := s.fleet.user(d); p == nil || p.state != serving {
			s.mount(d)
		}
		s.until("the recovery of "+d.folder, chaosDrain, func() bool { return clean(s.t, d) })
	}
}

// mount has a gateway go on with another disk.
func (s *supervisor) mount(d *disk) {
	p := s.fleet.user(d)
	if p == nil {
		p = s.any(serving)
		s.drain(p, func() {})
		s.until("the end of a drain", chaosDrain, s.settled)
		p.insert(d)
	}
	s.start(p)
	s.until("a gateway on a disk that was away", chaosDrain, s.settled)
}

// startAll has a gateway serve at every post, so that every follower can come to the end.
func (s *supervisor) startAll() {
	for _, p := range s.fleet.posts {
		if p.state == down {
			s.start(p)
		}
	}
	s.until("gateways that serve", chaosDrain, func() bool { return s.fleet.inState(serving) == len(s.fleet.posts) })
}

// drainAll ends all gateways at once.
func (s *supervisor) drainAll() {
	for _, p := range s.fleet.posts {
		if p.state == serving {
			s.drain(p, func() {})
		}
	}
	s.until("the end of all gateways", chaosDrain+patience, func() bool { return s.fleet.inState(down) == len(s.fleet.posts) })
}
