package gateway

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// TestDeletionGoesOn: who deletes a topic of more partitions than can be closed in its time is told so, and how far it is; it
// goes on by itself, and who asks again waits for the same.
func TestDeletionGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 3000
		c := newTestCluster(t)
		c.d.Table = &leaseTable{Table: c.d.Table, around: func(call func() error) error {
			time.Sleep(50 * time.Millisecond)
			return call()
		}}
		m := c.start()
		topic := m.create(t, "a", partitions, nil)
		service := &topicService{m.Gateway}
		deleteIt := func(limit time.Duration) error {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := service.DeleteTopic(ctx, &varvev1.DeleteTopicRequest{Name: "a"})
			return err
		}
		began := time.Now()
		err := deleteIt(2 * time.Second)
		var r *refusal
		if !errors.As(err, &r) || r.code != connect.CodeDeadlineExceeded || r.info.GetReason() != reasonDeleting || r.info.GetRetriable() {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
		if took := time.Since(began); took >= 2*time.Second {
			t.Errorf("it says so after %v, when nobody listens any more", took)
		}
		m.deletions.mu.Lock()
		if m.deletions.list[topic.ID] == nil {
			t.Error("nothing goes on")
		}
		m.deletions.mu.Unlock()
		if err := deleteIt(time.Minute); err != nil {
			t.Errorf("who waits for it: %v", err)
		}
		if err := deleteIt(time.Minute); !errors.Is(err, metadata.ErrTopicNotFound) {
			t.Errorf("once more: %v", err)
		}
		m.drain()
	})
}

// TestDeletionSharesCommits: partitions that are sequenced already are closed in a few commits.
func TestDeletionSharesCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const partitions = 1000
		c := newTestCluster(t)
		var commits atomic.Int64
		c.d.Table = metadata.Observe(c.d.Table, func(o metadata.Observation) {
			if o.Op == metadata.OpPut && strings.HasPrefix(o.Key.Partition, "journal/") {
				commits.Add(1)
			}
		})
		m := c.start()
		m.create(t, "a", partitions, nil)
		var appends sync.WaitGroup
		for n := range int32(partitions) {
			appends.Go(func() {
				if _, err := m.append("a", n, "x"); err != nil {
					t.Error(err)
				}
			})
		}
		appends.Wait()
		before := commits.Load()
		if _, err := (&topicService{m.Gateway}).DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
			t.Fatal(err)
		}
		if took := commits.Load() - before; took > 8 {
			t.Errorf("%d commits to close %d partitions", took, partitions)
		}
		m.drain()
	})
}
