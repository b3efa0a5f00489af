package metadata

import (
	"fmt"
	"slices"
	"sync"
)

const (
	viewClosed byte = 1 << iota
	viewFence       // of a delta: the fencing token follows
	viewSwaps       // of a whole view: the count of swaps follows

	viewFlags  = viewClosed | viewSwaps
	deltaFlags = viewClosed | viewFence
)

// Encode writes a view, but for its partition, for another gateway.
func (v *View) Encode() []byte {
	var body encoder
	var y dictionary
	flags := byte(0)
	if v.Closed {
		flags |= viewClosed
	}
	if v.Swaps > 0 {
		flags |= viewSwaps
	}
	body.byte(flags)
	body.uint(v.Stamp.Epoch)
	body.uint(v.Stamp.Sequence)
	body.uint(uint64(v.Start))
	body.uint(uint64(v.Next))
	body.uint(uint64(v.Bytes))
	if v.Swaps > 0 {
		body.uint(v.Swaps)
	}
	body.text(v.Fence)
	body.uint(uint64(len(v.Levels)))
	for _, children := range v.Levels {
		encodeChildren(&body, children)
	}
	encodeEntries(&body, &y, v.Tail, Entry{})
	return assemble(&y, &body)
}

// assemble puts format and dictionary before what names it.
func assemble(y *dictionary, body *encoder) []byte {
	e := encoder{b: make([]byte, 0, len(body.b)+32*len(y.list)+8)}
	e.byte(formatV1)
	y.encode(&e)
	e.raw(body.b)
	return e.b
}

// DecodeView reads what Encode wrote. ErrCorrupt when it is damaged, of a newer format,
// or its index does not end where the log does.
func DecodeView(id PartitionID, data []byte) (*View, error) {
	d := &decoder{b: data}
	d.format()
	gates := decodeDictionary(d)
	flags := d.byte()
	v := &View{Partition: id, Closed: flags&viewClosed != 0, Stamp: Stamp{d.uint(), d.uint()},
		Start: d.offset(), Next: d.offset(), Bytes: d.offset()}
	if flags&viewSwaps != 0 {
		v.Swaps = d.uint()
	}
	v.Fence = d.text()
	v.Epoch = v.Stamp.Epoch
	if d.err == nil && (flags&^viewFlags != 0 || v.Next < v.Start) {
		d.fail(fmt.Sprintf("flags %x, the log goes from %d to %d", flags, v.Start, v.Next))
	}
	levels := d.count(1)
	if levels > maxLevels {
		d.fail("the tree is too high")
	}
	for range levels {
		v.Levels = append(v.Levels, decodeChildren(d))
	}
	v.Tail = decodeEntries(d, gates, Entry{})
	if d.err == nil && (!tiles(v.Tail, v.paged(), v.Next) || !v.ascends()) {
		d.fail(fmt.Sprintf("the index does not tile the log up to %d", v.Next))
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("view of %s: %w", id, err)
	}
	v.Tail = v.Tail[:len(v.Tail):len(v.Tail)]
	return v, nil
}

// tiles says whether entries follow each other from one offset to another.
func tiles(entries []Entry, from, to int64) bool {
	for i := range entries {
		if entries[i].First != from || entries[i].End == from {
			return false
		}
		from = entries[i].End
	}
	return from == to
}

// ascends says whether the levels, highest first, lie in offset order before the tail.
func (v *View) ascends() bool {
	last := int64(-1)
	for level := len(v.Levels) - 1; level >= 0; level-- {
		if n := len(v.Levels[level]); n > 0 {
			if v.Levels[level][0].First <= last {
				return false
			}
			last = v.Levels[level][n-1].First
		}
	}
	return last < v.paged()
}

// Since returns what a reader that has the view was needs to see what v shows: see
// [View.Follow]. ok is false where that cannot be said: was is of another epoch or newer,
// or the entries after it lie in pages already. Send the whole view then.
func (v *View) Since(was *View) (delta []byte, ok bool) {
	if was == nil || was.Partition != v.Partition || was.Stamp.Epoch != v.Stamp.Epoch || !v.Newer(was) || was.Swaps != v.Swaps ||
		was.Start > v.Start || was.Next > v.Next || was.Next < v.paged() {
		return nil, false
	}
	entries := v.Tail[findEntry(v.Tail, was.Next):]
	var body encoder
	var y dictionary
	flags := byte(0)
	if v.Closed {
		flags |= viewClosed
	}
	if v.Fence != was.Fence {
		flags |= viewFence
	}
	body.byte(flags)
	body.uint(was.Stamp.Epoch)
	body.uint(was.Stamp.Sequence)
	body.uint(uint64(was.Next))
	body.uint(v.Stamp.Sequence - was.Stamp.Sequence)
	body.uint(uint64(v.Start))
	body.uint(uint64(v.Next - was.Next))
	body.uint(uint64(v.Bytes))
	if flags&viewFence != 0 {
		body.text(v.Fence)
	}
	encodeEntries(&body, &y, entries, Entry{End: was.Next})
	return assemble(&y, &body), true
}

// Follow returns the view that a delta makes of v, which stays as it is. Levels are those of
// v, and so is Tail from the log start on: it grows until a whole view comes. ErrIndexMoved
// when the delta follows on another view, ErrCorrupt when it cannot be read.
func (v *View) Follow(delta []byte) (*View, error) {
	d := &decoder{b: delta}
	d.format()
	gates := decodeDictionary(d)
	flags := d.byte()
	base, baseNext := Stamp{d.uint(), d.uint()}, d.offset()
	if d.err == nil && (base != v.Stamp || baseNext != v.Next) {
		return nil, fmt.Errorf("%w: a change of %s follows on %s with end %d, known is %s with end %d",
			ErrIndexMoved, v.Partition, base, baseNext, v.Stamp, v.Next)
	}
	next := *v
	next.Stamp.Sequence += d.uint()
	next.Start = d.offset()
	next.Next += d.offset()
	next.Bytes = d.offset()
	next.Closed = flags&viewClosed != 0
	if flags&viewFence != 0 {
		next.Fence = d.text()
	}
	entries := decodeEntries(d, gates, Entry{End: v.Next})
	if d.err == nil && (flags&^deltaFlags != 0 || next.Stamp.Sequence < v.Stamp.Sequence || next.Start < v.Start || next.Next < v.Next ||
		next.Start > next.Next || !tiles(entries, v.Next, next.Next)) {
		d.fail(fmt.Sprintf("flags %x, from %s %d..%d to %s %d..%d", flags, v.Stamp, v.Start, v.Next, next.Stamp, next.Start, next.Next))
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("change of %s: %w", v.Partition, err)
	}
	next.Tail, next.room = v.room.extend(v.Tail, entries)
	next.Tail = next.Tail[findEntry(next.Tail, next.Start):]
	return &next, nil
}

// room is the array that the tails of views which follow on each other share, so that
// not each of them copies all of it.
type room struct {
	mu      sync.Mutex
	entries []Entry
}

// extend returns a tail with more behind it. The array is written only behind its last
// entry, which no view shows yet: a second view that follows on the same one gets its own.
func (r *room) extend(tail, more []Entry) ([]Entry, *room) {
	if len(more) == 0 {
		return tail, r
	}
	if len(tail) == 0 || r == nil {
		return newRoom(tail, more)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.entries)
	if &r.entries[n-1] != &tail[len(tail)-1] {
		return newRoom(tail, more)
	}
	r.entries = append(r.entries[n-len(tail):], more...)
	return slices.Clip(r.entries), r
}

func newRoom(tail, more []Entry) ([]Entry, *room) {
	r := &room{entries: slices.Concat(tail, more)}
	return slices.Clip(r.entries), r
}
