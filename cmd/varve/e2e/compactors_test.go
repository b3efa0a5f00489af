package e2e

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/varvelog/varve/client"
)

// mergedTopics are so many that two processes that merge both have some of them.
const mergedTopics = 12

// fillTopics makes topics with small segments, and returns what is in them.
func fillTopics(t *testing.T, l *load) map[string][]string {
	t.Helper()
	const records = 4
	logs := make(map[string][]string)
	for n := range mergedTopics {
		makeTopic(t, l.client, fmt.Sprintf("topic-%d", n), 1)
	}
	for n := range records {
		for topic := range mergedTopics {
			name := fmt.Sprintf("topic-%d", topic)
			logs[name] = append(logs[name], fmt.Sprintf("%s-%d", name, n))
			appendOne(t, l.client, name, 0, logs[name][n])
		}
	}
	return logs
}

// entriesOf counts where the records of topics lie.
func entriesOf(t *testing.T, c *client.Client, topics []string) (entries int) {
	t.Helper()
	for _, name := range topics {
		for _, err := range c.Segments(t.Context(), name, 0, 0) {
			if err != nil {
				t.Fatal(err)
			}
			entries++
		}
	}
	return entries
}

// mergedInTheEnd asks for passes until each topic lies in one place. One that could not be finished is tried again by itself, but only
// after a minute.
func mergedInTheEnd(t *testing.T, l *load, topics []string) {
	t.Helper()
	waitFor(t, "everything merged", func() bool {
		// Who is in trouble yet says so.
		_ = l.client.Compact(t.Context(), client.CompactOptions{Wait: true}, func(client.Compacted) {})
		return entriesOf(t, l.client, topics) == len(topics)
	})
}

// stateOf is what the table says of a gateway.
func stateOf(t *testing.T, c *client.Client, address string) (states []string) {
	t.Helper()
	_, gateways, err := c.Gateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range gateways {
		if g.Address == address {
			states = append(states, g.State)
		}
	}
	return states
}

// TestCompactors: one gateway leaves merging to two other processes. One of them is killed when its merged segment is on its way to the bucket,
// the other one stopped there past its lease, and goes on. Then the log reads as before, all of it is merged, and what both left is collected.
func TestCompactors(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	where, _ := s.place("s3", append(hastyUpkeep, "--role", "gateway")...)
	gateway := start(t, where)
	l := newLoad(t, gateway.url())
	logs := fillTopics(t, l)

	var compactors [2]*process
	var buckets [2]*proxy
	var places [2]place
	for i, kind := range []string{"minio", "s3"} {
		places[i], buckets[i] = s.place(kind, append(hastyUpkeep, "--role", "compactor")...)
		buckets[i].holdOnly(ofSegments(http.MethodPut, true))
		compactors[i] = start(t, places[i])
	}
	killed, stopped := compactors[0], compactors[1]
	waitFor(t, "merges of both", func() bool { return buckets[0].holds() > 0 && buckets[1].holds() > 0 })
	killed.kill()
	stopped.signal(syscall.SIGSTOP)
	waitFor(t, "both taken for dead", func() bool {
		return !slices.Contains(stateOf(t, l.client, killed.address), "live") && !slices.Contains(stateOf(t, l.client, stopped.address), "live")
	})
	for name, want := range logs {
		wantLog(t, gateway, name, want...)
	}
	// What was on its way arrives now, in the name of the dead.
	buckets[0].release()
	buckets[1].release()
	stopped.signal(syscall.SIGCONT)
	stopped.hears(t, "goes on under a new id")
	start(t, places[0])

	mergedInTheEnd(t, l, slices.Collect(maps.Keys(logs)))
	s.nothingLeaks(l.client)
	for name, want := range logs {
		wantLog(t, gateway, name, want...)
	}
	sound(t, gateway)
}

// TestChangedUnderMerge: a topic is deleted, and the retention of another one changed, while the segment with the records of both is on its way to
// the bucket. The rest is merged, the records that may go go, and nothing leaks.
func TestChangedUnderMerge(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	where, _ := s.place("minio", append(hastyUpkeep, "--role", "gateway")...)
	gateway := start(t, where)
	l := newLoad(t, gateway.url())
	logs := fillTopics(t, l)
	where, bucket := s.place("s3", append(hastyUpkeep, "--role", "compactor")...)
	bucket.holdOnly(ofSegments(http.MethodPut, true))
	compactor := start(t, where)
	waitFor(t, "a merge", func() bool { return bucket.holds() > 0 })

	const deleted, shortened = "topic-1", "topic-2"
	if err := l.client.DeleteTopic(t.Context(), deleted, false); err != nil {
		t.Fatal(err)
	}
	if _, err := l.client.AlterTopic(t.Context(), shortened, client.AlterTopicOptions{Set: map[string]string{"retention.ms": "1"}}); err != nil {
		t.Fatal(err)
	}
	delete(logs, deleted)
	logs[shortened] = nil
	waitFor(t, "the end of what is too old", func() bool {
		d, err := l.client.DescribeTopic(t.Context(), shortened)
		return err == nil && d.PartitionInfo[0].StartOffset == d.PartitionInfo[0].EndOffset
	})
	bucket.release()
	mergedInTheEnd(t, l, slices.DeleteFunc(slices.Collect(maps.Keys(logs)), func(name string) bool { return name == shortened }))
	s.nothingLeaks(l.client)
	for name, want := range logs {
		wantLog(t, gateway, name, want...)
	}
	sound(t, gateway)
	if n := metric(t, compactor, "varve_compaction_set_aside_total"); n != 0 {
		t.Errorf("%v spans are set aside", n)
	}
	compactor.stop(t)
	gateway.stop(t)
}

// TestMergeBesideDamage: an object in the bucket is damaged, and another one is gone. Their spans are named and stay as they are, the rest is merged, and
// readers are told of the damage, with its place, and read what is around it.
func TestMergeBesideDamage(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	where, _ := s.place("minio", append(hastyUpkeep, "--cache-bytes", "0")...)
	p := start(t, where.with("--role", "gateway"))
	l := newLoad(t, p.url())
	makeTopic(t, l.client, topic, 1)
	var want []string
	for n := range 9 {
		want = append(want, fmt.Sprint("v", n))
		appendOne(t, l.client, topic, 0, want[n])
	}
	var objects []client.SegmentRange
	for r, err := range l.client.Segments(t.Context(), topic, 0, 0) {
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, r)
	}
	p.stop(t)
	const damaged, gone = 3, 6
	s.damage(objects[damaged])
	s.remove(objects[gone].Object)

	p = start(t, where)
	l = newLoad(t, p.url())
	out, said, status := run(t, nil, "compact", "--wait", "--server", p.url())
	if said = out + said; status != 1 || !strings.Contains(said, objects[damaged].Object) || !strings.Contains(said, objects[gone].Object) {
		t.Errorf("varve compact: exit status %d\n%s", status, said)
	}
	if entries := entriesOf(t, l.client, []string{topic}); entries != 5 {
		t.Errorf("%d entries, want three merged ones around two that are damaged", entries)
	}
	p.hears(t, "a span is damaged", objects[damaged].Object)
	if n := metric(t, p, "varve_compaction_set_aside_total"); n != 2 {
		t.Errorf("varve_compaction_set_aside_total is %v", n)
	}
	for from, whole := range map[int][]string{0: want[:damaged], damaged + 1: want[damaged+1 : gone], gone + 1: want[gone+1:]} {
		out, said, status := run(t, nil, "cat", topic, "--from", fmt.Sprint(from), "--server", p.url())
		if got := strings.Fields(out); !slices.Equal(got, whole) || (status == 0) != (from > gone) || status != 0 && !strings.Contains(said, ".seg") {
			t.Errorf("cat from %d: exit status %d, %q, want %q; it said %s", from, status, got, whole, said)
		}
	}
	p.stop(t)
}
