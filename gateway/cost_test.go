package gateway

import (
	"strings"
	"testing"
	"testing/synctest"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

// checkBalance sees that what a gateway's accounts come to is what was counted beneath them.
func checkBalance(t *testing.T, g *Gateway) bill.Usage {
	t.Helper()
	statement := g.ledger.Statement()
	sum := statement.Total()
	var writes, reads uint64
	for op := range g.meters.table {
		for kind := range g.meters.table[op] {
			if metadata.Op(op).Reads() {
				reads += g.meters.table[op][kind].units.Load()
			} else {
				writes += g.meters.table[op][kind].units.Load()
			}
		}
	}
	store := &g.meters.store
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"PUTs", sum[bill.FlushPuts] + sum[bill.MergePuts] + sum[bill.OtherPuts], store.put.calls.Load() * bill.Part},
		{"GETs", sum[bill.ReadGets] + sum[bill.MergeGets] + sum[bill.OtherGets], store.get.calls.Load() * bill.Part},
		{"LISTs", sum[bill.Lists], store.list.calls.Load() * bill.Part},
		{"DELETEs", sum[bill.Deletes], store.delete.calls.Load() * bill.Part},
		{"bytes written", sum[bill.BytesPut], store.put.bytes.Load()},
		{"bytes read", sum[bill.BytesGot], store.get.bytes.Load()},
		{"write units", sum[bill.CommitUnits] + sum[bill.TrimUnits] + sum[bill.CheckpointUnits] + sum[bill.MergeUnits] + sum[bill.BeatUnits] + sum[bill.OtherWriteUnits], writes},
		{"read units", sum[bill.IndexReadUnits] + sum[bill.MemberReadUnits] + sum[bill.OtherReadUnits], reads},
		{"bytes appended", sum[bill.AppendedBytes], g.meters.appendedBytes.Load()},
		{"records appended", sum[bill.AppendedRecords], g.meters.appendedRecords.Load()},
	} {
		if c.got != c.want {
			t.Errorf("%s: accounts come to %d, beneath them %d were counted", c.what, c.got, c.want)
		}
	}
	return sum
}

// TestCostBalances: what topics and cluster pay is what was used, whoever shared it.
func TestCostBalances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		c.config.FreshBytes = 1 // reads come from the bucket
		c.config.FoldRows, c.config.FoldBytes = 2, 1
		members := []*member{c.start(), c.start(), c.start()}
		large := members[0].create(t, "large", clusterPartitions, nil)
		small := members[0].create(t, "small", 3, nil)
		c.settle()
		for round := range 20 {
			for p := range int32(clusterPartitions) {
				l := startAppend(members[round%3], "large", p, strings.Repeat("x", 2000))
				if _, err := members[round%3].append("small", p%3, "y"); err != nil {
					t.Fatal(err)
				}
				if err := <-l; err != nil {
					t.Fatal(err)
				}
			}
		}
		for _, m := range members {
			m.values(t, "large", 1)
			m.values(t, "small", 1)
		}
		answer, err := (&clusterService{members[0].Gateway}).Cost(t.Context(), &varvev1.CostRequest{})
		if err != nil {
			t.Fatal(err)
		}
		checkCost(t, answer, large, small)
		one, err := (&clusterService{members[0].Gateway}).Cost(t.Context(), &varvev1.CostRequest{Topic: "small"})
		if err != nil || len(one.GetTopics()) != 1 || one.GetTopics()[0].GetUsed().GetAppendedRecords() != 20*clusterPartitions || one.GetCluster() != nil {
			t.Errorf("of one topic: %v, %v", one, err)
		}
		described, err := (&topicService{members[1].Gateway}).DescribeTopic(t.Context(), &varvev1.DescribeTopicRequest{Name: "large", Usage: true})
		if err != nil || described.GetCost().GetTopics()[0].GetStoredBytes() != answer.GetTopics()[0].GetStoredBytes() {
			t.Errorf("described: %v, %v", described.GetCost(), err)
		}
		for _, m := range members {
			m.drain()
		}
		for _, m := range members {
			sum := checkBalance(t, m.Gateway)
			for _, unit := range []bill.Unit{bill.FlushPuts, bill.ReadGets, bill.CommitUnits, bill.TrimUnits, bill.CheckpointUnits, bill.BeatUnits, bill.IndexReadUnits} {
				if sum[unit] == 0 {
					t.Errorf("nothing of unit %d was used: this shows nothing", unit)
				}
			}
		}
	})
}

func startAppend(m *member, topic string, partition int32, value string) <-chan error {
	done := make(chan error, 1)
	go func() {
		_, err := m.append(topic, partition, value)
		done <- err
	}()
	return done
}

// checkCost sees that two topics pay what they should of three gateways' work.
func checkCost(t *testing.T, answer *varvev1.CostResponse, large, small *metadata.Topic) {
	t.Helper()
	if len(answer.GetTopics()) != 2 || answer.GetTopics()[0].GetTopicId() != large.ID.String() || answer.GetTopics()[1].GetTopicId() != small.ID.String() {
		t.Fatalf("topics: %v", answer.GetTopics())
	}
	for _, g := range answer.GetGateways() {
		if g.GetError() != "" || g.GetCountedMs() == 0 {
			t.Errorf("a gateway: %v", g)
		}
	}
	l, s, rest := answer.GetTopics()[0], answer.GetTopics()[1], answer.GetCluster()
	if n := l.GetUsed().GetAppendedRecords(); n != 20*clusterPartitions {
		t.Errorf("%d records were appended to the large topic", n)
	}
	if l.GetStoredBytes() != int64(l.GetUsed().GetAppendedBytes()) || s.GetStoredBytes() != int64(s.GetUsed().GetAppendedBytes()) {
		t.Errorf("stored: %d of %d bytes, and %d of %d", l.GetStoredBytes(), l.GetUsed().GetAppendedBytes(), s.GetStoredBytes(), s.GetUsed().GetAppendedBytes())
	}
	// Segments with both in them are shared by bytes, commits by what each has in them.
	if a, b := l.GetUsed().GetFlushPuts(), s.GetUsed().GetFlushPuts(); a < 5*b || b == 0 {
		t.Errorf("PUTs: %d and %d millionths", a, b)
	}
	if a, b := l.GetUsed().GetCommitUnits(), s.GetUsed().GetCommitUnits(); a > 3*b || b == 0 {
		t.Errorf("commits: %d and %d millionths", a, b)
	}
	if rest.GetFlushPuts() != 0 || rest.GetReadGets() != 0 || rest.GetCheckpointUnits() != 0 || rest.GetCommitUnits() != 0 || rest.GetBeatUnits() == 0 || rest.GetOtherPuts() == 0 {
		t.Errorf("the cluster: %v", rest)
	}
}

// TestCostNamesTheSilent: a gateway whose counters are missing is named, the others' count.
func TestCostNamesTheSilent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		a, b := c.start(), c.start()
		a.create(t, "a", 1, nil)
		c.settle()
		for _, m := range []*member{a, b} {
			if _, err := m.append("a", 0, "x"); err != nil {
				t.Fatal(err)
			}
		}
		c.network.disconnect(b.address, true)
		answer, err := (&clusterService{a.Gateway}).Cost(t.Context(), &varvev1.CostRequest{})
		if err != nil {
			t.Fatal(err)
		}
		gateways := answer.GetGateways()
		if len(gateways) != 2 || gateways[0].GetId() != string(a.ID()) || gateways[0].GetError() != "" ||
			gateways[1].GetId() != string(b.ID()) || gateways[1].GetError() == "" || gateways[1].GetSince() != 0 {
			t.Errorf("gateways: %v", gateways)
		}
		if n := answer.GetTopics()[0].GetUsed().GetAppendedRecords(); n != 1 {
			t.Errorf("%d records by the counters of one gateway", n)
		}
		c.network.disconnect(b.address, false)
		a.drain()
		b.drain()
	})
}
