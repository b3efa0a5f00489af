package e2e

import (
	"fmt"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
)

// TestStartAfterKill: 10,000 partitions that have records, 100 of them in use when the gateway is killed.
// The next one appends soon, and needs little memory. It runs alone, for its times' sake.
func TestStartAfterKill(t *testing.T) {
	const topics, partitions, active = 10, 1000, 100
	// The aims are 1 s and 512 MiB; the time is generous, since other programs may run here.
	const limit, memory = 3 * time.Second, 512 << 20
	where := embedded(t)
	p := start(t, where)
	l := newLoad(t, p.url())
	name := func(i int) string { return fmt.Sprintf("topic-%d", i) }
	began := time.Now()
	for i := range topics {
		makeTopic(t, l.client, name(i), partitions)
		request := &varvev1.ProduceRequest{Topic: name(i)}
		for n := range int32(partitions) {
			request.Records = append(request.Records, &varvev1.Record{Partition: &n, Value: []byte("first")})
		}
		response, err := l.raw.Produce(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		for _, result := range response.GetResults() {
			if result.GetError() != nil || result.GetBaseOffset() != 0 {
				t.Fatalf("%s: %v", name(i), result)
			}
		}
	}
	filled := time.Since(began)
	p.stop(t)
	p = launch(t, where, p.address).ready(t)

	// A hundred partitions get records until, and when, the gateway dies.
	producer, err := l.client.NewProducer(client.ProducerConfig{Partitioning: client.PartitionAsGiven})
	if err != nil {
		t.Fatal(err)
	}
	acks := make(chan error, 100*active)
	produce := func(round int) {
		for i := range active {
			record := client.Record{Topic: name(i % topics), Partition: int32(i), Value: fmt.Appendf(nil, "round %d", round)}
			if err := producer.Produce(t.Context(), record, func(_ client.Ack, err error) { acks <- err }); err != nil {
				t.Fatal(err)
			}
		}
	}
	const rounds = 20
	for round := range rounds {
		produce(round)
		if round < rounds-1 {
			for range active {
				if err := <-acks; err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	peak := usage(t, l).GetPeakResidentBytes()
	p.kill()

	began = time.Now()
	p = launch(t, where, p.address).ready(t)
	ready := time.Since(began)
	appendOne(t, l.client, name(0), partitions-1, "after")
	serves := time.Since(began)
	for range active {
		if err := <-acks; err != nil {
			t.Error(err)
		}
	}
	waitRecovered(t, l.client)
	recovered := time.Since(began)
	u := usage(t, l)
	t.Logf("filled in %s; after a kill ready in %s, first append acked after %s (aim 1s), all that was under way after %s; "+
		"resident: %d MiB at most before the kill, %d MiB at most after it (limit %d)", filled.Round(time.Millisecond),
		ready.Round(time.Millisecond), serves.Round(time.Millisecond), recovered.Round(time.Millisecond), peak>>20, u.GetPeakResidentBytes()>>20, memory>>20)
	if serves > limit {
		t.Errorf("the first append after a kill took %s, want at most %s", serves, limit)
	}
	if max(peak, u.GetPeakResidentBytes()) > memory {
		t.Errorf("resident memory of %d and %d bytes, want at most %d", peak, u.GetPeakResidentBytes(), memory)
	}
	if err := producer.Close(t.Context()); err != nil {
		t.Error(err)
	}
	p.stop(t)
}
