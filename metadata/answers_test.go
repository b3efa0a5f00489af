package metadata_test

import (
	"testing"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// TestLongAnswersFitALease has an uploader whose references all get as many different
// verdicts as they may: the answers that are kept still leave the lease row a row, and
// the newest answer is always among them.
func TestLongAnswersFitALease(t *testing.T) {
	table := memtable.New()
	journal, err := metadata.OpenJournal(t.Context(), table, "g1")
	if err != nil {
		t.Fatal(err)
	}
	p, lease, err := metadata.Acquire(t.Context(), table, metadata.PartitionID{}, journal, nil)
	if err != nil {
		t.Fatal(err)
	}
	var last *metadata.Reference
	for number := uint64(1); number <= metadata.AnswersKept; number++ {
		last = &metadata.Reference{Uploader: "g1", Number: number, Previous: number - 1}
		for i := range metadata.MaxReferenceBatches {
			b := metadata.Batch{Position: int64(i) * 100, Size: 100, Offsets: 1 << 20, Records: 1 << 20, ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset}
			if i%2 == 1 {
				b.ExpectedOffset = 1 << 60
			}
			last.Batches = append(last.Batches, b)
		}
		_, change := p.Judge(last)
		if err := p.Apply(change, number); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Checkpoint(lease, metadata.AnswersKept, false).Write(t.Context(), table, lease); err != nil {
		t.Errorf("checkpoint: %v", err)
	}
	if v, _ := p.Judge(last); v.Status != metadata.Repeated || len(v.Batches) != len(last.Batches) {
		t.Errorf("the newest reference again: status %d with %d verdicts", v.Status, len(v.Batches))
	}
}
