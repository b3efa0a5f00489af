package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/metadata"
)

// notebook is a compactor that only takes notes.
type notebook struct {
	mu    sync.Mutex
	notes map[metadata.PartitionID]committed
	asked []string
	err   error
	// whenAsked, if set, looks around at the begin of a pass.
	whenAsked func()
}

func (n *notebook) Note(id metadata.PartitionID, next, bytes int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.notes == nil {
		n.notes = make(map[metadata.PartitionID]committed)
	}
	n.notes[id] = committed{next, n.notes[id].bytes + bytes}
}

func (n *notebook) Compact(_ context.Context, topic string, dryRun bool) (*varvev1.CompactReport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.asked = append(n.asked, fmt.Sprint(topic, dryRun))
	if n.whenAsked != nil {
		n.whenAsked()
	}
	return &varvev1.CompactReport{Partitions: 7}, n.err
}

func (n *notebook) taken() map[metadata.PartitionID]committed {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.notes
}

// startMerging starts a gateway with a role and a compactor that takes notes.
func (c *testCluster) startMerging(role string) (*member, *notebook) {
	n := &notebook{}
	c.config.Role = role
	c.prepare = func(g *Gateway) {
		if role != metadata.RoleGateway {
			g.UseCompactor(n)
		}
	}
	return c.start(), n
}

// TestNotesOfCommits: whoever merges a partition hears of what is committed to it, through whichever gateway, with all its bytes,
// and nobody else does.
func TestNotesOfCommits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		a, notesA := c.startMerging(metadata.RoleAll)
		b, _ := c.startMerging(metadata.RoleGateway)
		m, notesM := c.startMerging(metadata.RoleCompactor)
		topic := a.create(t, "a", 1000, nil)
		c.settle()
		appended := make(map[metadata.PartitionID]int64)
		for n := int32(0); n < 1000; n += 50 {
			for i, g := range []*member{a, b, a} {
				if at, err := g.append("a", n, "value"); err != nil || at != int64(i) {
					t.Fatalf("offset %d, %v", at, err)
				}
			}
			id := metadata.PartitionID{Topic: topic.ID, Number: n}
			v, err := a.viewNow(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			appended[id] = v.Bytes
		}
		time.Sleep(2 * noteAfter)
		synctest.Wait()
		both := 0
		for id, bytes := range appended {
			noted, not := notesA.taken()[id], notesM.taken()[id]
			if m.Merges(id) {
				noted, not = not, noted
				both++
			}
			if noted != (committed{3, bytes}) || not != (committed{}) || a.Merges(id) == m.Merges(id) || b.Merges(id) {
				t.Errorf("%s, of %d bytes: noted %v, by who does not merge it %v", id, bytes, noted, not)
			}
		}
		if both == 0 || both == len(appended) {
			t.Errorf("%d of %d partitions are the compactor's", both, len(appended))
		}
		if m.tenure.Load().sequencer.holding.Load() > 0 {
			t.Error("the compactor sequences partitions")
		}
		before := m.meters.peerCalls.Load() + a.meters.peerCalls.Load() + b.meters.peerCalls.Load()
		time.Sleep(time.Hour)
		if now := m.meters.peerCalls.Load() + a.meters.peerCalls.Load() + b.meters.peerCalls.Load(); now != before {
			t.Errorf("%d calls in an hour without a commit", now-before)
		}
		for _, g := range []*member{m, b, a} {
			g.drain()
		}
	})
}

// TestNotesWaitForMergers: what nobody could be told is told later.
func TestNotesWaitForMergers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		a, _ := c.startMerging(metadata.RoleGateway)
		m, notes := c.startMerging(metadata.RoleCompactor)
		topic := a.create(t, "a", 1, nil)
		c.settle()
		c.network.disconnect(m.address, true)
		if _, err := a.append("a", 0, "value"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * noteAfter)
		c.network.disconnect(m.address, false)
		time.Sleep(2 * noteAfter)
		if n := notes.taken()[metadata.PartitionID{Topic: topic.ID}]; n.next != 1 || n.bytes == 0 {
			t.Errorf("noted: %v", n)
		}
		m.drain()
		a.drain()
	})
}

// TestCompactorTakesNoAppends: it says so, answers all else, and takes no partition even when it is alone.
func TestCompactorTakesNoAppends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		a, _ := c.startMerging(metadata.RoleAll)
		m, _ := c.startMerging(metadata.RoleCompactor)
		a.create(t, "a", 1, nil)
		c.settle()
		if _, err := a.append("a", 0, "value"); err != nil {
			t.Fatal(err)
		}
		if _, err := m.append("a", 0, "value"); classify(err).info.GetReason() != reasonRole || !strings.Contains(err.Error(), "--role compactor") {
			t.Errorf("an append: %v", err)
		}
		if got := m.values(t, "a", 0); len(got) != 1 {
			t.Errorf("read: %v", got)
		}
		if ready, why := m.Ready(); !ready {
			t.Error(why)
		}
		a.drain()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		offset := int64(1)
		if _, err := m.router.decide(ctx, metadata.PartitionID{Topic: m.topicID(t, "a")}, decision{trim: &offset}); err == nil || m.tenure.Load().sequencer.holding.Load() > 0 {
			t.Errorf("a trim that only the compactor could take: %v", err)
		}
		m.drain()
	})
}

// compact asks a gateway to have all merge.
func (m *member) compact(t *testing.T, r *varvev1.CompactRequest) ([]*varvev1.CompactResponse, error) {
	t.Helper()
	client := varvev1connect.NewClusterServiceClient(connect.NewClient(connectinprocess.New(m.APIServer())))
	stream, err := client.Compact(t.Context(), r)
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var list []*varvev1.CompactResponse
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return list, err
		}
		list = append(list, message)
	}
}

// TestCompactAsksAll: each gateway that merges is asked once, and says what it did, or why it could not.
func TestCompactAsksAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		b, _ := c.startMerging(metadata.RoleGateway)
		c.settle()
		if _, err := b.compact(t, &varvev1.CompactRequest{Wait: true}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("nobody merges: %v", err)
		}
		a, notesA := c.startMerging(metadata.RoleAll)
		m, notesM := c.startMerging(metadata.RoleCompactor)
		a.create(t, "a", 1, nil)
		c.settle()
		notesM.err = errors.New("it cannot")
		list, err := b.compact(t, &varvev1.CompactRequest{Topic: "a", DryRun: true, Wait: true})
		if err != nil || len(list) != 2 || len(notesA.asked) != 1 || len(notesM.asked) != 1 || notesA.asked[0] != "atrue" {
			t.Fatalf("%v, %v; asked were %v and %v", list, err, notesA.asked, notesM.asked)
		}
		for _, r := range list {
			switch metadata.GatewayID(r.GetGatewayId()) {
			case a.ID():
				if r.GetReport().GetPartitions() != 7 || r.GetError() != "" {
					t.Errorf("%v", r)
				}
			case m.ID():
				if r.GetError() == "" {
					t.Errorf("%v", r)
				}
			default:
				t.Errorf("%v", r)
			}
		}
		if list, err = m.compact(t, &varvev1.CompactRequest{}); err != nil || len(list) != 2 || list[0].GetReport() != nil {
			t.Errorf("without waiting: %v, %v", list, err)
		}
		synctest.Wait()
		if len(notesA.asked) != 2 || len(notesM.asked) != 2 {
			t.Errorf("asked were %v and %v", notesA.asked, notesM.asked)
		}
		if _, err := a.compact(t, &varvev1.CompactRequest{Topic: "b"}); connect.CodeOf(err) != connect.CodeNotFound {
			t.Errorf("a topic that is not there: %v", err)
		}
		for _, g := range []*member{m, b, a} {
			g.drain()
		}
	})
}

// TestMergerLeaves: who merges from then on hears of the partitions that the one before kept in mind.
func TestMergerLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		a, _ := c.startMerging(metadata.RoleGateway)
		var mergers []*member
		notes := make(map[*member]*notebook)
		for range 2 {
			m, n := c.startMerging(metadata.RoleCompactor)
			mergers, notes[m] = append(mergers, m), n
		}
		topic := a.create(t, "a", 1000, nil)
		c.settle()
		for n := int32(0); n < 1000; n += 50 {
			if _, err := a.append("a", n, "value"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * noteAfter)
		if len(notes[mergers[0]].taken()) == 0 || len(notes[mergers[1]].taken()) == 0 {
			t.Fatal("one of them was told of nothing")
		}
		mergers[0].drain()
		time.Sleep(2 * noteAfter)
		synctest.Wait()
		if got := notes[mergers[1]].taken(); len(got) != 20 || got[metadata.PartitionID{Topic: topic.ID}].next != 1 {
			t.Errorf("who is left was told of %d partitions of 20", len(got))
		}
		mergers[1].drain()
		a.drain()
	})
}

// TestCompactWhenOneHasJustLeft: who is asked for a pass knows who merges by then, so that the partitions of one that has just left, or
// has just come, are left out by nobody.
func TestCompactWhenOneHasJustLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		a, _ := c.startMerging(metadata.RoleGateway)
		b, _ := c.startMerging(metadata.RoleCompactor)
		m, notes := c.startMerging(metadata.RoleCompactor)
		topic := a.create(t, "a", 1000, nil)
		c.settle()
		others := 0
		notes.whenAsked = func() {
			for _, id := range allPartitions(topic) {
				if !m.Merges(id) {
					others++
				}
			}
		}
		compact := func(want int) {
			t.Helper()
			others = 0
			list, err := a.compact(t, &varvev1.CompactRequest{Wait: true})
			if err != nil || len(list) != want {
				t.Errorf("%d were asked, want %d: %v, %v", len(list), want, list, err)
			}
			for _, r := range list {
				if r.GetError() != "" {
					t.Error(r)
				}
			}
			if (others > 0) != (want > 1) {
				t.Errorf("one of %d leaves %d partitions to others", want, others)
			}
		}
		compact(2)
		b.drain()
		compact(1)
		b, _ = c.startMerging(metadata.RoleCompactor)
		compact(2)
		for _, g := range []*member{b, m, a} {
			g.drain()
		}
	})
}
