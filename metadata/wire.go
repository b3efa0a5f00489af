package metadata

import (
	"encoding/binary"
	"fmt"
	"math"
)

// What gateways say to each other is encoded as rows are: a format byte, then what
// repeats as a difference or by its place in a list. It is never stored.

// Flags of a batch in EncodeReferences.
const (
	batchProducer byte = 1 << iota // producer id, epoch and sequence follow
	batchExpected                  // an expected offset follows
	batchFenced                    // a fencing token is demanded
	batchToken                     // it follows; else it is the one before
	batchSparse                    // fewer records than offsets: their number follows

	batchFlags = batchSparse<<1 - 1
)

// EncodeReferences writes references for another gateway, short where they are those
// of one segment in its order: about 20 bytes for one of one batch.
func EncodeReferences(refs []*Reference) []byte {
	w := referenceWriter{topics: make(map[TopicID]uint64)}
	w.body.b = make([]byte, 0, 24*len(refs))
	for _, ref := range refs {
		w.reference(ref)
	}
	e := encoder{b: make([]byte, 0, len(w.body.b)+64+16*len(w.list))}
	e.byte(formatV1)
	w.gates.encode(&e)
	e.uint(uint64(len(w.list)))
	for _, id := range w.list {
		e.raw(id[:])
	}
	e.uint(uint64(len(refs)))
	e.raw(w.body.b)
	return e.b
}

// neighbour is what the next reference or batch is told as a difference from.
type neighbour struct {
	partition int32
	number    uint64
	end       int64 // position behind the last batch, also of the reference before
	minimum   int64
	producer  int64
	token     string
}

type referenceWriter struct {
	body   encoder
	gates  dictionary
	topics map[TopicID]uint64
	list   []TopicID
	last   neighbour
}

func (w *referenceWriter) reference(ref *Reference) {
	e := &w.body
	topic, ok := w.topics[ref.Partition.Topic]
	if !ok {
		topic = uint64(len(w.list))
		w.topics[ref.Partition.Topic] = topic
		w.list = append(w.list, ref.Partition.Topic)
	}
	e.uint(topic)
	e.int(int64(ref.Partition.Number) - int64(w.last.partition))
	e.uint(w.gates.number(ref.Uploader))
	e.int(int64(ref.Number - w.last.number))
	e.int(int64(ref.Number - ref.Previous))
	count := uint64(len(ref.Batches)) << 1
	if ref.ByNumber {
		count |= 1
	}
	e.uint(count)
	w.last.partition, w.last.number = ref.Partition.Number, ref.Number
	for i := range ref.Batches {
		w.batch(&ref.Batches[i])
	}
}

func (w *referenceWriter) batch(b *Batch) {
	e, flags := &w.body, byte(0)
	if b.ProducerID != NoProducer || b.ProducerEpoch != -1 || b.BaseSequence != -1 {
		flags |= batchProducer
	}
	if b.ExpectedOffset != NoOffset {
		flags |= batchExpected
	}
	if b.HasFencingToken {
		flags |= batchFenced
		if b.FencingToken != w.last.token {
			flags |= batchToken
		}
	}
	if b.Records != b.Offsets {
		flags |= batchSparse
	}
	e.byte(flags)
	e.int(b.Position - w.last.end)
	e.uint(uint64(b.Size))
	e.uint(uint64(b.Offsets))
	e.int(b.MinTimestamp - w.last.minimum)
	e.int(b.MaxTimestamp - b.MinTimestamp)
	e.int(b.MaxTimestamp - b.LastTimestamp)
	e.b = binary.BigEndian.AppendUint32(e.b, b.CRC)
	if flags&batchProducer != 0 {
		e.int(b.ProducerID - w.last.producer)
		e.int(int64(b.ProducerEpoch))
		e.int(int64(b.BaseSequence))
		w.last.producer = b.ProducerID
	}
	if flags&batchExpected != 0 {
		e.int(b.ExpectedOffset)
	}
	if flags&batchToken != 0 {
		e.text(b.FencingToken)
		w.last.token = b.FencingToken
	}
	if flags&batchSparse != 0 {
		e.uint(uint64(b.Records))
	}
	w.last.end, w.last.minimum = b.end(), b.MinTimestamp
}

// DecodeReferences reads what EncodeReferences wrote. ErrCorrupt when it is damaged, of
// a newer format, or says what no segment can hold.
func DecodeReferences(data []byte) ([]*Reference, error) {
	d := &decoder{b: data}
	d.format()
	r := referenceReader{d: d, gates: decodeDictionary(d)}
	r.topics = make([]TopicID, d.count(16))
	for i := range r.topics {
		copy(r.topics[i][:], d.raw(16))
	}
	refs := make([]*Reference, d.count(6))
	for i := range refs {
		if refs[i] = r.reference(); d.err != nil {
			break
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("references: %w", err)
	}
	return refs, nil
}

type referenceReader struct {
	d      *decoder
	gates  []GatewayID
	topics []TopicID
	last   neighbour
}

func (r *referenceReader) reference() *Reference {
	d, ref := r.d, &Reference{}
	topic := d.uint()
	if topic >= uint64(len(r.topics)) {
		d.fail("a reference names a topic that is not listed")
		return ref
	}
	partition := int64(r.last.partition) + d.int()
	ref.Partition = PartitionID{r.topics[topic], int32(partition)}
	ref.Uploader = lookupGateway(d, r.gates)
	ref.Number = r.last.number + uint64(d.int())
	ref.Previous = ref.Number - uint64(d.int())
	count := d.uint()
	ref.ByNumber = count&1 != 0
	switch count >>= 1; {
	case d.err != nil:
	case partition < 0 || partition > math.MaxInt32:
		d.fail(fmt.Sprintf("a reference is to partition %d", partition))
	case ref.Uploader == "" || ref.Number == 0:
		d.fail(fmt.Sprintf("a reference is to segment %d of gateway %q", ref.Number, ref.Uploader))
	case count > MaxReferenceBatches:
		d.fail(fmt.Sprintf("a reference has %d batches, at most %d can be", count, MaxReferenceBatches))
	case count > uint64(len(d.b)/11):
		d.fail("more batches than the message can hold")
	case count > 0:
		ref.Batches = make([]Batch, count)
	}
	for i := range ref.Batches {
		b := &ref.Batches[i]
		if r.batch(b); d.err == nil && i > 0 && b.Position < ref.Batches[i-1].end() {
			d.fail("the batches of a reference are out of order")
		}
		if d.err != nil {
			return ref
		}
	}
	r.last.partition, r.last.number = ref.Partition.Number, ref.Number
	return ref
}

func (r *referenceReader) batch(b *Batch) {
	d := r.d
	flags := d.byte()
	b.Position = r.last.end + d.int()
	b.Size, b.Offsets = d.int32(), d.int32()
	b.MinTimestamp = r.last.minimum + d.int()
	b.MaxTimestamp = b.MinTimestamp + d.int()
	b.LastTimestamp = b.MaxTimestamp - d.int()
	if crc := d.raw(4); crc != nil {
		b.CRC = binary.BigEndian.Uint32(crc)
	}
	b.Records, b.ExpectedOffset = b.Offsets, NoOffset
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = NoProducer, -1, -1
	if flags&batchProducer != 0 {
		b.ProducerID = r.last.producer + d.int()
		b.ProducerEpoch = int16(d.within(math.MinInt16, math.MaxInt16))
		b.BaseSequence = int32(d.within(math.MinInt32, math.MaxInt32))
		r.last.producer = b.ProducerID
	}
	if flags&batchExpected != 0 {
		b.ExpectedOffset = d.int()
	}
	if flags&batchToken != 0 {
		r.last.token = d.text()
	}
	if flags&batchFenced != 0 {
		b.FencingToken, b.HasFencingToken = r.last.token, true
	}
	if flags&batchSparse != 0 {
		b.Records = d.int32()
	}
	if d.err == nil && (flags&^batchFlags != 0 || !b.plausible()) {
		d.fail(fmt.Sprintf("a batch cannot be: %+v", *b))
	}
	r.last.end, r.last.minimum = b.end(), b.MinTimestamp
}

// plausible refuses what would give offsets or bytes that cannot be.
func (b *Batch) plausible() bool {
	return b.Position >= 0 && b.end() > b.Position && b.Offsets > 0 && b.Records >= 0 && b.Records <= b.Offsets &&
		(b.ProducerID == NoProducer || b.ProducerID >= 0 && b.ProducerEpoch >= 0 && b.BaseSequence >= 0)
}

// EncodeVerdict writes a verdict for the gateway that asked.
func EncodeVerdict(v Verdict) []byte {
	e := encoder{b: make([]byte, 0, 32+2*len(v.Batches))}
	e.byte(formatV1)
	e.byte(byte(v.Status))
	e.uint(uint64(v.Start))
	e.uint(uint64(v.Next))
	if v.Batches == nil { // a repeated reference whose verdicts are forgotten, unlike one without batches
		e.byte(0)
		return e.b
	}
	e.byte(1)
	e.uint(uint64(len(v.Batches)))
	last := v.Start
	for at := 0; at < len(v.Batches); {
		first, n := v.Batches[at], 1
		for at+n < len(v.Batches) && v.Batches[at+n].Outcome == first.Outcome && v.Batches[at+n].Actual == first.Actual {
			n++
		}
		e.byte(byte(first.Outcome))
		e.uint(uint64(n))
		if !first.Outcome.placed() {
			e.int(first.Actual)
		} else {
			for _, b := range v.Batches[at : at+n] {
				e.int(b.Offset - last)
				last = b.Offset
			}
		}
		at += n
	}
	return e.b
}

// DecodeVerdict reads what EncodeVerdict wrote, or returns ErrCorrupt.
func DecodeVerdict(data []byte) (Verdict, error) {
	d := &decoder{b: data}
	d.format()
	v := Verdict{Status: Status(d.byte()), Start: d.offset(), Next: d.offset()}
	if d.err == nil && (v.Status < Judged || v.Status > Refused || v.Next < v.Start) {
		d.fail(fmt.Sprintf("status %d over a log from %d to %d", v.Status, v.Start, v.Next))
	}
	switch told := d.byte(); {
	case told > 1:
		d.fail("neither with nor without verdicts on batches")
	case told == 1:
		v.Batches = decodeVerdicts(d, v.Start)
	}
	if err := d.end(); err != nil {
		return Verdict{}, fmt.Errorf("verdict: %w", err)
	}
	return v, nil
}

func decodeVerdicts(d *decoder, last int64) []BatchVerdict {
	count := d.uint()
	if count > MaxReferenceBatches {
		d.fail(fmt.Sprintf("verdicts on %d batches, a reference has %d at most", count, MaxReferenceBatches))
		return nil
	}
	list := make([]BatchVerdict, 0, count)
	for uint64(len(list)) < count && d.err == nil {
		outcome, n := Outcome(d.byte()), d.uint()
		if d.err == nil && (outcome < Accepted || outcome > UnknownProducer || n == 0 || n > count-uint64(len(list))) {
			d.fail(fmt.Sprintf("outcome %d of %d batches", outcome, n))
		}
		if d.err != nil {
			return nil
		}
		if !outcome.placed() {
			b := BatchVerdict{Outcome: outcome, Offset: NoOffset, Actual: d.int()}
			for range n {
				list = append(list, b)
			}
			continue
		}
		for range n {
			last += d.int()
			if d.err == nil && last < 0 {
				d.fail("an offset below zero")
			}
			list = append(list, BatchVerdict{Outcome: outcome, Offset: last, Actual: NoOffset})
		}
	}
	return list
}
