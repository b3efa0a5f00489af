package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

// watching appends through one gateway and asks another one at once: what was acked is there, and no end is before it.
func (s *storm) watching(id int, r *rand.Rand) error {
	var err error
	for s.rests(r, 2*pauseAfter(err)) {
		op, values := s.begin(plain, id, r.Int32N(sharedPartitions), 1)
		request, failed := randomRequest(r, op.partition, values, batch.NoProducer)
		if failed != nil {
			return failed
		}
		var base int64
		base, err = s.send(s.fleet.pick(r), request)
		s.judged(op, outcomeOf(err), base, err)
		if err == nil {
			s.readBack(r, s.fleet.reader(r), op.partition, base, string(values[0]))
		}
	}
	return nil
}

// readBack reads an offset that was acked from a gateway, in one of three ways that must not miss it. A gateway that
// does not answer shows nothing.
func (s *storm) readBack(r *rand.Rand, p *post, partition int32, offset int64, value string) {
	ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
	defer cancel()
	raw := rawClient(s.http, p.url())
	name, where := staleRead, fmt.Sprintf("gateway %d, %d/%d", p.number, partition, offset)
	request := &varvev1.FetchRequest{Topic: topic, Partition: partition, Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: offset}}, MaxBytes: 1, Decode: true}
	switch r.IntN(3) {
	case 0:
		response, err := raw.ListOffsets(ctx, &varvev1.ListOffsetsRequest{
			Topic: topic, Partitions: []int32{partition}, Query: &varvev1.ListOffsetsRequest_Latest{Latest: true}, Linearizable: true,
		})
		if err != nil {
			return
		}
		if end := response.GetOffsets()[0].GetEndOffset(); end <= offset || !response.GetLinearizable() {
			s.found.note(staleRead, "%s was acked, then the end was %d (linearizable: %v)", where, end, response.GetLinearizable())
		}
		s.checked()
		return
	case 1:
		request.Linearizable = true
	case 2:
		request.SeenHighWatermark = offset + 1
		name = fallenWatermark
	}
	response, err := raw.Fetch(ctx, request)
	if err != nil {
		if reasonOf(err) == "OUT_OF_RANGE" {
			s.found.note(name, "%s was acked, then: %v", where, err)
		}
		return
	}
	got := ""
	for _, record := range response.GetRecords() {
		if record.GetOffset() == offset {
			got = string(record.GetValue())
		}
	}
	if got != value || response.GetHighWatermark() <= offset || response.GetLinearizable() != request.Linearizable {
		s.found.note(name, "%s was acked as %q, then read as %q below the high watermark %d (linearizable: %v)",
			where, value, got, response.GetHighWatermark(), response.GetLinearizable())
	}
	s.checked()
}

func (s *storm) checked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.checks++
}

// timeSample is an answer to "which is the first offset at or after that time?". It holds for ever, for logs
// only grow at their end.
type timeSample struct {
	partition int32
	time      int64 // ms
	offset    int64
}

// asking asks any gateway for offsets by time.
func (s *storm) asking(_ int, r *rand.Rand) error {
	began := time.Now()
	for s.rests(r, 4*betweenAppends) {
		partition := r.Int32N(chaosPartitions)
		at := began.Add(time.Duration(r.Float64() * float64(time.Since(began)))).UnixMilli()
		ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
		response, err := rawClient(s.http, s.fleet.reader(r).url()).ListOffsets(ctx, &varvev1.ListOffsetsRequest{
			Topic: topic, Partitions: []int32{partition}, Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: at},
		})
		cancel()
		if err != nil || !response.GetOffsets()[0].GetFound() {
			continue
		}
		s.mu.Lock()
		s.samples = append(s.samples, timeSample{partition, at, response.GetOffsets()[0].GetOffset()})
		s.mu.Unlock()
	}
	return nil
}

// judgeTimes compares what was answered during the run, and what is answered now, with brute force.
func (s *storm) judgeTimes(t *testing.T, r *rand.Rand, c *client.Client, times map[int32][]int64) (lookups int) {
	t.Helper()
	first := func(partition int32, at int64) int64 {
		for offset, when := range times[partition] {
			if when >= at {
				return int64(offset)
			}
		}
		return -1
	}
	for _, sample := range s.samples {
		if want := first(sample.partition, sample.time); sample.offset != want {
			s.found.note(wrongTime, "partition %d, at or after %d: %d was answered, and brute force says %d", sample.partition, sample.time, sample.offset, want)
		}
	}
	const finalLookups = 30
	for range finalLookups {
		partition := r.Int32N(chaosPartitions)
		all := times[partition]
		if len(all) == 0 {
			continue
		}
		at := all[r.IntN(len(all))] + r.Int64N(3) - 1
		want := first(partition, at)
		answers, err := c.ListOffsets(t.Context(), topic, client.OffsetAtOrAfter(time.UnixMilli(at)), partition)
		if err != nil {
			t.Fatal(err)
		}
		if answers[0].Offset != want {
			s.found.note(wrongTime, "partition %d, at or after %d: %d, and brute force says %d", partition, at, answers[0].Offset, want)
		}
		if want < 0 {
			want = int64(len(all))
		}
		answers, err = c.ListOffsets(t.Context(), topic, client.OffsetBefore(time.UnixMilli(at)), partition)
		if err != nil {
			t.Fatal(err)
		}
		if answers[0].Offset != want-1 {
			s.found.note(wrongTime, "partition %d, before %d: %d, and brute force says %d", partition, at, answers[0].Offset, want-1)
		}
	}
	return len(s.samples) + 2*finalLookups
}
