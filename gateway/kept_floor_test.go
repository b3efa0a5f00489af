package gateway

import (
	"context"
	"fmt"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/faultfs"
	"github.com/varvelog/varve/segments/memstore"
)

// TestKeptFileIsNotSettled: what was acked as buffered for a partition that cannot be sequenced stays on the disk, and the next start
// has it judged. Until then the segment is not below the floor: a collector would delete what recovery commits.
func TestKeptFileIsNotSettled(t *testing.T) {
	table := &hookedTable{Table: memtable.New()}
	buffers := openBuffers(t, faultfs.New())
	defer buffers.Close()
	g := runGateway(t, Config{Exclusive: true}, Dependencies{Store: memstore.New(), Table: table, Buffers: buffers})
	id := metadata.PartitionID{Topic: g.create(t, "a", 2, nil).ID}
	table.set(func(op metadata.Op, key metadata.Key) error {
		if op == metadata.OpGet && key.Partition == fmt.Sprintf("partition/%s/0", id.Topic) && key.Sort == "lease" {
			return fmt.Errorf("%w: checksum", metadata.ErrCorrupt)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := appendOne(ctx, g.testGateway, 0, varvev1.Acks_ACKS_BUFFERED); err != nil {
		t.Fatal(err)
	}
	intake := g.tenure.Load().intake
	for !intake.kept.Load() { // each append waits for a flush
		if err := appendOne(ctx, g.testGateway, 1, varvev1.Acks_ACKS_COMMITTED); err != nil {
			t.Fatal(err)
		}
	}
	if err := appendOne(ctx, g.testGateway, 1, varvev1.Acks_ACKS_COMMITTED); err != nil {
		t.Fatal(err)
	}
	if floor, _ := intake.floor(); floor != 1 {
		t.Errorf("the floor is %d, and the file of segment 1 is kept", floor)
	}
	g.leave()
	<-g.ended
}
