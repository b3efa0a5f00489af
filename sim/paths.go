package sim

import (
	"context"
	"errors"
	"strings"
	"sync"

	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// Path is something that gateways do now and then, and that a rule of the design is about.
type Path string

// The paths. Rows are counted when they take effect, whether their writer hears of it or not.
const (
	pageWritten       Path = "page written"
	pageReplaced      Path = "page replaced"
	pageThere         Path = "page of somebody else's found there"
	nodeWritten       Path = "tree node written"
	producerWritten   Path = "producer row written"
	leaseLost         Path = "race for a lease row lost"
	fencedEntry       Path = "journal entry met a seal"
	journalTrimmed    Path = "journal trimmed"
	entryRemoved      Path = "journal row removed"
	indexRowRemoved   Path = "page or tree node removed"
	checkpointed      Path = "checkpoint"
	handedOver        Path = "hand-over"
	takenOver         Path = "gateway taken for dead"
	reborn            Path = "gateway fenced, and gone on"
	recovered         Path = "buffered batch recovered"
	closedOverdue     Path = "id closed without its disk"
	repeated          Path = "first answer given again"
	repeatedByAnother Path = "first answer given again by another owner"
	setAside          Path = "buffered append set aside"
	merged            Path = "merged segment put"
	swapRowWritten    Path = "page or tree node written for a swap"
	swapped           Path = "index entries swapped"
	swapRefused       Path = "swap refused"
	trimmedLog        Path = "log start moved"
	collected         Path = "segment removed"
	collectedMerged   Path = "merged segment removed"
	leaseRemoved      Path = "lease row of a deleted topic removed"
	gatewayRemoved    Path = "row of a gateway removed"
	compactedAway     Path = "acked record compacted away by key, as one gateway reads"
)

// Paths lists all of them.
var Paths = []Path{pageWritten, pageReplaced, pageThere, nodeWritten, producerWritten, leaseLost, fencedEntry, journalTrimmed, entryRemoved, indexRowRemoved, checkpointed,
	handedOver, takenOver, reborn, recovered, closedOverdue, repeated, repeatedByAnother, setAside,
	merged, swapRowWritten, swapped, swapRefused, trimmedLog, collected, collectedMerged, leaseRemoved, gatewayRemoved, compactedAway}

// paths counts those that show in writes to the table.
type paths struct {
	rows metadata.Table

	mu     sync.Mutex
	counts map[Path]int
}

func newPaths(rows metadata.Table) *paths { return &paths{rows: rows, counts: make(map[Path]int)} }

func (p *paths) count(path Path, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[path] += n
}

// put notes what came of a put.
func (p *paths) put(row metadata.Row, replaces bool, err error) {
	if err != nil && !errors.Is(err, metadata.ErrConflict) {
		return
	}
	lost := err != nil && p.foreign(row)
	kind, _, _ := strings.Cut(row.Sort, "/")
	switch {
	case strings.HasPrefix(row.Partition, "journal/") && err == nil && row.Stamp.Sequence > 1 && strings.Trim(row.Sort, "0") == "":
		p.count(journalTrimmed, 1)
	case strings.HasPrefix(row.Partition, "journal/") && lost:
		p.count(fencedEntry, 1)
	case !strings.HasPrefix(row.Partition, "partition/"):
	case (kind == "page" || kind == "tree") && err == nil && writtenForSwap(row):
		p.count(swapRowWritten, 1)
	case kind == "page" && lost:
		p.count(pageThere, 1)
	case kind == "page" && err == nil && replaces:
		p.count(pageReplaced, 1)
	case kind == "page" && err == nil:
		p.count(pageWritten, 1)
	case kind == "tree" && err == nil:
		p.count(nodeWritten, 1)
	case kind == "producer" && err == nil:
		p.count(producerWritten, 1)
	case kind == "lease" && lost:
		p.count(leaseLost, 1)
	}
}

func writtenForSwap(row metadata.Row) bool {
	uploader, _, err := metadata.RowWriter(row.Value)
	return err == nil && uploader != ""
}

// object notes that a segment was put, or removed.
func (p *paths) object(key string, removed bool) {
	_, id, _, err := segments.ParseObjectKey(key)
	switch merger := metadata.GatewayID(id).IsMerger(); {
	case err != nil:
	case removed && merger:
		p.count(collectedMerged, 1)
	case removed:
		p.count(collected, 1)
	case merger:
		p.count(merged, 1)
	}
}

// foreign says whether what stands where the row should is another one.
func (p *paths) foreign(row metadata.Row) bool {
	there, err := p.rows.Get(context.Background(), row.Key, metadata.Strong)
	return err == nil && there.Nonce != row.Nonce
}

// exists says whether there is a row.
func (p *paths) exists(key metadata.Key) bool {
	_, err := p.rows.Get(context.Background(), key, metadata.Strong)
	return err == nil
}

// deleted notes that a row went.
func (p *paths) deleted(key metadata.Key) {
	switch kind, _, _ := strings.Cut(key.Sort, "/"); {
	case strings.HasPrefix(key.Partition, "journal/"):
		p.count(entryRemoved, 1)
	case kind == "page" || kind == "tree":
		p.count(indexRowRemoved, 1)
	case key.Sort == "lease":
		p.count(leaseRemoved, 1)
	case key.Partition == "gateways":
		p.count(gatewayRemoved, 1)
	}
}

// sum adds what the gateways counted themselves.
func (p *paths) sum(d gateway.Deeds) map[Path]int {
	for path, n := range map[Path]uint64{checkpointed: d.Checkpoints, handedOver: d.HandOvers, takenOver: d.TakeOvers, reborn: d.Fenced,
		recovered: d.RecoveredBatches, closedOverdue: d.ClosedOverdue, repeated: d.Repeats, repeatedByAnother: d.InheritedRepeats,
		swapped: d.Swaps, swapRefused: d.SwapsRefused, trimmedLog: d.Trims} {
		p.count(path, int(n))
	}
	return p.counts
}
