package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
	"weak"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// fleet is gateways in this process that share a bucket and a table, as a cluster of their own.
//
//	producer ──tap──> gateway ─ retries, its own counts ─ mortal ─ counter ─> table, bucket
//	                     └──tap──> other gateways
type fleet struct {
	app     *app
	config  gateway.Config
	store   segments.Store
	table   metadata.Table
	log     *slog.Logger
	made    *[]weak.Pointer[gateway.Gateway]
	delay   time.Duration
	members []*fleetMember
	clean   []func() error
}

// fleetMember is one of them.
type fleetMember struct {
	gateway *gateway.Gateway
	counter *counter
	life    *mortality
	url     string
	wire    *wire
	servers []*http.Server
	stop    context.CancelFunc // begins the drain
	ended   chan error
	started time.Duration // from its making to serving
}

// newFleet opens bucket and table. Nothing is in them yet.
func (a *app) newFleet(ctx context.Context, o *clusterOptions) (*fleet, error) {
	f := &fleet{app: a, made: o.made, log: slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelError})), config: gateway.Config{FlushInterval: o.flush, LeaseTime: o.lease, Version: version, DrainTime: 60 * time.Second}}
	if o.segments == "" {
		f.store, f.table, f.delay = memstore.New(), memtable.New(), o.delay
		return f, nil
	}
	place, err := ownPrefix(o.segments)
	if err != nil {
		return nil, err
	}
	l, err := parseLocation("--segments", place, segmentsKeys)
	if err != nil {
		return nil, err
	}
	if f.store, err = openStore(ctx, l); err != nil {
		return nil, err
	}
	f.clean = append(f.clean, func() error { return emptyBucket(context.WithoutCancel(ctx), place) })
	if l, err = parseLocation("--metadata", o.metadata, metadataKeys); err != nil {
		return nil, err
	}
	table, closer, err := openTable(ctx, l)
	if err != nil {
		return nil, err
	}
	shared := newApartTable(table)
	f.table = shared
	f.clean = append(f.clean, func() error { return errors.Join(shared.empty(context.WithoutCancel(ctx)), closer.Close()) })
	return f, nil
}

// close ends all gateways in good order, and removes what they made.
func (f *fleet) close() error {
	err := f.drain(f.members)
	for _, clean := range f.clean {
		err = errors.Join(err, clean())
	}
	return err
}

// drain ends gateways in good order, and forgets them.
func (f *fleet) drain(members []*fleetMember) error {
	var group errgroup.Group
	members = slices.Clone(members)
	for _, m := range members {
		m.stop()
		group.Go(func() error {
			defer m.closeServers()
			select {
			case err := <-m.ended:
				if err != nil && m.life.ctx.Err() == nil {
					return fmt.Errorf("a gateway did not end well: %w", err)
				}
				return nil
			case <-time.After(2 * f.config.DrainTime):
				return fmt.Errorf("a gateway did not end within %s", 2*f.config.DrainTime)
			}
		})
	}
	f.members = slices.DeleteFunc(f.members, func(m *fleetMember) bool { return slices.Contains(members, m) })
	return group.Wait()
}

func (m *fleetMember) closeServers() {
	m.wire.close()
	for _, s := range m.servers {
		s.Close()
	}
}

// answerTimeout bounds the wait for an answer: a gateway that fails to give one ends the bench.
const answerTimeout = 2 * time.Minute

func (m *fleetMember) produce(ctx context.Context, request []byte) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return m.wire.produce(ctx, request)
}

// start adds a gateway, and waits until it serves.
func (f *fleet) start(ctx context.Context) (*fleetMember, error) {
	m := &fleetMember{counter: newCounter(), life: newMortality(), ended: make(chan error, 1)}
	apiListener, peerListener, err := listenTwice()
	if err != nil {
		return nil, err
	}
	config := f.config
	config.Address, config.PeerAddress = apiListener.Addr().String(), peerListener.Addr().String()
	m.url = "http://" + config.Address
	m.wire = f.app.newWire(m.url, 64)
	store := mortalStore{segments.Observe(f.store, segments.Observer{End: m.counter.storeCall}), m.life, f.delay}
	table := mortalTable{metadata.Observe(f.table, m.counter.tableCall), m.life, f.delay}
	began := time.Now()
	g, err := gateway.New(config, gateway.Dependencies{Store: store, Table: table, Dial: gateway.DialHTTP(m.life.dial(m.counter)), Log: f.log})
	if err != nil {
		return nil, errors.Join(err, apiListener.Close(), peerListener.Close())
	}
	m.gateway, m.counter.own = g, g.ID
	*f.made = append(*f.made, weak.Make(g))
	api, peers := g.NewHTTPServer(), g.NewPeerHTTPServer()
	peers.Handler = m.counter.handler(peers.Handler)
	m.servers = []*http.Server{api, peers}
	go api.Serve(&tapListener{apiListener, m.counter}) // ends when it is closed
	go peers.Serve(peerListener)
	var running context.Context
	running, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	serving := make(chan struct{})
	go func() { m.ended <- g.Run(running, func() { close(serving) }) }()
	select {
	case <-serving:
		m.started = time.Since(began)
		f.members = append(f.members, m)
		return m, nil
	case err := <-m.ended:
		m.closeServers()
		return nil, errors.Join(err, errors.New("a gateway did not start"))
	}
}

// listenTwice listens for producers and for other gateways.
func listenTwice() (api, peers net.Listener, err error) {
	const address = "127.0.0.1:0"
	if api, err = net.Listen("tcp", address); err != nil {
		return nil, nil, err
	}
	if peers, err = net.Listen("tcp", address); err != nil {
		return nil, nil, errors.Join(err, api.Close())
	}
	return api, peers, nil
}

// grow starts so many gateways, and waits until each has seen the others.
func (f *fleet) grow(ctx context.Context, n int) error {
	for range n {
		if _, err := f.start(ctx); err != nil {
			return err
		}
	}
	return f.settle(ctx)
}

// settle waits until each gateway has looked at the others' rows once more, and what that moved has moved.
func (f *fleet) settle(ctx context.Context) error {
	for _, m := range f.members {
		for looks := m.counter.counts()[memberReads] + 2; m.counter.counts()[memberReads] < looks; {
			select {
			case <-m.counter.changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return f.quiet(ctx)
}

// quiet waits until no partition causes a call to the table for a while.
func (f *fleet) quiet(ctx context.Context) error {
	calls := func() (n uint64) {
		t := f.counts()
		return t.tableCalls()
	}
	for last, now := uint64(0), calls(); last != now; last, now = now, calls() {
		if !sleep(ctx, quietTime) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// quietTime is how long nothing must happen for things to be settled.
const quietTime = 300 * time.Millisecond

// kill ends a gateway in the middle of things: nothing that it calls answers, nobody reaches it.
func (f *fleet) kill(m *fleetMember) {
	m.life.end()
	m.closeServers()
	m.stop()
}

// counts adds up what all gateways did.
func (f *fleet) counts() (t counts) {
	for _, m := range f.members {
		t = t.plus(m.counter.counts())
	}
	return t
}

// usage adds up some of what the gateways say of themselves.
func (f *fleet) usage(ctx context.Context) (sum usageSum, err error) {
	for _, m := range f.members {
		answer, err := m.wire.call(ctx, varvev1connect.ClusterServiceUsageProcedure, nil)
		if err != nil {
			return sum, err
		}
		var u varvev1.UsageResponse
		if err := proto.Unmarshal(answer, &u); err != nil {
			return sum, err
		}
		sum.flushes += u.GetFlushes()
		sum.spans += u.GetFlushedSpans()
		sum.cycles += u.GetCycles()
		sum.appended += u.GetAppendedBytes()
	}
	return sum, nil
}

type usageSum struct{ flushes, spans, cycles, appended uint64 }

// createTopic makes a topic, and returns its id.
func (f *fleet) createTopic(ctx context.Context, name string, partitions int32) (id metadata.TopicID, err error) {
	c, err := client.New(client.Config{Servers: []string{f.members[0].url}})
	if err != nil {
		return id, err
	}
	defer c.Close()
	t, _, err := c.CreateTopic(ctx, name, client.CreateTopicOptions{Partitions: partitions})
	if err != nil {
		return id, err
	}
	return metadata.ParseTopicID(t.ID)
}

// shares lists the partitions of a topic by the member that sequences them.
func (f *fleet) shares(topic metadata.TopicID, partitions int32) [][]int32 {
	ids := make([]metadata.GatewayID, len(f.members))
	for i, m := range f.members {
		ids[i] = m.gateway.ID()
	}
	shares := make([][]int32, len(ids))
	for n := range partitions {
		i := slices.Index(ids, metadata.Rendezvous(metadata.PartitionID{Topic: topic, Number: n}, ids))
		shares[i] = append(shares[i], n)
	}
	return shares
}

// oneEach is a request of one marked record for each of some partitions.
func oneEach(topic string, partitions []int32, size int) ([]byte, error) {
	value := marked(size)
	request := &varvev1.ProduceRequest{Topic: topic, Acks: varvev1.Acks_ACKS_COMMITTED}
	for i := range partitions {
		request.Records = append(request.Records, &varvev1.Record{Value: value, Partition: &partitions[i]})
	}
	return proto.Marshal(request)
}

// appendAll appends one small record to each of some partitions, a piece of them at a time, each through its own member.
func (f *fleet) appendAll(ctx context.Context, topic string, partitions []int32) error {
	const piece = 5000
	turn := 0
	for some := range slices.Chunk(partitions, piece) {
		request, err := oneEach(topic, some, markSize)
		if err != nil {
			return err
		}
		if err := f.members[turn%len(f.members)].produce(ctx, request); err != nil {
			return err
		}
		turn++
	}
	return nil
}

// upTo lists the numbers below n.
func upTo(n int32) []int32 {
	list := make([]int32, n)
	for i := range list {
		list[i] = int32(i)
	}
	return list
}

// apartTable keeps the rows of a bench apart from whatever else is in a table, and knows them all.
type apartTable struct {
	metadata.Table
	prefix string
	mu     sync.Mutex
	rows   map[metadata.Key]struct{}
}

func newApartTable(t metadata.Table) *apartTable {
	return &apartTable{Table: t, prefix: "bench-" + string(metadata.NewGatewayID(time.Now())) + "/", rows: make(map[metadata.Key]struct{})}
}

func (t *apartTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	key.Partition = t.prefix + key.Partition
	row, err := t.Table.Get(ctx, key, c)
	if err == nil {
		row.Partition = row.Partition[len(t.prefix):]
	}
	return row, err
}

func (t *apartTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	row.Partition = t.prefix + row.Partition
	t.mu.Lock()
	t.rows[row.Key] = struct{}{}
	t.mu.Unlock()
	return t.Table.Put(ctx, row, cond)
}

func (t *apartTable) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	key.Partition = t.prefix + key.Partition
	return t.Table.Delete(ctx, key, cond)
}

func (t *apartTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	r.Partition = t.prefix + r.Partition
	rows, err := t.Table.Range(ctx, r)
	for i := range rows {
		rows[i].Partition = rows[i].Partition[len(t.prefix):]
	}
	return rows, err
}

// empty removes all rows.
func (t *apartTable) empty(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, emptyTimeout)
	defer cancel()
	var group errgroup.Group
	group.SetLimit(32)
	for key := range t.rows {
		group.Go(func() error {
			return t.Table.Delete(ctx, key, metadata.Condition{})
		})
	}
	return group.Wait()
}
