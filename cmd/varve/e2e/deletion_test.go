package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/client"
)

// TestDeletionOutlivesItsGateway: a gateway is killed while it deletes a topic of some hundred partitions. Another one ends that, a minute
// later, and the topic's space is freed.
func TestDeletionOutlivesItsGateway(t *testing.T) {
	t.Parallel()
	const partitions = 300
	s := newShelf(t)
	first, _ := s.place("minio", hastyUpkeep...)
	second, _ := s.place("s3", hastyUpkeep...)
	dying, heir := start(t, first), start(t, second)
	by, l := newLoad(t, dying.url()), newLoad(t, heir.url())
	state := func(name string) string {
		t.Helper()
		for topic, err := range l.client.Topics(t.Context(), name) {
			if err != nil {
				t.Fatal(err)
			}
			return topic.State
		}
		return "gone"
	}
	name := ""
	for try := 0; ; try++ { // it is luck where the kill meets it
		name = fmt.Sprintf("topic-%d", try)
		makeTopic(t, l.client, name, partitions)
		var group errgroup.Group
		group.SetLimit(50)
		for p := range int32(partitions) {
			group.Go(func() error {
				_, err := l.client.Append(t.Context(), name, p, []client.Record{{Value: make([]byte, 1<<10)}}, client.AppendOptions{})
				return err
			})
		}
		if err := group.Wait(); err != nil {
			t.Fatal(err)
		}
		deleted := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() { deleted <- by.client.DeleteTopic(ctx, name, false) }()
		waitFor(t, "a topic that is being deleted", func() bool { return state(name) != "active" })
		dying.kill()
		cancel() // the client would try again by the gateway that comes up
		<-deleted
		if state(name) == "deleting" {
			break
		}
		if try == 5 {
			t.Fatal("a deletion is always over before its gateway can be killed: this proves nothing")
		}
		dying = start(t, first)
		by = newLoad(t, dying.url())
	}
	killed := time.Now()
	before := len(listSegments(t, s.bucket))
	if before == 0 {
		t.Error("nothing of it is in the bucket: this proves nothing")
	}
	for state(name) != "gone" {
		if time.Since(killed) > time.Minute+2*patience {
			t.Fatalf("the topic is %s yet; the other gateway said\n%s", state(name), heir.said.tail(12))
		}
		time.Sleep(10 * time.Millisecond)
	}
	gone := time.Since(killed)
	start(t, first) // else its objects wait for its disk
	waitFor(t, "an empty bucket", func() bool { return len(listSegments(t, s.bucket)) == 0 })
	t.Logf("%d objects of a topic of %d partitions: its name was free %s after the kill, the space %s after it", before, partitions,
		gone.Round(time.Second/10), time.Since(killed).Round(time.Second/10))
	sound(t, heir)
}
