package batch

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Pick is what [Compact] tells of a record to whoever chooses. Key aliases memory that
// is used again.
type Pick struct {
	Offset    int64
	Timestamp int64 // ms since 1970
	Key       []byte
	Tombstone bool // it has a key and no value: the key is deleted
}

// Left says what [Compact] left of a batch.
type Left struct {
	Info
	// LastOffset is that of the last record. What the batch takes up may go on behind it.
	LastOffset int64
	// Tombstones counts those that stayed.
	Tombstones int
	// Changed is false when the batch stayed byte for byte as it was.
	Changed bool
}

// Compact appends to dst the batch b with only those records that keep wants, by
// Kafka's rules: base offset, last offset delta, codec, kind of timestamps and producer
// fields stay, the count shrinks, the largest timestamp is that of the records that are
// left. The records that stay keep their offsets. When none is left, nothing is
// appended and Left.Count is 0; a batch that loses nothing is appended as it is.
//
// horizon is for tombstones (KIP-534): a batch that keeps one and has no delete horizon
// yet gets this one, milliseconds since 1970, as [Header.DeleteHorizon]; math.MaxInt64
// gives none. Readers need not know: the base timestamp holds it, and the timestamps of
// the records are stored as differences from that.
//
// b is judged as [Inspect] does, with its errors; dst is then returned as it was.
func Compact(dst, b []byte, l Limits, horizon int64, keep func(*Pick) bool) ([]byte, Left, error) {
	l = l.orDefault()
	h, err := whole(b)
	if err != nil {
		return dst, Left{}, err
	}
	if err := h.checkStored(l); err != nil {
		return dst, Left{}, err
	}
	records := b[HeaderSize:]
	if h.Codec() != None {
		s := takeScratch()
		defer s.release()
		if records, err = s.inflate(h.Codec(), records, l.MaxInflatedBytes); err != nil {
			return dst, Left{}, err
		}
	}
	kept := takeScratch() // holds the records that stay
	defer kept.release()
	left, err := h.choose(records, l, keep, kept)
	if err != nil {
		return dst, Left{}, err
	}
	_, marked := h.DeleteHorizon()
	mark := left.Tombstones > 0 && !marked && horizon != math.MaxInt64
	switch {
	case left.Count == 0:
		left.Changed = true
		return dst, left, nil
	case left.Count == h.Count && !mark:
		return append(dst, b...), left, nil
	}
	left.Changed = true
	if mark {
		left.setDeleteHorizon(horizon, kept)
	}
	return left.seal(dst, kept.buf)
}

// choose walks the records, checks them, and gathers those that stay in kept.
func (h Header) choose(records []byte, l Limits, keep func(*Pick) bool, kept *scratch) (Left, error) {
	left := Left{LastOffset: h.BaseOffset - 1}
	var pick Pick
	kept.buf = kept.buf[:0]
	info, err := h.walk(records, l, func(r *rawRecord, t int64, encoded []byte) {
		if pick = h.pick(r, t); !keep(&pick) {
			return
		}
		kept.buf = append(kept.buf, encoded...)
		left.see(r, t)
		left.LastOffset = pick.Offset
		if pick.Tombstone {
			left.Tombstones++
		}
	})
	if err != nil {
		return Left{}, err
	}
	count, largest := left.Count, left.MaxTimestamp
	left.Header, left.InflatedBytes = info.Header, len(kept.buf)
	left.Count = count
	if !h.AppendTime() && count > 0 {
		left.MaxTimestamp = largest
	}
	return left, nil
}

// setDeleteHorizon makes horizon the base timestamp, and the records in kept say their
// timestamps as differences from it. With append time those differences mean nothing.
func (left *Left) setDeleteHorizon(horizon int64, kept *scratch) {
	shift := left.BaseTimestamp - horizon
	left.Attributes |= bitDeleteHorizon
	left.BaseTimestamp = horizon
	if left.AppendTime() {
		return
	}
	moved := make([]byte, 0, len(kept.buf)+6*int(left.Count))
	for rest := kept.buf; len(rest) > 0; {
		size, n := binary.Varint(rest)
		record := rest[n:][:size]
		rest = rest[n+int(size):]
		delta, width := binary.Varint(record[1:])
		delta += shift
		moved = binary.AppendVarint(moved, size+int64(varintSize(delta)-width))
		moved = append(moved, record[0])
		moved = binary.AppendVarint(moved, delta)
		moved = append(moved, record[1+width:]...)
	}
	kept.buf, left.InflatedBytes = moved, len(moved)
}

// seal appends the batch with these records.
func (left *Left) seal(dst, records []byte) ([]byte, Left, error) {
	at := len(dst)
	var header [HeaderSize]byte
	out, err := appendDeflated(append(dst, header[:]...), left.Codec(), records)
	if err != nil {
		return dst, Left{}, err
	}
	size := len(out) - at
	if size > math.MaxInt32 {
		return dst, Left{}, fmt.Errorf("%w: %d bytes: a batch ends at %d", ErrTooLarge, size, math.MaxInt32)
	}
	left.Length = int32(size - framePrefix)
	left.put(out[at:])
	putCRC(out[at:])
	left.CRC = binary.BigEndian.Uint32(out[at+atCRC:])
	return out, *left, nil
}
