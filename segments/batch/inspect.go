package batch

import "fmt"

// Inspect checks that b is exactly one batch as it may be stored, and that its header
// tells the truth about its records. It is [Validate] for what [Compact] may have
// worked on: offsets rise and may have gaps, also at both ends, there may be a delete
// horizon, and whoever wrote it may have had other limits. There is at least one record.
func Inspect(b []byte, l Limits) (Info, error) { return Each(b, l, nil) }

// Each inspects b and shows each record, without allocating for it. When it fails, some
// may have been shown.
func Each(b []byte, l Limits, show func(*Pick)) (Info, error) {
	l = l.orDefault()
	h, err := whole(b)
	if err != nil {
		return Info{}, err
	}
	if err := h.checkStored(l); err != nil {
		return Info{}, err
	}
	records := b[HeaderSize:]
	if h.Codec() != None {
		s := takeScratch()
		defer s.release()
		if records, err = s.inflate(h.Codec(), records, l.MaxInflatedBytes); err != nil {
			return Info{}, err
		}
	}
	var p Pick // one for all: show may make it escape
	return h.walk(records, l, func(r *rawRecord, t int64, _ []byte) {
		if show != nil {
			p = h.pick(r, t)
			show(&p)
		}
	})
}

// pick describes a record to whoever chooses.
func (h Header) pick(r *rawRecord, t int64) Pick {
	return Pick{Offset: h.BaseOffset + int64(r.offsetDelta), Timestamp: t, Key: r.key, Tombstone: r.key != nil && r.value == nil}
}

// checkStored judges what the header alone tells of a batch that was stored.
func (h Header) checkStored(l Limits) error {
	switch {
	case h.Attributes&^maskStored != 0:
		return fmt.Errorf("%w: attributes %#04x have bits that no stored batch has", ErrUnsupported, uint16(h.Attributes))
	case h.Count == 0:
		return fmt.Errorf("%w: no records", ErrInvalid)
	case int(h.Count) > l.MaxRecords:
		return fmt.Errorf("%w: %d records are over the limit of %d for a batch", ErrTooLarge, h.Count, l.MaxRecords)
	case int64(h.Count) > int64(h.LastOffsetDelta)+1:
		return fmt.Errorf("%w: %d records with last offset delta %d", ErrInvalid, h.Count, h.LastOffsetDelta)
	}
	return nil
}

// see takes the next record's timestamp into account.
func (info *Info) see(r *rawRecord, t int64) {
	if info.Count == 0 || t < info.MinTimestamp {
		info.MinTimestamp = t
	}
	if info.Count == 0 || t > info.MaxTimestamp {
		info.MaxTimestamp = t
	}
	info.LastTimestamp = t
	info.Keyless = info.Keyless || r.key == nil
	info.Count++
}

// walk holds the inflated records of a stored batch against its header and shows each,
// with its timestamp and its bytes with their size.
func (h Header) walk(records []byte, l Limits, show func(r *rawRecord, t int64, encoded []byte)) (Info, error) {
	if len(records) > l.MaxInflatedBytes {
		return Info{}, tooInflated(l.MaxInflatedBytes)
	}
	c := cursor{b: records, maxRecord: l.MaxRecordBytes}
	var (
		info Info
		r    rawRecord
		last = int32(-1)
	)
	for c.more() {
		at := c.at
		if info.Count == h.Count {
			return Info{}, fmt.Errorf("%w: %d bytes follow record %d, which the header calls the last", ErrInvalid, len(records)-at, h.Count-1)
		}
		if err := c.next(&r); err != nil {
			return Info{}, atRecord(info.Count, at, err)
		}
		if r.offsetDelta <= last || r.offsetDelta > h.LastOffsetDelta {
			return Info{}, atRecord(info.Count, at, fmt.Errorf("%w: its offset delta %d is not between %d and %d", ErrInvalid, r.offsetDelta, last+1, h.LastOffsetDelta))
		}
		last = r.offsetDelta
		t := h.timestampOf(r.timestampDelta)
		show(&r, t, records[at:c.at])
		info.see(&r, t)
	}
	switch {
	case info.Count != h.Count:
		return Info{}, fmt.Errorf("%w: %d records where the header says %d", ErrInvalid, info.Count, h.Count)
	case info.MaxTimestamp != h.MaxTimestamp:
		return Info{}, fmt.Errorf("%w: largest timestamp of the records is %d where the header says %d", ErrInvalid, info.MaxTimestamp, h.MaxTimestamp)
	}
	info.Header, info.InflatedBytes = h, len(records)
	info.Untimed = info.MinTimestamp == NoTimestamp
	return info, nil
}
