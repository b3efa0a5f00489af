package sim

import (
	"sync"
	"time"
)

// nemesis makes episodes of bad luck until the safety phase is over.
type nemesis struct {
	*Cluster
	dice     *dice
	episodes []episode
	running  sync.WaitGroup
	over     <-chan struct{}
}

// episode does its harm, and has undone it when it returns.
type episode func(*nemesis)

// episodesOf a family.
var episodesOf = map[Family][]episode{
	Partitions: {(*nemesis).sever, (*nemesis).sever, (*nemesis).cutOff},
	Outages:    {(*nemesis).outage, (*nemesis).throttle, (*nemesis).storm},
	Kills:      {(*nemesis).kill, (*nemesis).powerCut, (*nemesis).kill, (*nemesis).killAll},
	Disks:      {(*nemesis).loseDisk, (*nemesis).moveDisk},
	Pauses:     {(*nemesis).pause},
	Churn:      {(*nemesis).roll, (*nemesis).scaleOut, (*nemesis).scaleIn, (*nemesis).cutShort},
}

func newNemesis(c *Cluster, over <-chan struct{}) *nemesis {
	n := &nemesis{Cluster: c, dice: newDice(c.options.Seed, "nemesis"), over: over}
	for _, f := range c.options.Faults {
		n.episodes = append(n.episodes, episodesOf[f]...)
	}
	n.dice.r.Shuffle(len(n.episodes), func(i, j int) { n.episodes[i], n.episodes[j] = n.episodes[j], n.episodes[i] })
	return n
}

// seize takes a host as soon as one is free; nil when the safety phase is over before.
func (n *nemesis) seize() *host {
	for {
		if h := n.Cluster.seize(); h != nil || n.wait(50*time.Millisecond) {
			return h
		}
	}
}

// run starts one episode after the other, each of them at least once, and returns when all of them
// are over.
func (n *nemesis) run() {
	defer n.running.Wait()
	if n.options.Skew > 0 {
		n.running.Go(n.jumpClocks)
	}
	if len(n.episodes) == 0 {
		return
	}
	most := max(n.options.Length/time.Duration(len(n.episodes))*3/4, 300*time.Millisecond)
	for i := 0; ; i++ {
		if n.wait(n.dice.between(most/4, most)) {
			return
		}
		do := n.episodes[i%len(n.episodes)]
		n.running.Go(func() { do(n) })
	}
}

// wait returns true when the safety phase is over before.
func (n *nemesis) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return false
	case <-n.over:
		return true
	}
}

// sever cuts the links between two ends, or one of the two.
func (n *nemesis) sever() {
	hosts := n.present()
	from := pick(n.dice, hosts).name
	others := []string{tableName, bucketName}
	for _, h := range hosts {
		if h.name != from {
			others = append(others, h.name)
		}
	}
	to := pick(n.dice, others)
	links := []link{{from, to}, {to, from}}
	if n.dice.chance(2) {
		one := n.dice.upTo(2)
		links = links[one : one+1]
		n.weather.befall(severedOne, links)
	} else {
		n.weather.befall(severed, links)
	}
	n.while(n.weather.block(links...), 200*time.Millisecond, 4*n.options.LeaseTime)
}

// cutOff cuts one gateway from all others, which reach the table as it does.
func (n *nemesis) cutOff() {
	hosts := n.present()
	from := pick(n.dice, hosts).name
	var links []link
	for _, h := range hosts {
		if h.name != from {
			links = append(links, link{from, h.name}, link{h.name, from})
		}
	}
	n.weather.befall(severed, from)
	n.while(n.weather.block(links...), 200*time.Millisecond, 4*n.options.LeaseTime)
}

func (n *nemesis) while(heal func(), least, most time.Duration) {
	defer heal()
	n.wait(n.dice.between(least, most))
}

// outage has the table or the bucket answer nobody, for seconds, minutes or hours.
func (n *nemesis) outage() {
	service, fault := tableName, tableOut
	if n.dice.chance(3) {
		service, fault = bucketName, bucketOut
	}
	heal := n.weather.block(link{anyone, service})
	defer heal()
	n.weather.befall(fault)
	if n.options.LongOutage {
		n.weather.befall(hoursOut)
		time.Sleep(3 * time.Hour) // longer than the safety phase would be
		return
	}
	most := 3 * n.options.LeaseTime
	if n.dice.chance(4) {
		most = 2 * time.Minute
	}
	n.wait(n.dice.between(500*time.Millisecond, most))
}

// throttle has the table refuse one partition key.
func (n *nemesis) throttle() {
	prefix := pick(n.dice, []string{"journal/", "partition/", "gateways", "topics"})
	n.while(n.weather.throttle(prefix), 200*time.Millisecond, 2*n.options.LeaseTime)
}

// storm has the bucket refuse keys of a prefix.
func (n *nemesis) storm() {
	n.while(n.weather.stormOver(""), 200*time.Millisecond, 10*time.Second)
}

// kill ends a gateway's process and starts it again.
func (n *nemesis) kill() { n.killOne(killed, false) }

// powerCut ends its host.
func (n *nemesis) powerCut() { n.killOne(powerCut, true) }

func (n *nemesis) killOne(fault Fault, power bool) {
	h := n.seize()
	if h == nil {
		return
	}
	defer n.Cluster.release(h)
	n.weather.befall(fault, h.name)
	h.kill(power)
	n.wait(n.dice.between(50*time.Millisecond, 2*n.options.LeaseTime+2*n.options.CloseAfter))
	h.start()
}

// killAll ends all of them at once.
func (n *nemesis) killAll() {
	n.weather.befall(allKilled)
	var mine []*host
	for {
		h := n.Cluster.seize()
		if h == nil {
			break
		}
		mine = append(mine, h)
		h.kill(false)
	}
	n.wait(n.dice.between(50*time.Millisecond, 2*n.options.LeaseTime))
	for _, h := range mine {
		h.start()
		n.Cluster.release(h)
	}
}

// loseDisk takes a host's disk with it.
func (n *nemesis) loseDisk() {
	h := n.seize()
	if h == nil {
		return
	}
	defer n.Cluster.release(h)
	n.weather.befall(diskLost, h.name)
	h.kill(true)
	n.mu.Lock()
	h.disk.lost = true
	h.disk = newDisk(n.weather)
	n.mu.Unlock()
	n.wait(n.dice.between(50*time.Millisecond, 2*n.options.LeaseTime))
	h.start()
}

// moveDisk puts a host's disk into a new one, and an empty one into the old.
func (n *nemesis) moveDisk() {
	h := n.seize()
	if h == nil {
		return
	}
	defer n.Cluster.release(h)
	n.weather.befall(diskMoved, h.name)
	h.kill(false)
	n.mu.Lock()
	moved := h.disk
	h.disk = newDisk(n.weather)
	n.mu.Unlock()
	longest := 3*n.options.LeaseTime + 3*n.options.CloseAfter // longer than it is waited for
	if n.dice.chance(2) {
		h.start()
		n.wait(n.dice.between(50*time.Millisecond, longest))
		n.addHost(moved).start()
		return
	}
	n.wait(n.dice.between(50*time.Millisecond, longest))
	n.addHost(moved).start()
	h.start()
}

// pause stops a process for shorter or longer than its lease.
func (n *nemesis) pause() {
	h := n.seize()
	if h == nil {
		return
	}
	defer n.Cluster.release(h)
	n.mu.Lock()
	p := h.process
	n.mu.Unlock()
	if p == nil {
		return
	}
	n.weather.befall(stopped, h.name)
	p.life.stop()
	n.wait(n.dice.between(n.options.LeaseTime/4, 3*n.options.LeaseTime))
	p.life.goOn()
	n.weather.befall(resumed, h.name)
}

// roll ends a gateway in good order and starts it again.
func (n *nemesis) roll() {
	h := n.seize()
	if h == nil {
		return
	}
	defer n.Cluster.release(h)
	n.weather.befall(drained, h.name)
	h.drain()
	h.start()
}

// cutShort kills a gateway while it drains.
func (n *nemesis) cutShort() {
	h := n.seize()
	if h == nil {
		return
	}
	defer n.Cluster.release(h)
	n.mu.Lock()
	p := h.process
	n.mu.Unlock()
	if p == nil {
		return
	}
	n.weather.befall(cutShort, h.name)
	p.leave()
	n.wait(n.dice.between(0, 300*time.Millisecond))
	h.kill(n.dice.chance(2))
	n.wait(n.dice.between(50*time.Millisecond, n.options.LeaseTime))
	h.start()
}

// most is how many hosts there may be.
const mostHosts = 9

// scaleOut adds a gateway.
func (n *nemesis) scaleOut() {
	if len(n.present()) < mostHosts {
		n.weather.befall(scaledOut)
		n.addHost(newDisk(n.weather)).start()
	}
}

// scaleIn removes one in good order. Its disk is kept: should the drain have failed, something is on it.
func (n *nemesis) scaleIn() {
	if len(n.present()) < 3 {
		return
	}
	h := n.seize()
	if h == nil {
		return
	}
	n.weather.befall(scaledIn, h.name)
	h.drain()
	n.mu.Lock()
	defer n.mu.Unlock()
	h.gone = true
	n.spare = append(n.spare, h.disk)
}
