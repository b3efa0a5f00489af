package segments_test

import (
	"context"
	"fmt"
	"math"
	"testing"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

const (
	testCluster = segments.ClusterID("c4f0")
	testGateway = segments.GatewayID("gw-1")
)

func topic(first, last byte) segments.TopicID { return segments.TopicID{0: first, 15: last} }

// plain is the info of a batch as most are.
func plain(records int32) segments.BatchInfo {
	const t = 1700000000000
	return segments.BatchInfo{
		Offsets: records, Records: records, MinTimestamp: t, MaxTimestamp: t + 400, LastTimestamp: t + 400,
		CRC: 0xfeedc0de, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1,
	}
}

type sampleBatch struct {
	id   segments.SpanID
	data string
	info segments.BatchInfo
}

// samples are the golden segments: every field and flag occurs in one of them.
func samples() map[string][]sampleBatch {
	one, two := topic(1, 2), topic(0xfe, 3)
	everything := plain(7)
	everything.Records, everything.Ack = 5, segments.AckBuffered
	everything.ProducerID, everything.ProducerEpoch, everything.BaseSequence = 4242, 3, 99
	everything.ExpectedOffset, everything.FencingToken, everything.HasFencingToken = 0, "leader-7", true
	sameToken, emptyToken := plain(1), plain(1)
	sameToken.FencingToken, sameToken.HasFencingToken = "leader-7", true
	emptyToken.HasFencingToken = true
	extreme := plain(math.MaxInt32)
	extreme.Records, extreme.CRC = 0, 0
	extreme.MinTimestamp, extreme.MaxTimestamp, extreme.LastTimestamp = math.MinInt64, math.MaxInt64, -1
	extreme.ProducerID, extreme.ProducerEpoch, extreme.BaseSequence = math.MaxInt64, math.MaxInt16, math.MaxInt32
	extreme.ExpectedOffset = math.MaxInt64
	return map[string][]sampleBatch{
		"one": {{segments.SpanID{Topic: one}, "a batch", plain(1)}},
		"many": {
			{segments.SpanID{Topic: two, Partition: 7}, "two/7 first, ", plain(3)},
			{segments.SpanID{Topic: one, Partition: 1}, "one/1 first, ", everything},
			{segments.SpanID{Topic: two, Partition: 0}, "two/0 only, ", emptyToken},
			{segments.SpanID{Topic: one, Partition: 1}, "one/1 second, ", sameToken},
			{segments.SpanID{Topic: two, Partition: 7}, "two/7 second, ", plain(1)},
			{segments.SpanID{Topic: one, Partition: math.MaxInt32}, "one/last", extreme},
		},
	}
}

func samplePrevious(id segments.SpanID) uint64 {
	switch id.Partition {
	case 0:
		return 0
	case 1:
		return 40
	}
	return 1
}

func buildSample(t testing.TB, batches []sampleBatch) *segments.Object {
	t.Helper()
	b := segments.NewBuilder(testCluster, testGateway, 41)
	for _, batch := range batches {
		if err := b.Add(batch.id, []byte(batch.data), batch.info); err != nil {
			t.Fatal(err)
		}
	}
	object, err := b.Build(samplePrevious)
	if err != nil {
		t.Fatal(err)
	}
	return object
}

// stored puts an object's bytes where the object belongs.
func stored(t testing.TB, key string, data []byte) segments.Store {
	t.Helper()
	store := memstore.New()
	if err := store.Put(context.Background(), key, segments.NewBody(data)); err != nil {
		t.Fatal(err)
	}
	return store
}

// manySpans builds a segment of that many partitions.
func manySpans(t testing.TB, spans, batches int) *segments.Object {
	t.Helper()
	data := make([]byte, 100)
	b := segments.NewBuilder(testCluster, testGateway, 41)
	for batch := range batches {
		for i := range spans {
			info := plain(10)
			info.CRC = uint32(batch*spans + i)
			info.MaxTimestamp += int64(i % 1000)
			info.LastTimestamp = info.MaxTimestamp
			id := segments.SpanID{Topic: topic(byte(i%10), 0), Partition: int32(i / 10)}
			if err := b.Add(id, data, info); err != nil {
				t.Fatal(err)
			}
		}
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return 40 })
	if err != nil {
		t.Fatal(err)
	}
	return object
}

// dump is the readable form of a segment beside each golden file.
func dump(d *segments.Directory) string {
	text := fmt.Sprintf("%s, %d bytes\n", d.Key(), d.Size)
	for _, span := range d.Spans {
		text += fmt.Sprintf("span %v: bytes %d+%d, previous segment %d\n", span.SpanID, span.Position, span.Length, span.Previous)
		for _, b := range span.Batches {
			text += fmt.Sprintf("  batch: bytes %d+%d, offsets %d, records %d, timestamps %d to %d, last %d, crc %08x\n",
				b.Position, b.Size, b.Offsets, b.Records, b.MinTimestamp, b.MaxTimestamp, b.LastTimestamp, b.CRC)
			text += fmt.Sprintf("    producer %d, epoch %d, sequence %d; ack %v; expected offset %d; token %q %v\n",
				b.ProducerID, b.ProducerEpoch, b.BaseSequence, b.Ack, b.ExpectedOffset, b.FencingToken, b.HasFencingToken)
		}
	}
	return text
}
