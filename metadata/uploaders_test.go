package metadata

import (
	"fmt"
	"testing"
)

// TestManyUploaders has thousands of gateways that append and die without closing their ids: the lease
// row stays below what a table takes, and knows each one's last number.
func TestManyUploaders(t *testing.T) {
	p := NewPartition(PartitionID{})
	sequence := uint64(0)
	for n := range 4000 {
		id := GatewayID(fmt.Sprintf("g%020x", n))
		for number := uint64(1); number <= AnswersKept; number++ {
			_, change := p.Judge(&Reference{Uploader: id, Number: number, Previous: number - 1,
				Batches: []Batch{{Size: 1, Offsets: 1, Records: 1, ProducerID: NoProducer, ExpectedOffset: NoOffset}}})
			sequence++
			if err := p.Apply(change, sequence); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.tail = nil // they are in pages
	row := Row{Value: encodeLease(&Lease{Journal: "j"}, p, nil, nil, nil)}
	t.Logf("%d uploaders: a lease row of %d bytes", len(p.uploaders), len(row.Value))
	if len(row.Value) > 250<<10 {
		t.Errorf("a lease row of %d bytes", len(row.Value))
	}
	row.Stamp = Stamp{1, 1}
	l, err := decodeLease(p.id, row)
	if err != nil {
		t.Fatal(err)
	}
	newest, oldest := GatewayID(fmt.Sprintf("g%020x", 3999)), GatewayID(fmt.Sprintf("g%020x", 0))
	for id, kept := range map[GatewayID]int{newest: 1, oldest: 0} {
		v, change := l.state.Judge(&Reference{Uploader: id, Number: AnswersKept, Previous: AnswersKept - 1,
			Batches: []Batch{{Size: 1, Offsets: 1, Records: 1, ProducerID: NoProducer, ExpectedOffset: NoOffset}}})
		if v.Status != Repeated || change != nil || len(v.Batches) != kept {
			t.Errorf("%s comes again: %+v", id, v)
		}
	}
}
