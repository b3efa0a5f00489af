package compactor

import (
	"context"
	"errors"
	"fmt"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// keyLimits bound what a stored batch may inflate to: they were validated when they came, with closer limits.
var keyLimits = batch.Limits{MaxBatchBytes: 64 << 20, MaxInflatedBytes: 64 << 20, MaxRecordBytes: 64 << 20, MaxRecords: 1 << 24}

// readAtOnce is how many bytes of an entry are read with one request, but at least one chunk.
const readAtOnce = 4 << 20

// damageError says that an entry's bytes are not what the index says. The entry stays as it is.
type damageError struct {
	entry *metadata.Entry
	err   error
}

func (e *damageError) Error() string {
	return fmt.Sprintf("offsets %d to %d, in segment %d of %s: %v", e.entry.First, e.entry.End-1, e.entry.Number, e.entry.Gateway, e.err)
}

func (e *damageError) Unwrap() error { return e.err }

// entryReader shows the batches of index entries.
type entryReader struct {
	store   segments.Store
	cluster segments.ClusterID
	topic   metadata.TopicID // pays
	// pace waits until so many bytes more may be read.
	pace   func(ctx context.Context, bytes int64) error
	buffer []byte
	bytes  int64 // that were read
}

// read shows each batch of an entry, with its real base offset in it; its bytes are used again after that. It fails
// with *damageError when they do not agree with the entry, which may be found out after batches were shown.
func (r *entryReader) read(ctx context.Context, e *metadata.Entry, show func(b []byte) error) error {
	var sum uint64
	next := e.First
	sparse := e.Records != e.End-e.First
	for chunks := e.Chunks(); len(chunks) > 0; {
		n, length := 1, chunks[0].Length
		for n < len(chunks) && length+chunks[n].Length <= readAtOnce {
			length += chunks[n].Length
			n++
		}
		data, err := r.get(ctx, e, chunks[0].Position, length)
		if err != nil {
			return err
		}
		for raw, err := range batch.Split(data) {
			if err != nil {
				return &damageError{e, err}
			}
			h, err := batch.Check(raw)
			if err != nil {
				return &damageError{e, err}
			}
			if !sparse {
				h.BaseOffset = next
			}
			if h.BaseOffset < next || h.EndOffset() > e.End {
				return &damageError{e, fmt.Errorf("%w: a batch has offsets %d to %d where %d to %d belong", segments.ErrCorrupt, h.BaseOffset, h.EndOffset()-1, next, e.End-1)}
			}
			batch.SetBaseOffset(raw, h.BaseOffset, 0)
			sum += batch.ContentSum(h)
			if err := show(raw); err != nil {
				return err
			}
			next = h.EndOffset()
		}
		chunks = chunks[n:]
	}
	if sum != e.Sum || !sparse && next != e.End {
		return &damageError{e, fmt.Errorf("%w: its batches end at offset %d and add up to %016x, the index says %d and %016x", segments.ErrCorrupt, next, sum, e.End, e.Sum)}
	}
	return nil
}

// get reads a range of an entry, into memory that the next call uses again.
func (r *entryReader) get(ctx context.Context, e *metadata.Entry, position, length int64) ([]byte, error) {
	if err := r.pace(ctx, length); err != nil {
		return nil, err
	}
	if int64(cap(r.buffer)) < length {
		r.buffer = make([]byte, length)
	}
	data := r.buffer[:length]
	key := segments.ObjectKey(r.cluster, segments.GatewayID(e.Gateway), e.Number)
	n, err := segments.GetInto(bill.Merging(ctx, r.topic), r.store, key, data, position)
	r.bytes += int64(n)
	switch {
	case errors.Is(err, segments.ErrNotFound), errors.Is(err, segments.ErrCorrupt):
		return nil, &damageError{e, err}
	case err != nil:
		return nil, fmt.Errorf("read segment %s: %w", key, err)
	case int64(n) < length:
		return nil, &damageError{e, fmt.Errorf("%w: the segment ends at byte %d", segments.ErrCorrupt, position+int64(n))}
	}
	return data, nil
}
