package compactor

import (
	"context"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// sifted is a batch that stays, in memory of its own.
type sifted struct {
	data []byte
	left batch.Left
}

// keyWriter makes the index entries of a section anew: entries stay as they are, or their batches go to new segments.
type keyWriter struct {
	m         *merger
	partition metadata.PartitionID
	uploader  metadata.GatewayID
	number    func() uint64 // the next one
	target    int64         // bytes of a segment

	entries []metadata.Entry
	// pending are those of entries, by their place, that lack the segment which is open.
	pending []pendingKeys
	builder *segments.Builder
	last    uint64 // number of the newest segment, 0: none
	bytes   int64  // that were put
}

// pendingKeys are the batches of an entry that is to have them.
type pendingKeys struct {
	place int
	left  []sifted
}

// keep leaves an entry as it is. One without records goes into the one before, if that may grow.
func (w *keyWriter) keep(e metadata.Entry) {
	if e.Length > 0 || !w.grow(e.End, e.Clean) {
		w.entries = append(w.entries, e)
	}
}

// grow lets the last entry go on to end, if it is pending or empty: what it names then need not lie without a gap.
func (w *keyWriter) grow(end int64, clean bool) bool {
	n := len(w.entries) - 1
	if n < 0 || w.entries[n].Length > 0 || w.entries[n].Clean != clean {
		return false
	}
	w.entries[n].End = end
	return true
}

// rewrite gives an entry's offsets the batches that are left.
func (w *keyWriter) rewrite(ctx context.Context, e *metadata.Entry, left []sifted, clean bool) error {
	if len(left) == 0 {
		gap := metadata.EmptyEntry(e.First, e.End)
		gap.Clean = clean
		w.keep(gap)
		return nil
	}
	if err := w.open(ctx, left); err != nil {
		return err
	}
	for i := range left {
		batch.SealPlace(left[i].data, left[i].left.BaseOffset)
		if err := w.builder.Add(w.span(), left[i].data, infoOfLeft(&left[i].left)); err != nil {
			return err
		}
	}
	first := e.First
	if n := len(w.entries) - 1; n >= 0 && w.grow(e.End, clean) {
		if p := len(w.pending) - 1; p >= 0 && w.pending[p].place == n {
			w.pending[p].left = append(w.pending[p].left, left...)
			return nil
		}
		first = w.entries[n].First // it was empty
		w.entries = w.entries[:n]
	}
	w.pending = append(w.pending, pendingKeys{len(w.entries), left})
	w.entries = append(w.entries, metadata.Entry{First: first, End: e.End, Clean: clean})
	return nil
}

// open makes sure that there is a segment with room for these batches.
func (w *keyWriter) open(ctx context.Context, left []sifted) error {
	var bytes int64
	for i := range left {
		bytes += int64(len(left[i].data))
	}
	if w.builder != nil && (w.builder.Bytes()+bytes > w.target || w.builder.Batches()+len(left) > mostBatches) {
		if err := w.flush(ctx); err != nil {
			return err
		}
	}
	if w.builder == nil {
		w.last = w.number()
		w.builder = segments.NewBuilder(w.m.cluster, segments.GatewayID(w.uploader), w.last)
	}
	return nil
}

func (w *keyWriter) span() segments.SpanID {
	return segments.SpanID{Topic: segments.TopicID(w.partition.Topic), Partition: w.partition.Number}
}

func infoOfLeft(l *batch.Left) segments.BatchInfo {
	return segments.BatchInfo{Size: int32(l.Size()), Offsets: l.LastOffsetDelta + 1, Records: l.Count, CRC: l.CRC,
		MinTimestamp: l.MinTimestamp, MaxTimestamp: l.MaxTimestamp, LastTimestamp: l.LastTimestamp,
		ProducerID: l.ProducerID, ProducerEpoch: l.ProducerEpoch, BaseSequence: l.BaseSequence,
		ExpectedOffset: metadata.NoOffset, Ack: segments.AckCommitted}
}

// flush puts the segment that is open and completes the entries that lie in it.
func (w *keyWriter) flush(ctx context.Context) error {
	if w.builder == nil {
		return nil
	}
	object, err := w.builder.Build(func(segments.SpanID) uint64 { return 0 })
	if err != nil {
		return err
	}
	if err := w.m.put(ctx, object); err != nil {
		return err
	}
	w.bytes += object.Directory.Size
	infos := object.Directory.Spans[0].Batches
	for _, p := range w.pending {
		w.entries[p.place] = indexOf(w.uploader, w.last, &w.entries[p.place], p.left, infos[:len(p.left)])
		infos = infos[len(p.left):]
	}
	w.builder, w.pending = nil, nil
	return nil
}

// indexOf makes the entry of batches that lie as infos say.
func indexOf(uploader metadata.GatewayID, number uint64, e *metadata.Entry, left []sifted, infos []segments.BatchInfo) metadata.Entry {
	batches, offsets := make([]metadata.Batch, len(left)), make([]int64, len(left))
	for i := range left {
		l, info := &left[i].left, &infos[i]
		batches[i] = metadata.Batch{Position: info.Position, Size: info.Size, Offsets: info.Offsets, Records: info.Records,
			MinTimestamp: info.MinTimestamp, MaxTimestamp: info.MaxTimestamp, LastTimestamp: info.LastTimestamp, CRC: info.CRC}
		offsets[i] = l.BaseOffset
	}
	out := metadata.MergedEntry(uploader, number, batches, offsets, e.First, e.End)
	out.Clean = e.Clean
	return out
}
