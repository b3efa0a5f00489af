package gateway

import (
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// TestDeletedTopicsAreForgotten deletes topics, one of them under a follower's eyes: once
// checkpoints have it all, no memory of them is left, and what comes late is still refused.
func TestDeletedTopicsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startGatewayWith(t, Config{Exclusive: true, FlushInterval: time.Millisecond, CycleInterval: -1}, memory(), func(g *Gateway) {
			g.tenure.Load().sequencer.fold = foldLimits{rows: 1, bytes: 0, trim: 1}
		})
		kept := g.create(t, "kept", 1, nil)
		g.produce(t, "kept", 0, batch.Record{Timestamp: 1})
		var id metadata.PartitionID
		var watched *partition
		var unwatch func()
		followed := make(chan error, 1)
		for round := range 10 {
			topic := g.create(t, "a", 5, nil)
			id = metadata.PartitionID{Topic: topic.ID, Number: 3}
			g.produce(t, "a", 3, batch.Record{Timestamp: 1})
			if round == 4 {
				pos, err := g.place(t.Context(), topic, 3, earliest(), nil, g.view)
				if err != nil {
					t.Fatal(err)
				}
				c := &consumer{g: g.Gateway, tenure: g.tenure.Load(), topic: topic, positions: []*position{pos}, maxBytes: 1 << 20, wake: make(chan struct{}, 1)}
				c.send = func(*varvev1.ConsumeResponse) error { return nil }
				watched, unwatch = pos.partition, pos.partition.subscribe(wakeUp(c.wake))
				go func() { followed <- c.run(t.Context(), nil) }()
				synctest.Wait()
			}
			if _, err := (&topicService{g.Gateway}).DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-followed; connect.CodeOf(classified(err)) != connect.CodeNotFound {
			t.Errorf("the follower ended with %v", err)
		}
		settle := func() {
			for range 50 { // each commit moves the journal on, and checkpoints with it
				g.produce(t, "kept", 0, batch.Record{Timestamp: 1})
			}
			synctest.Wait()
		}
		settle()
		if g.partitions.list[watched.id] != watched {
			t.Error("a partition that somebody waits for is forgotten")
		}
		unwatch()
		left := func(when string) {
			t.Helper()
			settle()
			only := metadata.PartitionID{Topic: kept.ID}
			if p := g.tenure.Load().sequencer.parts; len(p) != 1 || p[only] == nil {
				t.Errorf("%s the sequencer holds %d partitions", when, len(p))
			}
			if p := g.partitions.list; len(p) != 1 || p[only] == nil {
				t.Errorf("%s %d partitions are listed", when, len(p))
			}
			if p := g.tenure.Load().intake.chains; len(p) != 1 || p[spanOf(only)] == nil {
				t.Errorf("%s the intake remembers %d partitions", when, len(p))
			}
		}
		left("after deletions")
		// A batch that was let in before its topic was deleted.
		_, info, err := g.validate(kept, batchOf(t, []byte("x")))
		if err != nil {
			t.Fatal(err)
		}
		late := newCall(1)
		late.add(0, spanOf(id), batchOf(t, []byte("x")), info)
		g.tenure.Load().intake.append(t.Context(), late)
		if err := late.outcome(0).err; connect.CodeOf(classified(err)) != connect.CodeNotFound {
			t.Errorf("a late append: %v", err)
		}
		if _, err := g.router.decide(t.Context(), id, decision{close: true}); err != nil {
			t.Errorf("closed again: %v", err)
		}
		left("after what came late")
	})
}
