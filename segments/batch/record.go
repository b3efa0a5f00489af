package batch

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
)

// RecordHeader is one header of a record. Keys may repeat; a nil Value is null.
type RecordHeader struct {
	Key   string
	Value []byte
}

// Record is one record. A nil Key or Value is null, which differs from empty.
type Record struct {
	Offset    int64
	Timestamp int64 // ms since 1970, or NoTimestamp
	Key       []byte
	Value     []byte
	Headers   []RecordHeader
}

// rawRecord is a record as it lies in the records of a batch. Its slices alias them.
type rawRecord struct {
	timestampDelta int64
	offsetDelta    int32
	key, value     []byte
	headerCount    int
	headers        []byte // encoded, known to parse
}

// cursor walks encoded records.
type cursor struct {
	b         []byte
	at        int
	maxRecord int
}

func (c *cursor) more() bool { return c.at < len(c.b) }

// next decodes a record into r and steps over it. It allocates only for an error,
// which is ErrInvalid or ErrTooLarge.
func (c *cursor) next(r *rawRecord) error {
	f := fields{b: c.b[c.at:]}
	size := f.varint32()
	switch {
	case f.bad || size < 0:
		return fmt.Errorf("%w: its size is not a positive varint", ErrInvalid)
	case int(size) > c.maxRecord:
		return fmt.Errorf("%w: %d bytes are over the limit of %d for a record", ErrTooLarge, size, c.maxRecord)
	case int(size) > len(f.b):
		return fmt.Errorf("%w: its size is %d, but %d bytes are left", ErrInvalid, size, len(f.b))
	}
	c.at = len(c.b) - len(f.b) + int(size)
	f.b = f.b[:size:size]

	f.skip(1) // attributes: no bit is in use
	r.timestampDelta = f.varint()
	r.offsetDelta = f.varint32()
	r.key = f.nullable()
	r.value = f.nullable()
	r.headerCount = int(f.varint32())
	r.headers = f.b
	if r.headerCount < 0 {
		f.fail()
	}
	// A count that lies ends with the bytes: a header takes two or more.
	for n := r.headerCount; n > 0 && !f.bad; n-- {
		f.headerKey()
		f.nullable()
	}
	if f.bad {
		return fmt.Errorf("%w: its fields do not fit its size of %d", ErrInvalid, size)
	}
	if len(f.b) > 0 {
		return fmt.Errorf("%w: %d of its %d bytes follow the last field", ErrInvalid, len(f.b), size)
	}
	return nil
}

// headerList decodes the headers into a slice of their own; nil if there are none.
func (r *rawRecord) headerList() []RecordHeader {
	if r.headerCount == 0 {
		return nil
	}
	f := fields{b: r.headers}
	list := make([]RecordHeader, r.headerCount)
	for i := range list {
		list[i] = RecordHeader{Key: string(f.headerKey()), Value: f.nullable()}
	}
	return list
}

// fields takes values off the front of b. Once something does not parse, bad is
// set and all that follows is zero.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) skip(n int) {
	if len(f.b) < n {
		f.fail()
		return
	}
	f.b = f.b[n:]
}

func (f *fields) fail() {
	f.b, f.bad = f.b[:0], true
}

func (f *fields) varint() int64 {
	if len(f.b) > 0 && f.b[0] < 0x80 { // most are one byte
		u := f.b[0]
		f.b = f.b[1:]
		return int64(u>>1) ^ -int64(u&1)
	}
	v, n := binary.Varint(f.b)
	if n <= 0 {
		f.fail()
		return 0
	}
	f.b = f.b[n:]
	return v
}

func (f *fields) varint32() int32 {
	v := f.varint()
	if v < math.MinInt32 || v > math.MaxInt32 {
		f.fail()
		return 0
	}
	return int32(v)
}

// nullable takes bytes behind their size, or nil for the size -1.
func (f *fields) nullable() []byte {
	n := f.varint32()
	if n == -1 {
		return nil
	}
	return f.take(n)
}

func (f *fields) headerKey() []byte { return f.take(f.varint32()) }

func (f *fields) take(n int32) []byte {
	if n < 0 || int(n) > len(f.b) {
		f.fail()
		return nil
	}
	v := f.b[:n:n]
	f.b = f.b[n:]
	return v
}

// timestampOf returns the timestamp of a record with that delta. The sum wraps around
// as it does in every library: from -1, none, to the last timestamp is one step more
// than a delta holds.
func (h Header) timestampOf(delta int64) int64 {
	if h.AppendTime() {
		return h.MaxTimestamp
	}
	return h.BaseTimestamp + delta
}

// recordSize is the encoded size of a record without the size that precedes it.
func recordSize(r *Record, timestampDelta int64, offsetDelta int32) int {
	n := 1 + varintSize(timestampDelta) + varintSize(int64(offsetDelta)) +
		nullableSize(r.Key) + nullableSize(r.Value) + varintSize(int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		n += varintSize(int64(len(h.Key))) + len(h.Key) + nullableSize(h.Value)
	}
	return n
}

// appendRecord encodes a record whose recordSize is size.
func appendRecord(b []byte, r *Record, size int, timestampDelta int64, offsetDelta int32) []byte {
	b = binary.AppendVarint(b, int64(size))
	b = append(b, 0) // attributes
	b = binary.AppendVarint(b, timestampDelta)
	b = binary.AppendVarint(b, int64(offsetDelta))
	b = appendNullable(b, r.Key)
	b = appendNullable(b, r.Value)
	b = binary.AppendVarint(b, int64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		b = binary.AppendVarint(b, int64(len(h.Key)))
		b = append(b, h.Key...)
		b = appendNullable(b, h.Value)
	}
	return b
}

func appendNullable(b, v []byte) []byte {
	if v == nil {
		return binary.AppendVarint(b, -1)
	}
	return append(binary.AppendVarint(b, int64(len(v))), v...)
}

func nullableSize(v []byte) int {
	if v == nil {
		return varintSize(-1)
	}
	return varintSize(int64(len(v))) + len(v)
}

func varintSize(v int64) int {
	zigzag := uint64(v)<<1 ^ uint64(v>>63)
	return (bits.Len64(zigzag|1) + 6) / 7
}
