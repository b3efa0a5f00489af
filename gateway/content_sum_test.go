package gateway

import (
	"testing"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

// TestContentSum checks that the sums of the index are those of the batches as readers
// get them: so a checker can tell from bytes alone whether merging lost anything.
func TestContentSum(t *testing.T) {
	g := startGateway(t, Config{Exclusive: true}, memory())
	topic := g.create(t, "a", 1, nil)
	for i := range 5 {
		records := make([]batch.Record, i+1)
		for j := range records {
			records[j] = batch.Record{Timestamp: int64(i), Value: []byte{byte(j)}}
		}
		g.produce(t, "a", 0, records...)
	}
	v, err := g.view(t.Context(), metadata.PartitionID{Topic: topic.ID})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := v.Entries(t.Context(), g.reader.index, 0)
	if err != nil {
		t.Fatal(err)
	}
	var indexed, read uint64
	for i := range entries {
		indexed += entries[i].Sum
	}
	out, err := g.log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a"})
	if err != nil {
		t.Fatal(err)
	}
	batches := 0
	for b, err := range batch.Split(out.GetRecordBatches()) {
		if err != nil {
			t.Fatal(err)
		}
		h, err := batch.ParseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		read += batch.ContentSum(h)
		batches++
	}
	if batches != 5 || indexed != read {
		t.Errorf("%d batches sum up to %016x, the index says %016x", batches, read, indexed)
	}
}
