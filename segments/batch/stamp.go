package batch

import "encoding/binary"

// SetBaseOffset gives the batch at the front of b its place in the log, in place.
// Neither field is covered by the CRC. b must hold at least a header.
func SetBaseOffset(b []byte, offset int64, leaderEpoch int32) {
	_ = b[HeaderSize-1]
	binary.BigEndian.PutUint64(b[atBaseOffset:], uint64(offset))
	binary.BigEndian.PutUint32(b[atLeaderEpoch:], uint32(leaderEpoch))
}

// SetAppendTime makes ms, milliseconds since 1970, the timestamp of all records, in
// place: attributes, MaxTimestamp and CRC change, the records do not. b must be one
// batch that [Validate] accepted.
func SetAppendTime(b []byte, ms int64) {
	_ = b[HeaderSize-1]
	b[atAttributes+1] |= bitAppendTime
	binary.BigEndian.PutUint64(b[atMaxTimestamp:], uint64(ms))
	putCRC(b)
}

// Rewrite returns a copy of the batch b in which each record without a timestamp has
// now, milliseconds since 1970. All else stays: codec, producer fields, base offset,
// leader epoch, the other timestamps. It costs a decode and a build, and with
// another compressor than the producer's the copy may be somewhat larger than b.
//
// Errors are those of [Validate], by which b is judged first.
func Rewrite(b []byte, l Limits, now int64) ([]byte, error) {
	info, err := Validate(b, l)
	if err != nil {
		return nil, err
	}
	if info.AppendTime() {
		out := append([]byte(nil), b...)
		if info.Untimed {
			SetAppendTime(out, now)
		}
		return out, nil
	}
	builder := NewBuilder(info.Codec())
	for r, err := range Records(b, l) {
		if err != nil {
			return nil, err
		}
		if r.Timestamp == NoTimestamp {
			r.Timestamp = now
		}
		if err := builder.Append(r); err != nil {
			return nil, err
		}
	}
	out, err := builder.Build(BuildOptions{info.ProducerID, info.ProducerEpoch, info.BaseSequence})
	if err != nil {
		return nil, err
	}
	SetBaseOffset(out, info.BaseOffset, info.LeaderEpoch)
	return out, nil
}
