package gateway

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// hangingStore takes objects and says nothing while it hangs.
type hangingStore struct {
	segments.Store
	hangs atomic.Bool
}

func (s *hangingStore) Put(ctx context.Context, key string, body segments.Body) error {
	if s.hangs.Load() {
		<-ctx.Done()
		return errors.Join(segments.ErrUnavailable, ctx.Err())
	}
	return s.Store.Put(ctx, key, body)
}

// TestHangingBucket has a bucket accept calls and never answer: the gateway says soon that it is not ready,
// and is ready again when the bucket answers.
func TestHangingBucket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		store := &hangingStore{Store: d.Store}
		d.Store = store
		g := runGateway(t, Config{Exclusive: true}, d)
		g.create(t, "a", 1, nil)
		store.hangs.Store(true)
		acked := make(chan error, 1)
		go func() { acked <- appendOne(context.Background(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED) }()
		time.Sleep(4 * time.Second)
		if ready, why := g.Ready(); !ready {
			t.Errorf("not ready after four seconds: %s", why)
		}
		time.Sleep(slowUpload + stalled - 3*time.Second)
		if ready, _ := g.Ready(); ready {
			t.Error("ready after eleven seconds")
		}
		store.hangs.Store(false)
		if err := <-acked; err != nil {
			t.Error(err)
		}
		if ready, why := g.Ready(); !ready {
			t.Errorf("not ready when the bucket answers: %s", why)
		}
		g.leave()
		if err := <-g.ended; err != nil {
			t.Error(err)
		}
	})
}

// TestHangingTable has the table accept calls and never answer while nobody appends.
func TestHangingTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.LeaseTime = 5 * time.Second
		m := c.start()
		c.settle()
		answers := make(chan struct{})
		m.table.set(func(metadata.Op, metadata.Key) error { <-answers; return nil })
		time.Sleep(c.config.LeaseTime/3 + stalled + time.Second)
		if ready, _ := m.Ready(); ready {
			t.Error("still ready")
		}
		m.table.clear()
		close(answers)
		time.Sleep(c.config.LeaseTime)
		if ready, why := m.Ready(); !ready {
			t.Errorf("not ready when the table answers: %s", why)
		}
		m.drain()
	})
}

// TestAnotherPrefix starts a gateway on a table that is in use with a bucket, and another bucket that is empty: what
// it appended nobody else could read.
func TestAnotherPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := memory()
		g := runGateway(t, Config{Exclusive: true}, d)
		g.leave()
		if err := <-g.ended; err != nil {
			t.Fatal(err)
		}
		other := d
		other.Store = memstore.New()
		stray, err := New(Config{Exclusive: true}, other)
		if err != nil {
			t.Fatal(err)
		}
		if err := stray.Run(t.Context(), nil); !errors.Is(err, segments.ErrOtherCluster) {
			t.Errorf("it started: %v", err)
		}
		again := runGateway(t, Config{Exclusive: true}, d)
		again.leave()
		if err := <-again.ended; err != nil {
			t.Error(err)
		}
	})
}
