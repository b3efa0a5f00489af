package metadata

import (
	"fmt"
	"time"
)

// MaxJournalEntry is the size in bytes at which a cycle's entry is split.
const MaxJournalEntry = 256 << 10

// MaxReferenceBatches bounds the batches of one reference: its change is never split,
// and fits a row whatever the verdicts on them are. Seal a segment before a partition
// has more batches in it.
const MaxReferenceBatches = 4096

// rowKind tells the rows of a journal apart. The numbers are stored.
type rowKind byte

const (
	rowOpening rowKind = 1
	rowEntry   rowKind = 2
	rowSeal    rowKind = 3
)

// JournalRow is a decoded row of a journal.
type JournalRow struct {
	Sequence uint64
	Seal     bool
	SealedBy GatewayID // of a seal
	Time     int64     // ms, of the writer's wall clock: for people, decides nothing
	Changes  []Change
	Size     int // bytes of the row's value

	packed *packedRow // instead of Changes
}

// EntryBuilder gathers the changes of one journal entry.
type EntryBuilder struct {
	body   encoder
	gates  dictionary
	topics map[TopicID]uint64
	list   []TopicID
	count  int
	base   int64 // ms: timestamps are stored as differences from it
}

// NewEntryBuilder returns an empty entry; now is for people who read the journal.
func NewEntryBuilder(now time.Time) *EntryBuilder {
	return &EntryBuilder{base: now.UnixMilli()}
}

// Len is the number of changes, Size about how many bytes they will take.
func (b *EntryBuilder) Len() int  { return b.count }
func (b *EntryBuilder) Size() int { return len(b.body.b) + 16*len(b.list) + 24*len(b.gates.list) + 16 }

// Fits says whether the change can still go into this entry. The first always fits.
func (b *EntryBuilder) Fits(c *Change) bool {
	if b.count == 0 {
		return true
	}
	return b.Size()+b.measure(c) <= MaxJournalEntry
}

// measure bounds from above what a change takes.
func (b *EntryBuilder) measure(c *Change) int {
	size := 96 + len(c.Fence) + 16*len(c.runs) + 40*len(c.producers) + len(c.Uploader)
	if c.swap != nil {
		size += 24 + 64*len(c.swap.children)
	}
	for i := range c.Entries {
		size += 112 + len(c.Entries[i].Gateway) + 40*len(c.Entries[i].Points)
	}
	return size
}

// Add appends a change.
func (b *EntryBuilder) Add(c *Change) {
	e := &b.body
	b.count++
	e.byte(byte(c.Kind))
	topic, ok := b.topics[c.Partition.Topic]
	if !ok {
		if b.topics == nil {
			b.topics = make(map[TopicID]uint64)
		}
		topic = uint64(len(b.list))
		b.topics[c.Partition.Topic] = topic
		b.list = append(b.list, c.Partition.Topic)
	}
	e.uint(topic)
	e.uint(uint64(c.Partition.Number))
	e.uint(c.Epoch)
	switch c.Kind {
	case ChangeAppend:
		e.uint(b.gates.number(c.Uploader))
		e.uint(c.Number)
		first := c.first()
		e.uint(uint64(first))
		encodeRuns(e, c.runs, first)
		encodeEntries(e, &b.gates, c.Entries, Entry{End: first, Number: c.Number, MinTimestamp: b.base})
		e.uint(uint64(len(c.producers)))
		for _, p := range c.producers {
			p.encode(e, first)
		}
	case ChangeTrim:
		e.uint(uint64(c.Offset))
	case ChangeFence:
		e.text(c.Fence)
	case ChangeSwap:
		e.uint(b.gates.number(c.Uploader))
		e.uint(c.Number)
		encodeRuns(e, c.runs, 0)
		encodeSwapping(e, c.swap)
		encodeEntries(e, &b.gates, c.Entries, Entry{})
	}
}

// first is the offset that the change's other offsets are differences from.
func (c *Change) first() int64 {
	if len(c.Entries) == 0 {
		return 0
	}
	return c.Entries[0].First
}

// encode writes the epoch with fresh as its lowest bit, and offsets as differences
// from base.
func (a *producerAppend) encode(e *encoder, base int64) {
	epoch := uint64(uint16(a.epoch)) << 1
	if a.fresh {
		epoch |= 1
	}
	e.int(a.id)
	e.uint(epoch)
	e.uint(uint64(a.first))
	e.uint(uint64((a.last - a.first) & 0x7fffffff))
	e.int(a.offset - base)
}

func decodeProducerAppend(d *decoder, base int64) producerAppend {
	a := producerAppend{id: d.int()}
	epoch := d.uint()
	a.epoch, a.fresh = int16(epoch>>1), epoch&1 != 0
	a.first = int32(d.uint()) & 0x7fffffff
	a.last = addSequence(a.first, int32(d.uint()))
	a.offset = base + d.int()
	return a
}

// encodeRuns writes an offset (as a difference from base) where batches were given
// one, and what stood against them where not.
func encodeRuns(e *encoder, runs []answerRun, base int64) {
	e.uint(uint64(len(runs)))
	for _, r := range runs {
		e.byte(byte(r.outcome))
		e.uint(uint64(r.batches))
		if r.outcome.placed() {
			e.int(r.offset - base)
		} else {
			e.int(r.actual)
		}
	}
}

func decodeRuns(d *decoder, base int64) []answerRun {
	count := d.count(3)
	if count == 0 {
		return nil
	}
	runs := make([]answerRun, count)
	for i := range runs {
		r := answerRun{outcome: Outcome(d.byte()), batches: uint32(d.uint()), offset: NoOffset, actual: NoOffset}
		if r.outcome.placed() {
			r.offset = base + d.int()
		} else {
			r.actual = d.int()
		}
		if r.outcome < Accepted || r.outcome > SwapRefused {
			d.fail(fmt.Sprintf("verdict of unknown kind %d: a newer varve wrote it", r.outcome))
		}
		runs[i] = r
	}
	return runs
}

// Encode returns the row's value.
func (b *EntryBuilder) Encode() []byte {
	e := encoder{b: make([]byte, 0, b.Size()+32)}
	e.byte(formatV1)
	e.byte(byte(rowEntry))
	e.int(b.base)
	b.gates.encode(&e)
	e.uint(uint64(len(b.list)))
	for _, id := range b.list {
		e.raw(id[:])
	}
	e.uint(uint64(b.count))
	e.raw(b.body.b)
	return e.b
}

// decodeJournalRow reads any row of a journal but its opening.
func decodeJournalRow(sequence uint64, value []byte) (JournalRow, error) {
	row, packed, count, err := decodeRowHead(sequence, value)
	if packed == nil || err != nil {
		return row, err
	}
	row.Changes = make([]Change, count)
	d := &decoder{b: packed.changes}
	for i := range row.Changes {
		packed.decode(d, &row.Changes[i])
	}
	return row, d.end()
}

// packedRow is an entry whose changes are decoded when they are asked for.
type packedRow struct {
	changes []byte
	base    int64
	gates   []GatewayID
	topics  []TopicID
}

// packJournalRow is decodeJournalRow for rows that are kept: they are looked through, and stay packed. It
// keeps the value.
func packJournalRow(sequence uint64, value []byte) (JournalRow, error) {
	row, packed, count, err := decodeRowHead(sequence, value)
	if packed == nil || err != nil {
		return row, err
	}
	d := &decoder{b: packed.changes}
	for range count {
		var c Change
		packed.decode(d, &c)
	}
	row.packed = packed
	return row, d.end()
}

// decodeRowHead reads a row up to its changes, if it is an entry, and says how many they are.
func decodeRowHead(sequence uint64, value []byte) (row JournalRow, packed *packedRow, count int, err error) {
	row = JournalRow{Sequence: sequence, Size: len(value)}
	d := &decoder{b: value}
	d.format()
	switch kind := rowKind(d.byte()); kind {
	case rowSeal:
		row.Seal = true
		row.Time = d.int()
		row.SealedBy = GatewayID(d.text())
	case rowEntry:
		row.Time = d.int()
		packed = &packedRow{base: row.Time, gates: decodeDictionary(d)}
		packed.topics = make([]TopicID, d.count(16))
		for i := range packed.topics {
			copy(packed.topics[i][:], d.raw(16))
		}
		count = d.count(4)
		packed.changes = d.b
		return row, packed, count, d.err
	default:
		d.fail(fmt.Sprintf("journal row of unknown kind %d", kind))
	}
	return row, nil, 0, d.end()
}

func (r *packedRow) decode(d *decoder, c *Change) { decodeChange(d, c, r.gates, r.topics, r.base) }

// find tells of each change whose it is, and where it begins.
func (r *packedRow) find(found func(id PartitionID, at uint32)) {
	d := &decoder{b: r.changes}
	for len(d.b) > 0 {
		at := len(r.changes) - len(d.b)
		var c Change
		r.decode(d, &c)
		found(c.Partition, uint32(at))
	}
}

// change decodes the one that begins there.
func (r *packedRow) change(at uint32) (Change, error) {
	var c Change
	d := &decoder{b: r.changes[at:]}
	r.decode(d, &c)
	return c, d.err
}

func decodeChange(d *decoder, c *Change, gates []GatewayID, topics []TopicID, base int64) {
	c.Kind = ChangeKind(d.byte())
	topic := d.uint()
	if topic >= uint64(len(topics)) {
		d.fail("names a topic that its row does not list")
		return
	}
	c.Partition = PartitionID{topics[topic], int32(d.uint())}
	c.Epoch = d.uint()
	switch c.Kind {
	case ChangeAppend:
		c.Uploader = lookupGateway(d, gates)
		c.Number = d.uint()
		first := int64(d.uint())
		c.runs = decodeRuns(d, first)
		c.Entries = decodeEntries(d, gates, Entry{End: first, Number: c.Number, MinTimestamp: base})
		if count := d.count(5); count > 0 {
			c.producers = make([]producerAppend, count)
			for i := range c.producers {
				c.producers[i] = decodeProducerAppend(d, first)
			}
		}
	case ChangeTrim:
		c.Offset = int64(d.uint())
	case ChangeFence:
		c.Fence = d.text()
	case ChangeSwap:
		c.Uploader = lookupGateway(d, gates)
		c.Number = d.uint()
		c.runs = decodeRuns(d, 0)
		c.swap = decodeSwapping(d)
		c.Entries = decodeEntries(d, gates, Entry{})
	case ChangeClose:
	default:
		d.fail(fmt.Sprintf("change of unknown kind %d: a newer varve wrote it", c.Kind))
	}
}

func encodeSeal(by GatewayID, now time.Time) []byte {
	e := encoder{b: []byte{formatV1, byte(rowSeal)}}
	e.int(now.UnixMilli())
	e.text(string(by))
	return e.b
}

// opening is the first row of a journal.
type opening struct {
	trimmedTo uint64 // entries up to here may be gone
}

func (o opening) encode() []byte {
	e := encoder{b: []byte{formatV1, byte(rowOpening)}}
	e.uint(o.trimmedTo)
	return e.b
}

func decodeOpening(value []byte) (opening, error) {
	d := &decoder{b: value}
	d.format()
	if kind := rowKind(d.byte()); d.err == nil && kind != rowOpening {
		d.fail("is not a journal's opening row")
	}
	o := opening{trimmedTo: d.uint()}
	return o, d.end()
}
