package compactor

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/memstore"
)

// fleet connects gateways in one process.
type fleet struct {
	mu    sync.Mutex
	peers map[string]*connect.Server
}

func (f *fleet) dial(address string) connect.Transport { return peer{f, address} }

type peer struct {
	f       *fleet
	address string
}

func (p peer) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	p.f.mu.Lock()
	server := p.f.peers[p.address]
	p.f.mu.Unlock()
	if server == nil {
		return nil, connect.NewError(connect.CodeUnavailable, "no route to "+p.address)
	}
	return connectinprocess.New(server).NewClientStream(ctx, spec)
}

// reporting is a compactor as its gateway sees it.
type reporting struct{ *Compactor }

func (r reporting) Compact(ctx context.Context, topic string, dryRun bool) (*varvev1.CompactReport, error) {
	report, err := r.Compactor.Compact(ctx, topic, dryRun)
	return &varvev1.CompactReport{Partitions: int64(report.Partitions), Merged: int64(report.Merged), Entries: int64(report.Entries), Into: int64(report.Into),
		Failed: int64(report.Failed), Moved: int64(report.Moved)}, err
}

// start starts a gateway with a role.
func (f *fleet) start(w *world, address, role string) (g *gateway.Gateway, url string, stop func()) {
	w.t.Helper()
	config := gateway.Config{PeerAddress: address, Role: role, FlushInterval: time.Millisecond, CycleInterval: -1, FoldRows: 8, FoldBytes: 1 << 10}
	g, err := gateway.New(config, gateway.Dependencies{Store: w.store, Table: w.table, Log: slog.New(slog.DiscardHandler), Dial: f.dial, FreeMemory: func() {}})
	w.must(err)
	f.mu.Lock()
	f.peers[address] = g.PeerServer()
	f.mu.Unlock()
	c, err := New(Config{TargetBytes: smallTarget, BytesPerSecond: -1, LooksPerSecond: -1}, Dependencies{Store: w.store, Table: w.table, Cluster: ofGateway{g}})
	w.must(err)
	if role != metadata.RoleGateway {
		g.UseCompactor(reporting{c})
	}
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		w.t.Fatal(err)
	}
	end := runs(c)
	server := httptest.NewServer(g.Handler())
	return g, server.URL, sync.OnceFunc(func() {
		end()
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("a gateway did not end well: %v", err)
		}
		server.CloseClientConnections()
		server.Close()
	})
}

// TestFleet merges what three processes have, asked through one that merges nothing: each of the two that do does its share, also of
// partitions that others sequence; then one of them leaves.
func TestFleet(t *testing.T) {
	w := &world{t: t, store: memstore.New(), table: memtable.New(), values: make(map[string][][]client.Record)}
	f := &fleet{peers: make(map[string]*connect.Server)}
	a, url, stopA := f.start(w, "a:1", metadata.RoleGateway)
	_, _, stopB := f.start(w, "b:1", metadata.RoleAll)
	_, _, stopC := f.start(w, "c:1", metadata.RoleCompactor)
	defer stopA()
	defer stopB()
	defer stopC()
	w.g = a
	var err error
	w.c, err = client.New(client.Config{Servers: []string{url}})
	w.must(err)
	defer w.c.Close()
	compact := func() (shares, entries int64) {
		var reports []client.Compacted
		w.must(w.c.Compact(t.Context(), client.CompactOptions{Wait: true}, func(r client.Compacted) { reports = append(reports, r) }))
		for _, r := range reports {
			if r.Error != "" || r.Failed > 0 {
				t.Errorf("%+v", r)
			}
			if r.Partitions > 0 {
				shares++
			}
			entries += r.Entries
		}
		return shares, entries
	}
	compact() // each looks who else is there
	// Some blocks of partitions, so that both may have one.
	for _, topic := range []string{"a", "b", "c", "d", "e", "f"} {
		w.fill(topic, 3, 40, nil)
	}
	before := w.look("a")
	if shares, entries := compact(); entries < 18*30 || shares == 0 {
		t.Errorf("%d gateways replaced %d entries", shares, entries)
	}
	w.check("a", before)
	stopB()
	w.fill("a", 3, 40, nil)
	before = w.look("a")
	if shares, entries := compact(); entries < 100 || shares != 1 {
		t.Errorf("%d gateways replaced %d entries", shares, entries)
	}
	w.check("a", before)
}
