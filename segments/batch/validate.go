package batch

import "fmt"

// Info is what [Validate] learnt about a batch. Timestamps are milliseconds since
// 1970, and those that count: for a batch with AppendTime all are MaxTimestamp.
type Info struct {
	Header
	MinTimestamp  int64 // the least of the records; NoTimestamp if any has none
	LastTimestamp int64 // of the last record
	// Untimed says that at least one record has no timestamp. [Rewrite] gives such
	// records one.
	Untimed bool
	// Keyless says that at least one record has no key.
	Keyless       bool
	InflatedBytes int // size of the records before compression
}

// Validate checks that b is exactly one batch as a producer may send it, and that
// its header tells the truth about its records: magic, CRC, codec, count of records,
// offset deltas dense from 0, largest timestamp, sizes within l. Timestamps are at
// least 0, or NoTimestamp, which is reported in [Info]. Base offset and leader
// epoch may be anything. Control and transactional batches are refused, and so is
// a batch without records.
//
// Compressed records are inflated into pooled memory and never beyond the limit.
// Nothing is allocated a record, and nothing at all for codec none.
//
// Errors: [ErrTooLarge], [ErrTruncated], [ErrUnsupported] (magic, codec,
// attributes), [ErrCorrupt] (CRC), [ErrInvalid] (any rule above, or records that do
// not inflate or parse). The CRC is checked before any rule, so ErrInvalid is the
// doing of whoever built the batch.
func Validate(b []byte, l Limits) (Info, error) {
	l = l.orDefault()
	if len(b) > l.MaxBatchBytes {
		return Info{}, fmt.Errorf("%w: %d bytes are over the limit of %d for a batch", ErrTooLarge, len(b), l.MaxBatchBytes)
	}
	h, err := whole(b)
	if err != nil {
		return Info{}, err
	}
	if err := h.checkRules(l); err != nil {
		return Info{}, err
	}
	if h.Codec() == None {
		return inspect(h, b[HeaderSize:], l)
	}
	s := takeScratch()
	defer s.release()
	records, err := s.inflate(h.Codec(), b[HeaderSize:], l.MaxInflatedBytes)
	if err != nil {
		return Info{}, err
	}
	return inspect(h, records, l)
}

// whole is Check for bytes that must hold one batch and nothing else.
func whole(b []byte) (Header, error) {
	h, err := Check(b)
	if err != nil {
		return Header{}, err
	}
	if extra := len(b) - h.Size(); extra > 0 {
		return Header{}, fmt.Errorf("%w: %d bytes follow the batch at byte %d: send one batch at a time", ErrInvalid, extra, h.Size())
	}
	return h, nil
}

// checkRules judges what the header alone tells.
func (h Header) checkRules(l Limits) error {
	switch {
	case h.Control():
		return fmt.Errorf("%w: control batches are not accepted from producers", ErrInvalid)
	case h.Transactional():
		return fmt.Errorf("%w: transactional batches are not accepted", ErrInvalid)
	case h.Attributes&^maskFromProducers != 0:
		return fmt.Errorf("%w: attributes %#04x have bits of unknown meaning", ErrUnsupported, uint16(h.Attributes))
	case h.Count == 0:
		return fmt.Errorf("%w: no records", ErrInvalid)
	case int(h.Count) > l.MaxRecords:
		return fmt.Errorf("%w: %d records are over the limit of %d for a batch", ErrTooLarge, h.Count, l.MaxRecords)
	case h.LastOffsetDelta != h.Count-1:
		return fmt.Errorf("%w: last offset delta is %d with %d records: offsets must be dense", ErrInvalid, h.LastOffsetDelta, h.Count)
	case h.ProducerID < -1:
		return fmt.Errorf("%w: producer id is %d", ErrInvalid, h.ProducerID)
	case h.ProducerID >= 0 && (h.ProducerEpoch < 0 || h.BaseSequence < 0):
		return fmt.Errorf("%w: producer id %d with epoch %d and base sequence %d: neither may be negative", ErrInvalid, h.ProducerID, h.ProducerEpoch, h.BaseSequence)
	}
	return nil
}

// inspect walks the inflated records and holds the header against them.
func inspect(h Header, records []byte, l Limits) (Info, error) {
	if len(records) > l.MaxInflatedBytes {
		return Info{}, tooInflated(l.MaxInflatedBytes)
	}
	info := Info{Header: h, InflatedBytes: len(records)}
	c := cursor{b: records, maxRecord: l.MaxRecordBytes}
	var (
		r   rawRecord
		max = NoTimestamp
		n   int32
	)
	for ; c.more(); n++ {
		at := c.at
		if n == h.Count {
			return Info{}, fmt.Errorf("%w: %d bytes follow record %d, which the header calls the last", ErrInvalid, len(records)-at, n-1)
		}
		if err := c.next(&r); err != nil {
			return Info{}, atRecord(n, at, err)
		}
		if r.offsetDelta != n {
			return Info{}, atRecord(n, at, fmt.Errorf("%w: its offset delta is %d: offsets must be dense", ErrInvalid, r.offsetDelta))
		}
		t := h.timestampOf(r.timestampDelta)
		if t < NoTimestamp {
			return Info{}, atRecord(n, at, fmt.Errorf("%w: its timestamp is %d: use milliseconds since 1970, or %d for none", ErrInvalid, t, NoTimestamp))
		}
		if n == 0 || t < info.MinTimestamp {
			info.MinTimestamp = t
		}
		if t > max {
			max = t
		}
		info.LastTimestamp = t
		info.Keyless = info.Keyless || r.key == nil
	}
	if n != h.Count {
		return Info{}, fmt.Errorf("%w: %d records where the header says %d", ErrInvalid, n, h.Count)
	}
	if max != h.MaxTimestamp {
		return Info{}, fmt.Errorf("%w: largest timestamp of the records is %d where the header says %d", ErrInvalid, max, h.MaxTimestamp)
	}
	info.Untimed = info.MinTimestamp == NoTimestamp
	return info, nil
}

// atRecord adds the place of a record: its index, and its first byte in the
// inflated records.
func atRecord(index int32, at int, err error) error {
	return fmt.Errorf("record %d at byte %d of the records: %w", index, at, err)
}
