package batch

import (
	"fmt"
	"iter"
	"slices"
)

// Records decodes b, exactly one batch, and yields its records with their offsets
// and, for a batch with AppendTime, with that time. It checks the CRC first and
// inflates within l. Unlike [Validate] it reads what is stored: offsets may have gaps
// (a compacted batch keeps its first and last offset), and there may be no records.
//
// The last pair carries the error, if there is one; records before it are good.
// Errors are those of Validate, for the rules that apply here.
//
// Keys, values and header values alias b for codec none, and otherwise memory made
// for this walk, of the size of all records inflated: either way they may be kept
// as long as b is left alone, but one kept value keeps all of it from being freed.
// Headers are a new slice for each record that has any.
func Records(b []byte, l Limits) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		l := l.orDefault()
		h, records, err := open(b, l)
		if err != nil {
			yield(Record{}, err)
			return
		}
		var (
			c    = cursor{b: records, maxRecord: l.MaxRecordBytes}
			raw  rawRecord
			last = int32(-1)
		)
		for n := int32(0); n < h.Count; n++ {
			at := c.at
			rec, err := h.nextRecord(&c, &raw, last)
			if err != nil {
				yield(Record{}, atRecord(n, at, err))
				return
			}
			if !yield(rec, nil) {
				return
			}
			last = raw.offsetDelta
		}
		if c.more() {
			yield(Record{}, fmt.Errorf("%w: %d bytes follow the last record", ErrInvalid, len(records)-c.at))
		}
	}
}

// open returns the header of b and its records in memory that nobody else uses.
func open(b []byte, l Limits) (Header, []byte, error) {
	h, err := whole(b)
	if err != nil {
		return Header{}, nil, err
	}
	if int(h.Count) > l.MaxRecords {
		return Header{}, nil, fmt.Errorf("%w: %d records are over the limit of %d for a batch", ErrTooLarge, h.Count, l.MaxRecords)
	}
	if h.Codec() == None {
		if len(b)-HeaderSize > l.MaxInflatedBytes {
			return Header{}, nil, tooInflated(l.MaxInflatedBytes)
		}
		return h, b[HeaderSize:], nil
	}
	s := takeScratch()
	defer s.release()
	records, err := s.inflate(h.Codec(), b[HeaderSize:], l.MaxInflatedBytes)
	if err != nil {
		return Header{}, nil, err
	}
	return h, slices.Clone(records), nil // the scratch goes back to its pool
}

// nextRecord decodes the record at c, which must come after the offset delta last.
func (h Header) nextRecord(c *cursor, raw *rawRecord, last int32) (Record, error) {
	if err := c.next(raw); err != nil {
		return Record{}, err
	}
	if raw.offsetDelta <= last || raw.offsetDelta > h.LastOffsetDelta {
		return Record{}, fmt.Errorf("%w: its offset delta %d is not between %d and %d", ErrInvalid, raw.offsetDelta, last+1, h.LastOffsetDelta)
	}
	return Record{
		Offset:    h.BaseOffset + int64(raw.offsetDelta),
		Timestamp: h.timestampOf(raw.timestampDelta),
		Key:       raw.key,
		Value:     raw.value,
		Headers:   raw.headerList(),
	}, nil
}
