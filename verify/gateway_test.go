package verify_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/verify"
)

// running is a gateway and a client of it.
type running struct {
	*client.Client
	address string
	server  *httptest.Server
	stop    func() error
}

// start starts a gateway that has the table for itself.
func start(store segments.Store, table metadata.Table) (*running, error) {
	return startWith(gateway.Config{Exclusive: true}, gateway.Dependencies{Store: store, Table: table}, func(*gateway.Gateway) {})
}

// startWith starts a gateway after prepare has seen it.
func startWith(config gateway.Config, d gateway.Dependencies, prepare func(*gateway.Gateway)) (*running, error) {
	config.FlushInterval, config.CycleInterval = time.Millisecond, -1
	d.Log = slog.New(slog.DiscardHandler)
	g, err := gateway.New(config, d)
	if err != nil {
		return nil, err
	}
	prepare(g)
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		cancel()
		return nil, err
	}
	server := httptest.NewServer(g.Handler())
	c, err := client.New(client.Config{Servers: []string{server.URL}})
	return &running{c, config.PeerAddress, server, func() error {
		err := c.Close()
		cancel()
		err = errors.Join(err, <-ended)
		server.CloseClientConnections()
		server.Close()
		return err
	}}, err
}

// brokenOnly are the findings that are not garbage.
func brokenOnly(findings []verify.Finding) []verify.Finding {
	return slices.DeleteFunc(findings, func(f verify.Finding) bool { return !f.Kind.Break() })
}

// check verifies and returns an error for every break.
func check(ctx context.Context, config verify.Config) (verify.Summary, error) {
	var findings []verify.Finding
	summary, err := verify.Run(ctx, config, func(f verify.Finding) { findings = append(findings, f) })
	for _, f := range brokenOnly(findings) {
		err = errors.Join(err, fmt.Errorf("%+v", f))
	}
	return summary, err
}

// TestHealthyGateways: whatever gateways did, nothing of it is a break, and what repair removes
// nobody misses.
func TestHealthyGateways(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		store, table := memstore.New(), memtable.New()
		ctx := context.Background()
		must := func(err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		g, err := start(store, table)
		must(err)
		defer func() { must(g.stop()) }()
		records := make(map[string][2]int64) // per topic: offsets of its partitions
		config := verify.Config{Store: store, Table: table, Deep: true}
		topic := rapid.SampledFrom([]string{"a", "b", "c"})
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				name, n := topic.Draw(t, "topic"), rapid.IntRange(1, 30).Draw(t, "appends")
				if _, there := records[name]; !there {
					_, _, err := g.CreateTopic(ctx, name, client.CreateTopicOptions{Partitions: 2})
					must(err)
				}
				ends := records[name]
				for i := range n {
					ack, err := g.Append(ctx, name, int32(i%2), []client.Record{{Value: []byte("one")}, {Value: []byte("two")}}, client.AppendOptions{})
					must(err)
					if ack.BaseOffset != ends[i%2] {
						t.Fatalf("%s/%d: offset %d, want %d", name, i%2, ack.BaseOffset, ends[i%2])
					}
					ends[i%2] += 2
				}
				records[name] = ends
			},
			"trim": func(t *rapid.T) {
				name := topic.Draw(t, "topic")
				if ends, there := records[name]; there {
					_, err := g.TrimTopic(ctx, name, client.At(rapid.Int64Range(0, ends[0]).Draw(t, "to")), 0)
					must(err)
				}
			},
			"delete": func(t *rapid.T) {
				name := topic.Draw(t, "topic")
				if _, there := records[name]; there {
					must(g.DeleteTopic(ctx, name, false))
					delete(records, name)
				}
			},
			"restart": func(*rapid.T) {
				must(g.stop())
				var err error
				g, err = start(store, table)
				must(err)
			},
			"verify": func(t *rapid.T) {
				config := config
				config.Repair, config.Deep = rapid.Bool().Draw(t, "repair"), rapid.Bool().Draw(t, "deep")
				config.Grace = time.Nanosecond
				_, err := check(ctx, config)
				must(err)
			},
		})
		must(g.stop())
		g, err = start(store, table)
		must(err)
		summary, err := check(ctx, config)
		must(err)
		if int(summary.Topics) != len(records) {
			t.Fatalf("%d topics, want %d", summary.Topics, len(records))
		}
	})
}

// TestAtFullPace verifies in a loop while a gateway writes as fast as it can, with checkpoints,
// trims, topics that come and go, and restarts: nothing of that is a break.
func TestAtFullPace(t *testing.T) {
	t.Parallel()
	const partitions = 8
	store, table := memstore.New(), memtable.New()
	g, err := start(store, table)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.stop(); err != nil {
			t.Error(err)
		}
	}()
	ctx := t.Context()
	if _, _, err := g.CreateTopic(ctx, "a", client.CreateTopicOptions{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
	// So many that partitions are checkpointed into pages, and the journal is trimmed.
	const restarts, target = 2, 2500
	var appended atomic.Int64
	rounds := 0
	for restart := range restarts {
		work, ctx := errgroup.WithContext(ctx)
		ctx, done := context.WithCancelCause(ctx)
		finished := errors.New("finished")
		for partition := range int32(partitions) {
			work.Go(func() error { return appendUntil(ctx, g.Client, partition, &appended) })
		}
		work.Go(func() error { return comeAndGo(ctx, g) })
		for ; appended.Load() < int64(target*(restart+1)) && ctx.Err() == nil; rounds++ {
			summary, err := check(t.Context(), verify.Config{Store: store, Table: table, Deep: rounds%2 == 0, Repair: rounds%3 == 0, Grace: time.Nanosecond})
			if err != nil {
				t.Fatalf("round %d, after %d restarts: %v\n%+v", rounds, restart, err, summary)
			}
		}
		done(finished)
		if err := work.Wait(); err != nil && !errors.Is(context.Cause(ctx), finished) {
			t.Fatal(err)
		}
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
		if g, err = start(store, table); err != nil {
			t.Fatal(err)
		}
	}
	summary, err := check(ctx, verify.Config{Store: store, Table: table, Deep: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d appends, %d rounds; at the end %+v", appended.Load(), rounds, summary)
	if rounds == 0 || summary.Partitions < partitions {
		t.Errorf("%d rounds beside %d appends, at the end %+v", rounds, appended.Load(), summary)
	}
}

// appendUntil appends batches that are large enough for checkpoints, and trims now and then.
func appendUntil(ctx context.Context, g *client.Client, partition int32, appended *atomic.Int64) error {
	for i := 0; ctx.Err() == nil; i++ {
		ack, err := g.Append(ctx, "a", partition, []client.Record{{Value: make([]byte, 100)}, {Value: []byte("two")}}, client.AppendOptions{})
		if errors.Is(err, client.ErrUnknownOutcome) {
			continue // by a gateway that died meanwhile
		}
		if err != nil {
			return err
		}
		appended.Add(1)
		if i%50 == 49 {
			_, err := g.TrimTopic(ctx, "a", client.At(ack.BaseOffset-20), partition)
			if err != nil && !errors.Is(err, client.ErrUnknownOutcome) && !errors.Is(err, client.ErrUnavailable) { // of one that died: the next trim does its work
				return err
			}
		}
	}
	return nil
}

// comeAndGo makes and deletes topics.
func comeAndGo(ctx context.Context, g *running) error {
	for ctx.Err() == nil {
		if err := g.DeleteTopic(ctx, "b", true); err != nil {
			return err
		}
		if _, _, err := g.CreateTopic(ctx, "b", client.CreateTopicOptions{Partitions: 2}); err != nil {
			return err
		}
		if _, err := g.Append(ctx, "b", 1, []client.Record{{Value: []byte("x")}}, client.AppendOptions{}); err != nil {
			return err
		}
	}
	return nil
}
