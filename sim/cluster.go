package sim

import (
	"fmt"
	"log/slog"
	"sync"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// Latencies of one direction.
const (
	bucketLatency = 8 * time.Millisecond
	tableLatency  = 2 * time.Millisecond
)

// Cluster is everything but the clients.
type Cluster struct {
	options Options
	log     *slog.Logger
	dice    *dice
	clocks  *dice // of wall clocks
	weather *weather
	network *network
	bucket  segments.Store
	rows    metadata.Table
	// meters are those of all gateways, paths what their calls to the table were for.
	meters *gateway.Meters
	paths  *paths
	// ambushes kill and stop gateways between two writes.
	ambushes *ambushes
	// strays are goroutines that nobody waits for before the end.
	strays sync.WaitGroup

	mu      sync.Mutex
	hosts   []*host
	named   int
	started int
	// over: nothing is started any more.
	over bool
	// spare disks lie about without a host.
	spare []*disk
	ends  []string
}

func newCluster(o Options, log *slog.Logger) *Cluster {
	smallLimits()
	w := newWeather(o)
	c := &Cluster{options: o, log: log, dice: newDice(o.Seed, "cluster"), clocks: newDice(o.Seed, "clocks"), weather: w, bucket: memstore.New(), rows: newRows(), meters: gateway.NewMeters()}
	c.paths, c.ambushes = newPaths(c.rows), newAmbushes(c)
	if c.log == nil {
		c.log = discardLog
	}
	c.network = newNetwork(w, &c.strays)
	for range o.Gateways {
		c.addHost(newDisk(w)).start()
	}
	return c
}

// smallLimits has partitions fill pages, tree nodes and producers' rows in seconds.
var smallLimits = sync.OnceFunc(func() {
	metadata.SetLimits(metadata.Limits{FanOut: 12, PageAt: 5, PagesInline: 4, InlineProducers: 1})
})

// addHost adds a host with that disk.
func (c *Cluster) addHost(d *disk) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.named++
	h := &host{cluster: c, name: fmt.Sprintf("g%d", c.named), disk: d}
	c.setClock(h)
	c.hosts = append(c.hosts, h)
	return h
}

// way is how a process reaches a service.
func (c *Cluster) way(from party, to string) *way {
	w := &way{weather: c.weather, strays: &c.strays, life: from.life, ambushes: c.ambushes, from: from.name, to: to}
	if to == bucketName {
		w.family, w.odds, w.latency = BucketCalls, bucketOdds, bucketLatency
	} else {
		w.family, w.odds, w.latency = TableCalls, tableOdds, tableLatency
	}
	return w
}

func (c *Cluster) dial(from party) func(string) connect.Transport {
	return func(address string) connect.Transport { return c.network.dial(from, address) }
}

// endedByItself notes that a gateway ended and nobody had asked it to.
func (c *Cluster) endedByItself(host string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends = append(c.ends, fmt.Sprintf("%s: %v", host, err))
}

// present lists the hosts that are part of the cluster.
func (c *Cluster) present() []*host {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*host
	for _, h := range c.hosts {
		if !h.gone {
			list = append(list, h)
		}
	}
	return list
}

// diskOf is the disk that a host's process works on now; nil if it has none.
func (c *Cluster) diskOf(h *host) *disk {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.process == nil {
		return nil
	}
	return h.process.disk
}

// seize takes a host that no other episode has; nil if there is none.
func (c *Cluster) seize() *host {
	var free []*host
	for _, h := range c.present() {
		c.mu.Lock()
		if !h.busy {
			free = append(free, h)
		}
		c.mu.Unlock()
	}
	if len(free) == 0 {
		return nil
	}
	h := pick(c.dice, free)
	c.mu.Lock()
	defer c.mu.Unlock()
	h.busy = true
	return h
}

func (c *Cluster) release(h *host) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h.busy = false
}

// heal ends all faults: every host runs, every disk has one, every link carries.
func (c *Cluster) heal() {
	c.weather.clear()
	c.mu.Lock()
	spare := c.spare
	c.spare = nil
	c.mu.Unlock()
	for _, d := range spare {
		c.addHost(d).start()
	}
	for _, h := range c.present() {
		c.mu.Lock()
		p := h.process
		down := p == nil || p.asked
		c.mu.Unlock()
		if p != nil {
			p.life.goOn()
		}
		if down {
			h.start()
		}
	}
}

// stop drains all gateways, one after the other, and waits for whatever is left. It returns how
// long the slowest took.
func (c *Cluster) stop() (slowest time.Duration) {
	for _, h := range c.present() {
		began := time.Now()
		h.drain()
		slowest = max(slowest, time.Since(began))
	}
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.strays.Wait()
	return slowest
}
