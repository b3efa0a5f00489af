package sim

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/internal/upkeep"
	"github.com/varvelog/varve/segments"
)

// host is where a gateway runs, or will run again.
type host struct {
	cluster *Cluster
	name    string
	clock   wallClock

	// Guarded by the cluster's mutex.
	disk    *disk
	process *process
	// busy: an episode has it.
	busy bool
	// gone: it was removed.
	gone bool
}

// zone is one of two, by the last letter of the name.
func (h *host) zone() string { return string('a' + h.name[len(h.name)-1]%2) }

func (h *host) apiAddress() string  { return h.name + ":api" }
func (h *host) peerAddress() string { return h.name + ":peer" }

// process is one run of a gateway on a host.
type process struct {
	host  *host
	disk  *disk
	life  *life
	leave context.CancelFunc
	// ended is closed when all of it has ended.
	ended chan struct{}
	// asked: its end was wanted.
	asked bool
}

// Pauses before a gateway that ended by itself is started again.
const (
	firstPause   = time.Second
	longestPause = 30 * time.Second
)

// start runs a gateway, and another one should that end by itself.
func (h *host) start() { h.startWith(firstPause) }

func (h *host) startWith(pause time.Duration) {
	c := h.cluster
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.gone || c.over {
		return
	}
	ctx, leave := context.WithCancel(context.Background())
	p := &process{host: h, disk: h.disk, life: newLife(), leave: leave, ended: make(chan struct{})}
	h.process = p
	c.started++
	c.strays.Go(func() {
		defer close(p.ended)
		err := p.run(ctx)
		c.mu.Lock()
		asked := p.asked
		c.mu.Unlock()
		if asked {
			return
		}
		c.endedByItself(h.name, err)
		time.Sleep(pause)
		h.restart(p, min(2*pause, longestPause))
	})
}

// restart starts a gateway again, unless somebody else did.
func (h *host) restart(after *process, pause time.Duration) {
	h.cluster.mu.Lock()
	mine := h.process == after && !after.asked
	h.cluster.mu.Unlock()
	if mine {
		h.startWith(pause)
	}
}

// run is the process.
func (p *process) run(ctx context.Context) error {
	h, c := p.host, p.host.cluster
	buffers, err := segments.OpenBufferDir(&mounted{p.disk.fs, p.life}, "/buffer", segments.BufferConfig{Reserve: 1})
	if err != nil {
		return fmt.Errorf("open its buffer: %w", err)
	}
	defer buffers.Close()
	me := party{h.name, p.life}
	o := c.options
	g, err := gateway.New(gateway.Config{
		Address: h.apiAddress(), PeerAddress: h.peerAddress(), Version: "sim", Zone: h.zone(),
		FlushInterval: o.FlushInterval, LeaseTime: o.LeaseTime, DrainTime: drainTime,
		SegmentBytes: 64 << 10, UploadBytes: 1 << 20, BufferBytes: 1 << 20, RequestBytes: 1 << 20, MaxRequestBytes: 256 << 10,
		FreshBytes: 64 << 10, MaxMessageBytes: 64 << 10, CacheBytes: 256 << 10, CacheBlockBytes: 4 << 10, ReadBytes: 1 << 20, ColdBytes: 64 << 10, CloseAfter: o.CloseAfter, FoldRows: o.FoldRows, FoldBytes: min(o.FoldRows, 1),
	}, gateway.Dependencies{
		Store: &bucket{c.way(me, bucketName), c.bucket, c.paths}, Table: &table{c.way(me, tableName), c.rows, c.paths}, Buffers: buffers,
		Log: c.log.With("host", h.name), Dial: c.dial(me), Now: h.clock.now, Meters: c.meters, FreeMemory: func() {},
	})
	if err != nil {
		return err
	}
	b, err := upkeep.New(g, o.upkeep(c.log.With("host", h.name)))
	if err != nil {
		return err
	}
	defer b.Stop()
	c.network.listen(h.apiAddress(), &listener{me, g.APIServer()})
	c.network.listen(h.peerAddress(), &listener{me, g.PeerServer()})
	defer c.network.hangUp(h.apiAddress(), p.life)
	defer c.network.hangUp(h.peerAddress(), p.life)
	defer p.life.die() // whatever is left of it, its process has ended
	return g.Run(ctx, func() { b.Start(ctx) })
}

// drainTime is what a gateway has for leaving in good order.
const drainTime = 10 * time.Second

// claim takes the process out of the supervisor's hands; nil if there is none.
func (h *host) claim() *process {
	h.cluster.mu.Lock()
	defer h.cluster.mu.Unlock()
	p := h.process
	if p == nil || p.asked {
		return nil
	}
	p.asked = true
	return p
}

// kill ends the process in the middle of things. With power the whole host goes, and what was
// not synced with it.
func (h *host) kill(power bool) {
	p := h.claim()
	if p == nil {
		return
	}
	p.life.die()
	h.cluster.network.hangUp(h.apiAddress(), p.life)
	h.cluster.network.hangUp(h.peerAddress(), p.life)
	if power {
		p.disk.fs.Crash(func(n int) int { return h.cluster.dice.upTo(n + 1) })
	} else {
		p.disk.fs.Kill()
	}
	p.leave()
}

// drain ends the process in good order. It returns when it has ended.
func (h *host) drain() {
	if p := h.claim(); p != nil {
		p.life.goOn()
		p.leave()
		<-p.ended
	}
}

// discardLog is for runs that nobody reads the log of.
var discardLog = slog.New(slog.DiscardHandler)
