package gateway

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
)

// TestSwapInDoubtOfADeletedTopic: a try of a swap got no answer, and then the topic is deleted: that is the last word on it.
func TestSwapInDoubtOfADeletedTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		asking, asked := c.start(), c.start()
		topic := asked.create(t, "a", clusterPartitions, nil)
		if err := asking.members.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		id := metadata.PartitionID{Topic: topic.ID, Number: foreign(t, topic, asked)}
		w := swapOfAll(t, asking, asked, id)
		c.network.disconnect(asked.address, true)
		result := make(chan error, 1)
		go func() {
			_, err := asking.Swap(t.Context(), w)
			result <- err
		}()
		time.Sleep(100 * time.Millisecond) // it is not answered
		if _, err := (&topicService{asked.Gateway}).DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
			t.Log("delete:", err)
		}
		c.network.disconnect(asked.address, false)
		if err := <-result; errors.Is(err, metadata.ErrUnknown) || !errors.Is(err, metadata.ErrClosed) {
			t.Errorf("a swap in a partition that is closed: %v", err)
		}
		asking.drain()
		asked.drain()
	})
}

// swapOfAll appends to a partition and prepares a swap of its tail into itself, as a compactor beside by.
func swapOfAll(t *testing.T, by, sequences *member, id metadata.PartitionID) *metadata.Swap {
	t.Helper()
	if _, err := sequences.append("a", id.Number, "x"); err != nil {
		t.Fatal(err)
	}
	v, err := by.viewNow(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	w, err := metadata.PrepareSwap(t.Context(), by.table, v.Sections()[0], metadata.MergerID(by.ID()), 1, v.Tail)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// TestLateSwapOfKeys: a swap that leaves records out by settings that were altered is refused where it is judged, here and at a peer, and its
// number is void: asked for again, it is refused too. One that was taken before the alteration says so.
func TestLateSwapOfKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		asking, asked := c.start(), c.start()
		was := asked.create(t, "a", clusterPartitions, nil)
		if err := asking.members.refresh(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, sequences := range []*member{asked, asking} {
			id := metadata.PartitionID{Topic: was.ID, Number: foreign(t, was, sequences)}
			now, err := asked.topics.Refresh(t.Context(), "a")
			if err != nil {
				t.Fatal(err)
			}
			swap := func(w *metadata.Swap, number uint64, by *metadata.Topic) {
				t.Helper()
				w.Number, w.Rewritten, w.Topic, w.TopicStamp = number, true, by.Name, by.Stamp
			}
			w := swapOfAll(t, asking, sequences, id)
			swap(w, 1, now)
			if outcome, err := asking.Swap(t.Context(), w); err != nil || outcome != metadata.Swapped {
				t.Errorf("by the settings that are: %v, %v", outcome, err)
			}
			if _, err := (&topicService{asked.Gateway}).AlterTopic(t.Context(), &varvev1.AlterTopicRequest{Name: "a", Set: map[string]string{"retention.ms": "3600000"}}); err != nil {
				t.Fatal(err)
			}
			if outcome, err := asking.Swap(t.Context(), w); err != nil || outcome != metadata.Swapped {
				t.Errorf("taken before, asked for again: %v, %v", outcome, err)
			}
			late := swapOfAll(t, asking, sequences, id)
			for _, by := range []*metadata.Topic{now, nil} {
				if by == nil { // what makes a number void is not its settings
					if by, err = asked.topics.Refresh(t.Context(), "a"); err != nil {
						t.Fatal(err)
					}
				}
				swap(late, 2, by)
				if outcome, err := asking.Swap(t.Context(), late); err != nil || outcome != metadata.SwapMoved {
					t.Errorf("by settings that were: %v, %v", outcome, err)
				}
			}
			if _, err := (&topicService{asked.Gateway}).AlterTopic(t.Context(), &varvev1.AlterTopicRequest{Name: "a", Set: map[string]string{"retention.ms": "-1"}}); err != nil {
				t.Fatal(err)
			}
		}
		asking.drain()
		asked.drain()
	})
}
