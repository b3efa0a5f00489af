package metadata

import (
	"fmt"
	"sort"
)

const (
	// MaxPoints bounds the chunks that an index entry tells apart.
	MaxPoints = 32
	// flagClean in an entry's count of points says that the entry is clean.
	flagClean = 0x40
	// maxLevels bounds the tree's height: 256^5 entries are more than fit an int64 of bytes.
	maxLevels = 5
)

// Variables, so that tests reach high trees and cut chunks with few records.
var (
	// minChunk is the fewest bytes that a chunk of an entry holds (but the last):
	// small spans get no points, so that a commit stays small.
	minChunk int64 = 64 << 10
	// fanOut is the most children of a tree node, and the most entries of a page.
	fanOut = 256
)

// Entry is one index entry: a run of record batches of one partition that lie
// side by side in one segment and were given offsets together.
type Entry struct {
	First, End   int64 // offsets, End exclusive
	Records      int64 // fewer than End-First after key compaction
	Gateway      GatewayID
	Number       uint64 // of the segment, with Gateway
	Position     int64  // in the object, bytes
	Length       int64  // bytes
	MinTimestamp int64  // ms
	MaxTimestamp int64  // ms
	// LastTimestamp is that of the last record (ms), so that the record before an
	// answer is dated without a read.
	LastTimestamp int64
	// Points divide the entry into chunks; empty: one chunk.
	Points []Point
	// Clean: key compaction has compared its records with all later ones up to the end of the
	// entries that are clean, from the log start on.
	Clean bool
	// Sum is the content sum: the batches' hashes added up mod 2^64.
	Sum uint64
}

// dense says that no offset of the entry is missing, so that its last record lies right before its end.
func (e *Entry) dense() bool { return e.Records == e.End-e.First }

// Point is where a chunk of an entry begins. MaxTimestamp and LastTimestamp are
// those of the chunk alone. (A running maximum would do until the log start moves
// into the entry; then records that are gone would hide where the answer lies.)
type Point struct {
	Offset        int64
	Position      int64 // in the object
	MaxTimestamp  int64
	LastTimestamp int64
}

// Chunk is a bounded byte range of a segment with whole batches in it.
type Chunk struct {
	Gateway          GatewayID
	Number           uint64
	Position, Length int64
	First, End       int64 // offsets
	MaxTimestamp     int64
	LastTimestamp    int64
	// Sparse: offsets are missing, as key compaction leaves them. What is stored has its real base offsets.
	Sparse bool
}

// Chunks returns the entry's chunks in order; none when no record is left.
func (e *Entry) Chunks() []Chunk {
	if e.Length == 0 {
		return nil
	}
	sparse := !e.dense()
	if len(e.Points) == 0 {
		return []Chunk{{e.Gateway, e.Number, e.Position, e.Length, e.First, e.End, e.MaxTimestamp, e.LastTimestamp, sparse}}
	}
	chunks := make([]Chunk, len(e.Points))
	for i, p := range e.Points {
		end, limit := e.End, e.Position+e.Length
		if i+1 < len(e.Points) {
			end, limit = e.Points[i+1].Offset, e.Points[i+1].Position
		}
		chunks[i] = Chunk{e.Gateway, e.Number, p.Position, limit - p.Position, p.Offset, end, p.MaxTimestamp, p.LastTimestamp, sparse}
	}
	return chunks
}

// Child describes a page, or a tree node, to its parent: what lies from First up
// to the next child's First.
type Child struct {
	First         int64
	MinTimestamp  int64
	MaxTimestamp  int64
	LastTimestamp int64
	Bytes         int64
	Entries       int64
	Sum           uint64
	// Row tells the row of a page or node that a swap wrote from others that begin at the same
	// offset; 0 for one that a checkpoint wrote.
	Row uint64
}

// RowPlace names the row of a page or node within its level.
type RowPlace struct {
	First int64
	Row   uint64 // see Child
}

// place names the child's row.
func (c *Child) place() RowPlace { return RowPlace{c.First, c.Row} }

// summarize describes entries as one child.
func summarize(entries []Entry) Child {
	c := child(&entries[0])
	for i := range entries[1:] {
		c.add(child(&entries[1+i]))
	}
	return c
}

// child describes one entry.
func child(e *Entry) Child {
	return Child{First: e.First, MinTimestamp: e.MinTimestamp, MaxTimestamp: e.MaxTimestamp, LastTimestamp: e.LastTimestamp,
		Bytes: e.Length, Entries: 1, Sum: e.Sum}
}

// add takes what follows into the child. What has no bytes has no records, and no timestamps.
func (c *Child) add(o Child) {
	switch {
	case o.Bytes == 0:
	case c.Bytes == 0:
		c.MinTimestamp, c.MaxTimestamp, c.LastTimestamp = o.MinTimestamp, o.MaxTimestamp, o.LastTimestamp
	default:
		c.MinTimestamp, c.MaxTimestamp, c.LastTimestamp = min(c.MinTimestamp, o.MinTimestamp), max(c.MaxTimestamp, o.MaxTimestamp), o.LastTimestamp
	}
	c.Bytes += o.Bytes
	c.Entries += o.Entries
	c.Sum += o.Sum
}

// merge describes children as one child of the level above.
func merge(children []Child) Child {
	c := children[0]
	c.Row = 0
	for _, o := range children[1:] {
		c.add(o)
	}
	return c
}

// newEntry makes the index entry of batches that lie side by side, the first of
// which gets the offset base.
func newEntry(ref *Reference, batches []Batch, base int64) Entry {
	return makeEntry(ref.Uploader, ref.Number, batches, base, nil)
}

// MergedEntry makes the index entry of batches that were moved to a segment where they lie side by side, for
// offsets first up to end. Each keeps its base offset: offsets has them, rising. What lies between batches is gone.
func MergedEntry(uploader GatewayID, number uint64, batches []Batch, offsets []int64, first, end int64) Entry {
	e := makeEntry(uploader, number, batches, first, offsets)
	e.End = end
	return e
}

// EmptyEntry is the index entry of offsets of which no record is left.
func EmptyEntry(first, end int64) Entry {
	return Entry{First: first, End: end, MinTimestamp: NoTimestamp, MaxTimestamp: NoTimestamp, LastTimestamp: NoTimestamp}
}

// makeEntry makes an entry; nil offsets: they follow each other.
func makeEntry(uploader GatewayID, number uint64, batches []Batch, base int64, offsets []int64) Entry {
	first, last := &batches[0], &batches[len(batches)-1]
	e := Entry{
		First: base, Gateway: uploader, Number: number, Position: first.Position,
		Length: last.Position + int64(last.Size) - first.Position, LastTimestamp: last.LastTimestamp,
		MinTimestamp: first.MinTimestamp, MaxTimestamp: first.MaxTimestamp,
	}
	chunk := max(e.Length/MaxPoints+1, minChunk)
	offset := base
	for i := range batches {
		b := &batches[i]
		if offsets != nil {
			offset = offsets[i]
		}
		if n := len(e.Points); n == 0 || (b.Position-e.Points[n-1].Position >= chunk && n < MaxPoints) {
			e.Points = append(e.Points, Point{Offset: offset, Position: b.Position, MaxTimestamp: b.MaxTimestamp})
		}
		p := &e.Points[len(e.Points)-1]
		p.MaxTimestamp, p.LastTimestamp = max(p.MaxTimestamp, b.MaxTimestamp), b.LastTimestamp
		e.MinTimestamp, e.MaxTimestamp = min(e.MinTimestamp, b.MinTimestamp), max(e.MaxTimestamp, b.MaxTimestamp)
		e.Sum += batchSum(b, offset)
		e.Records += int64(b.Records)
		offset += int64(b.Offsets)
	}
	e.End = offset
	e.Points[0].Offset = base // what is missing before the first batch belongs to it
	if len(e.Points) == 1 {
		e.Points = nil
	}
	return e
}

// encodeEntries writes entries as differences from their neighbours, the first as
// that from seed.
func encodeEntries(e *encoder, y *dictionary, entries []Entry, seed Entry) {
	e.uint(uint64(len(entries)))
	last := seed
	for i := range entries {
		n := &entries[i]
		e.int(n.First - last.End)
		e.uint(uint64(n.End - n.First))
		e.int(n.Records - (n.End - n.First))
		e.uint(y.number(n.Gateway))
		e.int(int64(n.Number - last.Number))
		e.uint(uint64(n.Position))
		e.uint(uint64(n.Length))
		e.int(n.MinTimestamp - last.MinTimestamp)
		e.uint(uint64(n.MaxTimestamp - n.MinTimestamp))
		e.uint(uint64(n.MaxTimestamp - n.LastTimestamp))
		e.fixed64(n.Sum)
		points := uint64(len(n.Points))
		if n.Clean {
			points |= flagClean
		}
		e.uint(points)
		n.encodePoints(e)
		last = *n
	}
}

func (n *Entry) encodePoints(e *encoder) {
	offset, position := n.First, n.Position
	for _, p := range n.Points {
		e.uint(uint64(p.Offset - offset))
		e.uint(uint64(p.Position - position))
		e.uint(uint64(n.MaxTimestamp - p.MaxTimestamp))
		e.uint(uint64(p.MaxTimestamp - p.LastTimestamp))
		offset, position = p.Offset, p.Position
	}
}

func decodeEntries(d *decoder, gateways []GatewayID, seed Entry) []Entry {
	count := d.count(18)
	if count == 0 {
		return nil
	}
	entries := make([]Entry, count)
	last := seed
	for i := range entries {
		n := &entries[i]
		n.First = last.End + d.int()
		n.End = n.First + int64(d.uint())
		n.Records = n.End - n.First + d.int()
		n.Gateway = lookupGateway(d, gateways)
		n.Number = last.Number + uint64(d.int())
		n.Position = int64(d.uint())
		n.Length = int64(d.uint())
		n.MinTimestamp = last.MinTimestamp + d.int()
		n.MaxTimestamp = n.MinTimestamp + int64(d.uint())
		n.LastTimestamp = n.MaxTimestamp - int64(d.uint())
		n.Sum = d.fixed64()
		n.decodePoints(d, d.uint())
		if d.err == nil && !n.plausible(last.End) {
			d.fail(fmt.Sprintf("index entry %d is out of order", i))
		}
		if d.err != nil {
			return nil
		}
		last = *n
	}
	return entries
}

// decodePoints reads what encodePoints wrote; points is how many, with [flagClean].
func (n *Entry) decodePoints(d *decoder, points uint64) {
	n.Clean = points&flagClean != 0
	if points &^= flagClean; points > MaxPoints || points > uint64(len(d.b)/4) {
		d.fail("an index entry has too many points")
	} else if points > 0 {
		n.Points = make([]Point, points)
		offset, position := n.First, n.Position
		for j := range n.Points {
			p := &n.Points[j]
			p.Offset = offset + int64(d.uint())
			p.Position = position + int64(d.uint())
			p.MaxTimestamp = n.MaxTimestamp - int64(d.uint())
			p.LastTimestamp = p.MaxTimestamp - int64(d.uint())
			offset, position = p.Offset, p.Position
		}
	}
}

// What a packed entry leaves out, since it is as the one before has it.
const (
	packedFollows byte = 1 << iota // begins where the one before ends
	packedDense                    // no offset is missing
	packedOffsets                  // as many offsets as the one before
	packedNext                     // in the next segment of the same gateway
	packedLength                   // as many bytes as the one before
	packedMoment                   // all its timestamps are the same
	packedWhole                    // neither points nor clean
	packedUnknown                  // a newer varve's
)

// shape says what a packed entry leaves out.
func (n *Entry) shape(last *Entry) (shape byte) {
	set := func(bit byte, holds bool) {
		if holds {
			shape |= bit
		}
	}
	set(packedFollows, n.First == last.End)
	set(packedDense, n.dense())
	set(packedOffsets, n.End-n.First == last.End-last.First)
	set(packedNext, n.Gateway == last.Gateway && n.Number == last.Number+1)
	set(packedLength, n.Length == last.Length)
	set(packedMoment, n.MinTimestamp == n.MaxTimestamp && n.LastTimestamp == n.MaxTimestamp)
	set(packedWhole, len(n.Points) == 0 && !n.Clean)
	return shape
}

// packEntries writes entries as encodeEntries does, and leaves out of each what the one before says: of
// partitions that many share, two fifths. They fill pages and lease rows, which are paid for by the KiB.
func packEntries(e *encoder, y *dictionary, entries []Entry) {
	e.uint(uint64(len(entries)))
	var last Entry
	for i := range entries {
		n := &entries[i]
		shape := n.shape(&last)
		e.byte(shape)
		if shape&packedFollows == 0 {
			e.int(n.First - last.End)
		}
		if shape&packedOffsets == 0 {
			e.uint(uint64(n.End - n.First))
		}
		if shape&packedDense == 0 {
			e.int(n.Records - (n.End - n.First))
		}
		if shape&packedNext == 0 {
			e.uint(y.number(n.Gateway))
			e.int(int64(n.Number - last.Number))
		}
		e.uint(uint64(n.Position))
		if shape&packedLength == 0 {
			e.uint(uint64(n.Length))
		}
		e.int(n.MinTimestamp - last.MinTimestamp)
		if shape&packedMoment == 0 {
			e.uint(uint64(n.MaxTimestamp - n.MinTimestamp))
			e.uint(uint64(n.MaxTimestamp - n.LastTimestamp))
		}
		e.fixed64(n.Sum)
		if shape&packedWhole == 0 {
			points := uint64(len(n.Points))
			if n.Clean {
				points |= flagClean
			}
			e.uint(points)
			n.encodePoints(e)
		}
		last = *n
	}
}

// unpackEntries reads what packEntries wrote.
func unpackEntries(d *decoder, gateways []GatewayID) []Entry {
	count := d.count(11)
	if count == 0 {
		return nil
	}
	entries := make([]Entry, count)
	var last Entry
	for i := range entries {
		n := &entries[i]
		n.unpack(d, &last, gateways)
		if d.err == nil && !n.plausible(last.End) {
			d.fail(fmt.Sprintf("index entry %d is out of order", i))
		}
		if d.err != nil {
			return nil
		}
		last = *n
	}
	return entries
}

func (n *Entry) unpack(d *decoder, last *Entry, gateways []GatewayID) {
	shape := d.byte()
	if shape&packedUnknown != 0 {
		d.fail("an index entry of unknown shape: a newer varve wrote it")
	}
	n.First = last.End
	if shape&packedFollows == 0 {
		n.First += d.int()
	}
	offsets := last.End - last.First
	if shape&packedOffsets == 0 {
		offsets = int64(d.uint())
	}
	n.End, n.Records = n.First+offsets, offsets
	if shape&packedDense == 0 {
		n.Records += d.int()
	}
	n.Gateway, n.Number = last.Gateway, last.Number+1
	if shape&packedNext == 0 {
		n.Gateway = lookupGateway(d, gateways)
		n.Number = last.Number + uint64(d.int())
	}
	n.Position, n.Length = int64(d.uint()), last.Length
	if shape&packedLength == 0 {
		n.Length = int64(d.uint())
	}
	n.MinTimestamp = last.MinTimestamp + d.int()
	n.MaxTimestamp, n.LastTimestamp = n.MinTimestamp, n.MinTimestamp
	if shape&packedMoment == 0 {
		n.MaxTimestamp = n.MinTimestamp + int64(d.uint())
		n.LastTimestamp = n.MaxTimestamp - int64(d.uint())
	}
	n.Sum = d.fixed64()
	if shape&packedWhole == 0 {
		n.decodePoints(d, d.uint())
	}
}

const (
	// maxObject is what no segment is longer than, in bytes.
	maxObject = 4 << 30
	// maxChunk is what no chunk is longer than, in bytes: a part, one of MaxPoints, of the longest segment, and one batch more.
	maxChunk = 256 << 20
)

// plausible refuses an entry that would make readers ask for bytes that cannot be, or for memory that nobody has.
func (n *Entry) plausible(after int64) bool {
	limit := n.Position + n.Length
	if n.First < after || n.End < n.First || n.Position < 0 || n.Length < 0 || limit < n.Position || limit > maxObject {
		return false
	}
	offset, position := n.First, n.Position
	for i, p := range n.Points {
		if p.Offset < offset || p.Offset > n.End || p.Position < position || p.Position > limit || p.Position-position > maxChunk ||
			i == 0 && (p.Offset != n.First || p.Position != n.Position) {
			return false
		}
		offset, position = p.Offset, p.Position
	}
	return limit-position <= maxChunk
}

func encodeChildren(e *encoder, children []Child) {
	e.uint(uint64(len(children)))
	var last Child
	for _, c := range children {
		e.uint(uint64(c.First - last.First))
		e.int(c.MinTimestamp - last.MinTimestamp)
		e.uint(uint64(c.MaxTimestamp - c.MinTimestamp))
		e.uint(uint64(c.MaxTimestamp - c.LastTimestamp))
		e.uint(uint64(c.Bytes))
		if c.Row != 0 {
			e.uint(0) // no child is without entries
			e.fixed64(c.Row)
		}
		e.uint(uint64(c.Entries))
		e.fixed64(c.Sum)
		last = c
	}
}

func decodeChildren(d *decoder) []Child {
	count := d.count(14)
	if count == 0 {
		return nil
	}
	if count > fanOut {
		d.fail("a tree node has too many children")
		return nil
	}
	children := make([]Child, count)
	var last Child
	for i := range children {
		c := &children[i]
		c.First = last.First + int64(d.uint())
		c.MinTimestamp = last.MinTimestamp + d.int()
		c.MaxTimestamp = c.MinTimestamp + int64(d.uint())
		c.LastTimestamp = c.MaxTimestamp - int64(d.uint())
		c.Bytes = int64(d.uint())
		if c.Entries = int64(d.uint()); c.Entries == 0 {
			c.Row = d.fixed64()
			c.Entries = int64(d.uint())
		}
		c.Sum = d.fixed64()
		if d.err == nil && (c.First < last.First || i > 0 && c.First == last.First || c.Bytes < 0 || c.Entries < 0) {
			d.fail(fmt.Sprintf("child %d is out of order", i))
		}
		if d.err != nil {
			return nil
		}
		last = *c
	}
	return children
}

// encodePage is the value of a page/… row.
func encodePage(entries []Entry) []byte {
	var body encoder
	var y dictionary
	packEntries(&body, &y, entries)
	var e encoder
	e.byte(formatPacked)
	y.encode(&e)
	e.raw(body.b)
	return e.b
}

func decodePage(value []byte) ([]Entry, error) {
	d := &decoder{b: value}
	d.unsign()
	packed := d.packed()
	entries := decodeIndex(d, packed, decodeDictionary(d))
	return entries, d.end()
}

// decodeIndex reads the entries of a page or a lease row.
func decodeIndex(d *decoder, packed bool, gateways []GatewayID) []Entry {
	if packed {
		return unpackEntries(d, gateways)
	}
	return decodeEntries(d, gateways, Entry{})
}

// encodeNode is the value of a tree/… row.
func encodeNode(children []Child) []byte {
	e := encoder{b: []byte{formatV1}}
	encodeChildren(&e, children)
	return e.b
}

func decodeNode(value []byte) ([]Child, error) {
	d := &decoder{b: value}
	d.unsign()
	d.format()
	children := decodeChildren(d)
	return children, d.end()
}

// findEntry returns the place of the entry that holds offset, or of the first one
// after it.
func findEntry(entries []Entry, offset int64) int {
	return sort.Search(len(entries), func(i int) bool { return entries[i].End > offset })
}
