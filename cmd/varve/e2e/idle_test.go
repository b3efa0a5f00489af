package e2e

import (
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/client"
)

// TestIdle: a gateway that nobody asks for anything asks for nothing, either. -idle 1m watches longer.
func TestIdle(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			where := b.open(t)
			p := start(t, where)
			l := newLoad(t, p.url())
			makeTopic(t, l.client, topic, allPartitions)
			for partition := range int32(allPartitions) {
				appendOne(t, l.client, topic, partition, "a")
			}
			produceBuffered(t, l, "b")
			// A follower costs nothing either while nothing comes.
			follow(t, p.url(), allPartitions)
			before := usage(t, l)
			waitFor(t, "quiet", func() bool { // the buffered append has been committed by then
				earlier := before
				time.Sleep(200 * time.Millisecond)
				before = usage(t, l)
				return before.ObjectPuts == earlier.ObjectPuts && before.TableWrites-before.BeatWrites == earlier.TableWrites-earlier.BeatWrites
			})
			time.Sleep(*idleFlag) // what does not happen tells nobody
			after := usage(t, l)

			puts, lists, gets := after.ObjectPuts-before.ObjectPuts, after.ObjectLists-before.ObjectLists, after.ObjectGets-before.ObjectGets
			beats, writes := after.BeatWrites-before.BeatWrites, after.TableWrites-before.TableWrites
			t.Logf("in %s: %d PUTs, %d LISTs, %d GETs, %d table writes, of which %d heartbeats, %d table reads, %.2f s of CPU; %d MiB resident",
				*idleFlag, puts, lists, gets, writes, beats, after.TableReads-before.TableReads, after.CpuSeconds-before.CpuSeconds, after.ResidentBytes>>20)
			looks, reads, deletes := after.BeatReads-before.BeatReads, after.TableReads-before.TableReads, after.ObjectDeletes-before.ObjectDeletes
			if puts != 0 || lists != 0 || gets != 0 || deletes != 0 || writes != beats || reads != looks {
				t.Errorf("an idle gateway works; %d DELETEs, %d table reads, of which %d looks at heartbeats", deletes, reads, looks)
			}
			if where.alone != (beats == 0) {
				t.Errorf("%d heartbeats; on a table that is its own a gateway has none, else some", beats)
			}
			checkAccounts(t, l)
			p.stop(t)
		})
	}
}

// checkAccounts sees that real processes on real servers charge who should be.
func checkAccounts(t *testing.T, l *load) {
	t.Helper()
	used := usage(t, l)
	cost, err := l.client.Cost(t.Context(), client.CostOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if len(cost.GetTopics()) != 1 || len(cost.GetGateways()) != 1 || cost.GetGateways()[0].GetError() != "" {
		t.Fatalf("%v", cost)
	}
	of, rest := cost.GetTopics()[0].GetUsed(), cost.GetCluster()
	if of.GetFlushPuts() != used.GetFlushes()*bill.Part || of.GetCommitUnits() != used.GetCommitUnits()*bill.Part || of.GetAppendedRecords() != allPartitions+1 ||
		int64(of.GetAppendedBytes()) != cost.GetTopics()[0].GetStoredBytes() {
		t.Errorf("the topic: %v; the gateway: %v", of, used)
	}
	if sum := of.GetFlushPuts() + rest.GetFlushPuts() + of.GetOtherPuts() + rest.GetOtherPuts(); sum != used.GetObjectPuts()*bill.Part {
		t.Errorf("%d millionths of PUTs in the accounts, %d PUTs beneath them", sum, used.GetObjectPuts())
	}
	if rest.GetFlushPuts() != 0 || rest.GetCommitUnits() != 0 || of.GetBeatUnits() != 0 || of.GetOtherPuts() != 0 {
		t.Errorf("the topic: %v, the cluster: %v", of, rest)
	}
}

func usage(t *testing.T, l *load) *varvev1.UsageResponse {
	t.Helper()
	u, err := l.client.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return u
}
