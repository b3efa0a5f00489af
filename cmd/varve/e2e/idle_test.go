package e2e

import (
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
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
			if puts != 0 || lists != 0 || gets != 0 || writes != beats {
				t.Error("an idle gateway works")
			}
			if where.alone != (beats == 0) {
				t.Errorf("%d heartbeats; on a table that is its own a gateway has none, else some", beats)
			}
			p.stop(t)
		})
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
