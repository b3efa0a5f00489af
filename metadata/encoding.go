package metadata

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Rows that are written often are encoded by hand: a format byte, then unsigned
// and zigzag varints, with what repeats given as a difference. docs/metadata.md
// has every row. A decoder keeps its first error, so that callers check once; it
// bounds every length before it allocates.

const (
	formatV1 = 1
	// formatSigned is that of a page or node that was written for a swap: see signRow.
	formatSigned = 2
	// formatPacked is that of lease rows and pages whose index entries say only what differs from the
	// one before.
	formatPacked = 3
)

type encoder struct{ b []byte }

func (e *encoder) byte(v byte)      { e.b = append(e.b, v) }
func (e *encoder) uint(v uint64)    { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) int(v int64)      { e.b = binary.AppendVarint(e.b, v) }
func (e *encoder) fixed64(v uint64) { e.b = binary.BigEndian.AppendUint64(e.b, v) }
func (e *encoder) raw(v []byte)     { e.b = append(e.b, v...) }
func (e *encoder) text(v string)    { e.uint(uint64(len(v))); e.b = append(e.b, v...) }

type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: row: %s", ErrCorrupt, what)
	}
	d.b = nil
}

func (d *decoder) format() {
	if v := d.byte(); d.err == nil && v != formatV1 {
		d.fail(fmt.Sprintf("format %d is not known here: a newer varve wrote it", v))
	}
}

// packed reads the format of a row that has index entries: whether they are packed.
func (d *decoder) packed() bool {
	if len(d.b) > 0 && d.b[0] == formatPacked {
		d.byte()
		return true
	}
	d.format()
	return false
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("ends early")
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) fixed64() uint64 {
	if len(d.b) < 8 {
		d.fail("ends early")
		return 0
	}
	v := binary.BigEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) raw(n int) []byte {
	if n < 0 || n > len(d.b) {
		d.fail("ends early")
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) text() string {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("text is longer than its row")
		return ""
	}
	return string(d.raw(int(n)))
}

// int32 reads a number from 0 to 2^31-1, offset one from 0 to 2^63-1.
func (d *decoder) int32() int32  { return int32(d.below(math.MaxInt32)) }
func (d *decoder) offset() int64 { return int64(d.below(math.MaxInt64)) }

func (d *decoder) below(limit uint64) uint64 {
	v := d.uint()
	if v > limit {
		d.fail(fmt.Sprintf("%d where %d is the most", v, limit))
		return 0
	}
	return v
}

// within reads a signed number between low and high.
func (d *decoder) within(low, high int64) int64 {
	v := d.int()
	if v < low || v > high {
		d.fail(fmt.Sprintf("%d where only %d to %d can be", v, low, high))
		return 0
	}
	return v
}

// count reads how many items follow, each of at least size bytes.
func (d *decoder) count(size int) int {
	n := d.uint()
	if n > uint64(len(d.b)/size) {
		d.fail("more items than the row can hold")
		return 0
	}
	return int(n)
}

// end fails when bytes are left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.fail(fmt.Sprintf("%d bytes left over", len(d.b)))
	}
	return d.err
}

// dictionary gives strings that repeat within a row a small number.
type dictionary struct {
	index map[GatewayID]uint64
	list  []GatewayID
}

func (y *dictionary) number(id GatewayID) uint64 {
	if n, ok := y.index[id]; ok {
		return n
	}
	if y.index == nil {
		y.index = make(map[GatewayID]uint64, 4)
	}
	n := uint64(len(y.list))
	y.index[id] = n
	y.list = append(y.list, id)
	return n
}

func (y *dictionary) encode(e *encoder) {
	e.uint(uint64(len(y.list)))
	for _, id := range y.list {
		e.text(string(id))
	}
}

func decodeDictionary(d *decoder) []GatewayID {
	list := make([]GatewayID, d.count(1))
	for i := range list {
		list[i] = GatewayID(d.text())
	}
	return list
}

func lookupGateway(d *decoder, list []GatewayID) GatewayID {
	n := d.uint()
	if n >= uint64(len(list)) {
		d.fail("names a gateway that its row does not list")
		return ""
	}
	return list[n]
}
