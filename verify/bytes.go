package verify

import (
	"context"
	"errors"
	"fmt"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// windowSize is how much of an object is read at once.
	windowSize = 8 << 20
	// bridged is how many bytes nobody asks for are read along, rather than asked around.
	bridged = 256 << 10
)

// deepLimits are wide: what is too large for a producer may still be what was stored. Together with Parallel
// they bound memory.
var deepLimits = batch.Limits{MaxBatchBytes: 64 << 20, MaxInflatedBytes: 256 << 20, MaxRecordBytes: 64 << 20, MaxRecords: 1 << 24}

// window reads an object from one end to the other, piece by piece.
type window struct {
	store    segments.Store
	key      string
	data     []byte
	position int64 // of data
	end      int64 // further than this nobody reads
}

// wanted is where the bytes end that entries, in the order of their positions, have side by side.
func (w *window) wanted(list []reference) int64 {
	end := list[0].e.Position + list[0].e.Length
	for _, r := range list[1:] {
		if r.e.Position > end+bridged {
			break
		}
		end = max(end, r.e.Position+r.e.Length)
	}
	return end
}

// at returns bytes of the object, fewer where it ends early.
func (w *window) at(ctx context.Context, position, size int64) ([]byte, error) {
	if from := position - w.position; from >= 0 && from+size <= int64(len(w.data)) {
		return w.data[from : from+size], nil
	}
	data, _, err := w.store.Get(ctx, w.key, position, max(size, min(windowSize, w.end-position)))
	if err != nil {
		return nil, err
	}
	w.data, w.position = data, position
	return data[:min(size, int64(len(data)))], nil
}

// checkBytes reads an entry's batches. What is wrong is read once more: bytes may have suffered on
// their way here.
func checkBytes(ctx context.Context, w *window, e *metadata.Entry, batches []segments.BatchInfo) (Kind, string, error) {
	var sum uint64
	offset := e.First
	for i := range batches {
		info := &batches[i]
		h, fault, err := readBatch(ctx, w, info)
		if err == nil && fault != nil {
			w.data = nil
			h, fault, err = readBatch(ctx, w, info)
		}
		switch {
		case errors.Is(err, segments.ErrNotFound):
			return ObjectMissing, "the object is not there", nil
		case err != nil:
			return "", "", err
		case fault != nil:
			return BatchCorrupt, fmt.Sprintf("the batch of offset %d, at byte %d: %v", offset, info.Position, fault), nil
		}
		if !sparse(e) {
			h.BaseOffset = offset
		}
		if sparse(e) {
			if err := h.CheckPlace(); err != nil {
				return BatchCorrupt, fmt.Sprintf("the batch at byte %d: %v", info.Position, err), nil
			}
		}
		if h.BaseOffset < offset || h.EndOffset() > e.End {
			return BatchCorrupt, fmt.Sprintf("the batch at byte %d says that it has offsets %d to %d, where %d to %d belong",
				info.Position, h.BaseOffset, h.EndOffset()-1, offset, e.End-1), nil
		}
		sum += batch.ContentSum(h)
		offset = h.EndOffset()
	}
	if sum != e.Sum {
		return ContentSum, fmt.Sprintf("the stored batches add up to %016x, the index entry says %016x", sum, e.Sum), nil
	}
	return "", "", nil
}

// readBatch reads a batch and holds it against the directory. fault is what is wrong with it.
func readBatch(ctx context.Context, w *window, info *segments.BatchInfo) (h batch.Header, fault, err error) {
	data, err := w.at(ctx, info.Position, int64(info.Size))
	if err != nil {
		return batch.Header{}, nil, err
	}
	if len(data) < int(info.Size) {
		return batch.Header{}, fmt.Errorf("the object ends after %d of %d bytes", len(data), info.Size), nil
	}
	if h, fault = batch.Check(data); fault == nil {
		fault = compareHeader(h, info)
	}
	if fault == nil {
		fault = compareRecords(data, info)
	}
	return h, fault, nil
}

func compareHeader(h batch.Header, info *segments.BatchInfo) error {
	for _, c := range []struct {
		what      string
		says, has int64
	}{
		{"bytes", int64(h.Size()), int64(info.Size)},
		{"CRC", int64(h.CRC), int64(info.CRC)},
		{"offsets", int64(h.LastOffsetDelta) + 1, int64(info.Offsets)},
		{"records", int64(h.Count), int64(info.Records)},
		{"largest timestamp", h.MaxTimestamp, info.MaxTimestamp},
		{"producer id", h.ProducerID, info.ProducerID},
		{"producer epoch", int64(h.ProducerEpoch), int64(info.ProducerEpoch)},
		{"base sequence", int64(h.BaseSequence), int64(info.BaseSequence)},
	} {
		if c.says != c.has {
			return fmt.Errorf("%s: its header says %d, the directory %d", c.what, c.says, c.has)
		}
	}
	return nil
}

func compareRecords(data []byte, info *segments.BatchInfo) error {
	found, err := batch.Inspect(data, deepLimits)
	switch {
	case err != nil:
		return err
	case found.MinTimestamp != info.MinTimestamp:
		return fmt.Errorf("least timestamp: its records have %d, the directory %d", found.MinTimestamp, info.MinTimestamp)
	case found.LastTimestamp != info.LastTimestamp:
		return fmt.Errorf("last timestamp: its records have %d, the directory %d", found.LastTimestamp, info.LastTimestamp)
	}
	return nil
}
