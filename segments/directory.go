package segments

import (
	"encoding/binary"
	"fmt"
	"math"
)

// The directory is written as differences between neighbours. deltas is the state
// that writer and reader keep in step.
type deltas struct {
	timestamp int64
	producer  int64
	token     string
	hasToken  bool // token has been set; the first one may be empty
}

// appendDirectory encodes d. Its spans must be in order and valid.
func appendDirectory(out []byte, d *Directory) []byte {
	out = appendText(out, string(d.Cluster))
	out = appendText(out, string(d.Gateway))
	out = binary.AppendUvarint(out, d.Number)

	topics := groupByTopic(d.Spans)
	out = binary.AppendUvarint(out, uint64(len(topics)))
	var last deltas
	for _, spans := range topics {
		out = append(out, spans[0].Topic[:]...)
		out = binary.AppendUvarint(out, uint64(len(spans)))
		next := int32(0)
		for i := range spans {
			out = binary.AppendUvarint(out, uint64(spans[i].Partition-next))
			next = spans[i].Partition + 1
			out = appendSpan(out, d.Number, &spans[i], &last)
		}
	}
	return out
}

// groupByTopic cuts spans, which are in order, into runs of one topic.
func groupByTopic(spans []Span) [][]Span {
	var groups [][]Span
	start := 0
	for i := range spans {
		if i+1 == len(spans) || spans[i+1].Topic != spans[i].Topic {
			groups = append(groups, spans[start:i+1])
			start = i + 1
		}
	}
	return groups
}

func appendSpan(out []byte, number uint64, span *Span, last *deltas) []byte {
	var back uint64
	if span.Previous != 0 {
		back = number - span.Previous
	}
	out = binary.AppendUvarint(out, back)
	out = binary.AppendUvarint(out, uint64(len(span.Batches)))
	for i := range span.Batches {
		out = appendBatch(out, &span.Batches[i], last)
	}
	return out
}

func appendBatch(out []byte, b *BatchInfo, last *deltas) []byte {
	flags := batchFlags(b, last)
	out = append(out, flags)
	out = binary.AppendUvarint(out, uint64(b.Size))
	out = binary.AppendUvarint(out, uint64(b.Offsets))
	if flags&flagRecords != 0 {
		out = binary.AppendUvarint(out, uint64(b.Records))
	}
	out = binary.AppendVarint(out, b.MaxTimestamp-last.timestamp)
	out = binary.AppendVarint(out, b.MaxTimestamp-b.MinTimestamp)
	out = binary.AppendVarint(out, b.MaxTimestamp-b.LastTimestamp)
	out = binary.BigEndian.AppendUint32(out, b.CRC)
	last.timestamp = b.MaxTimestamp
	if flags&flagProducer != 0 {
		out = binary.AppendVarint(out, b.ProducerID-last.producer)
		out = binary.AppendVarint(out, int64(b.ProducerEpoch))
		out = binary.AppendVarint(out, int64(b.BaseSequence))
		last.producer = b.ProducerID
	}
	if flags&flagExpectedOffset != 0 {
		out = binary.AppendVarint(out, b.ExpectedOffset)
	}
	if flags&flagNewToken != 0 {
		out = appendText(out, b.FencingToken)
		last.token, last.hasToken = b.FencingToken, true
	}
	return out
}

func batchFlags(b *BatchInfo, last *deltas) byte {
	var flags byte
	set := func(flag byte, on bool) {
		if on {
			flags |= flag
		}
	}
	set(flagBuffered, b.Ack == AckBuffered)
	set(flagProducer, b.hasProducer())
	set(flagExpectedOffset, b.ExpectedOffset != -1)
	set(flagToken, b.HasFencingToken)
	set(flagNewToken, b.HasFencingToken && (!last.hasToken || last.token != b.FencingToken))
	set(flagRecords, b.Records != b.Offsets)
	return flags
}

func appendText(out []byte, text string) []byte {
	return append(binary.AppendUvarint(out, uint64(len(text))), text...)
}

// decoder reads a directory. After the first fault every read returns zero and err
// keeps that fault; callers check it before they allocate or loop by what they read.
type decoder struct {
	in   []byte
	err  error
	last deltas
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf(format, args...)
		d.in = nil
	}
}

// bytes takes the next n bytes, which stay part of the input.
func (d *decoder) bytes(n int) []byte {
	if n > len(d.in) {
		d.fail("ends early")
	}
	if d.err != nil {
		return make([]byte, min(n, 16))
	}
	out := d.in[:n]
	d.in = d.in[n:]
	return out
}

func (d *decoder) uvarint(what string, most uint64) uint64 {
	value, n := binary.Uvarint(d.in)
	switch {
	case d.err != nil:
		return 0
	case n == 0:
		d.fail("ends early, in %s", what)
		return 0
	case n < 0 || n > 1 && d.in[n-1] == 0:
		d.fail("%s is not a number in its shortest form", what)
		return 0
	case value > most:
		d.fail("%s is %d, the most is %d", what, value, most)
		return 0
	}
	d.in = d.in[n:]
	return value
}

func (d *decoder) svarint(what string) int64 {
	value := d.uvarint(what, math.MaxUint64)
	return int64(value>>1) ^ -int64(value&1)
}

// between reads a signed number and refuses what is not in [least, most].
func (d *decoder) between(what string, least, most int64) int64 {
	value := d.svarint(what)
	if value < least || value > most {
		d.fail("%s is %d, must be from %d to %d", what, value, least, most)
		return 0
	}
	return value
}

// count reads how many items follow, of which each takes at least size bytes: more
// than fit are refused before anybody makes room for them.
func (d *decoder) count(what string, size int) int {
	n := d.uvarint(what, uint64(len(d.in)/size))
	if n == 0 {
		d.fail("%s is 0", what)
	}
	return int(n)
}

func (d *decoder) text(what string, most int) string {
	n := d.uvarint("length of "+what, uint64(most))
	if d.err != nil {
		return ""
	}
	text := d.bytes(int(n))
	if d.err != nil {
		return ""
	}
	return string(text)
}

// The fewest bytes that each item takes, which bounds memory.
const (
	leastBatch = 1 + 1 + 1 + 3 + 4
	leastSpan  = 3 + leastBatch
	leastTopic = 16 + 1 + leastSpan
)

// parseDirectory decodes a directory of spanCount spans. Positions are counted from
// the header; the caller compares the end of the last span with where the directory
// was found.
func parseDirectory(in []byte, spanCount int) (*Directory, error) {
	dec := &decoder{in: in}
	d := &Directory{
		Cluster: ClusterID(dec.text("cluster id", maxID)),
		Gateway: GatewayID(dec.text("gateway id", maxID)),
		Number:  dec.uvarint("segment number", math.MaxUint64),
	}
	if dec.err == nil && d.Number == 0 {
		dec.fail("segment number is 0")
	}
	if dec.err == nil {
		dec.err = d.Cluster.Validate()
	}
	if dec.err == nil {
		dec.err = d.Gateway.Validate()
	}
	if dec.err != nil {
		return nil, dec.err
	}
	if spanCount > len(in)/leastSpan {
		return nil, fmt.Errorf("footer counts %d spans, which don't fit", spanCount)
	}
	d.Spans = make([]Span, 0, spanCount)
	dec.topics(d)
	if dec.err == nil && len(dec.in) != 0 {
		dec.fail("%d bytes left over", len(dec.in))
	}
	if dec.err == nil && len(d.Spans) != spanCount {
		dec.fail("has %d spans, footer counts %d", len(d.Spans), spanCount)
	}
	return d, dec.err
}

func (d *decoder) topics(dir *Directory) {
	topics := d.count("count of topics", leastTopic)
	position := int64(headerSize)
	for i := 0; i < topics && d.err == nil; i++ {
		id := TopicID(d.bytes(16))
		if n := len(dir.Spans); n > 0 && string(dir.Spans[n-1].Topic[:]) >= string(id[:]) {
			d.fail("topic %v is out of order", id)
			return
		}
		partitions := d.count("count of partitions", leastSpan)
		next := uint64(0)
		for j := 0; j < partitions && d.err == nil; j++ {
			if len(dir.Spans) == cap(dir.Spans) {
				d.fail("more spans than the footer counts")
				return
			}
			partition := next + d.uvarint("partition", math.MaxInt32-min(next, math.MaxInt32))
			if partition > math.MaxInt32 {
				d.fail("partition is %d", partition)
				return
			}
			next = partition + 1
			span := Span{SpanID: SpanID{id, int32(partition)}, Position: position}
			d.span(&span, dir.Number)
			dir.Spans = append(dir.Spans, span)
			position += span.Length
		}
	}
}

func (d *decoder) span(span *Span, number uint64) {
	if back := d.uvarint("distance to the previous segment", number-1); back != 0 {
		span.Previous = number - back
	}
	batches := d.count("count of batches", leastBatch)
	if d.err != nil {
		return
	}
	span.Batches = make([]BatchInfo, batches)
	for i := range span.Batches {
		b := &span.Batches[i]
		b.Position = span.Position + span.Length
		d.batch(b)
		if d.err != nil {
			return
		}
		span.Length += int64(b.Size)
	}
}

func (d *decoder) batch(b *BatchInfo) {
	flags := d.bytes(1)[0]
	if flags&^flagsKnown != 0 || flags&flagNewToken != 0 && flags&flagToken == 0 {
		d.fail("flags of a batch are %#x", flags)
	}
	b.Size = d.positive("size of a batch")
	b.Offsets = d.positive("offsets of a batch")
	b.Records = b.Offsets
	if flags&flagRecords != 0 {
		b.Records = int32(d.uvarint("records of a batch", math.MaxInt32))
		if b.Records == b.Offsets {
			d.fail("records of a batch are given, and no other number than its offsets")
		}
	}
	b.MaxTimestamp = d.last.timestamp + d.svarint("timestamp")
	b.MinTimestamp = b.MaxTimestamp - d.svarint("timestamp")
	b.LastTimestamp = b.MaxTimestamp - d.svarint("timestamp")
	b.CRC = binary.BigEndian.Uint32(d.bytes(4))
	d.last.timestamp = b.MaxTimestamp
	if flags&flagBuffered != 0 {
		b.Ack = AckBuffered
	}
	d.producer(b, flags)
	d.conditions(b, flags)
}

func (d *decoder) positive(what string) int32 {
	value := d.uvarint(what, math.MaxInt32)
	if value == 0 {
		d.fail("%s is 0", what)
	}
	return int32(value)
}

func (d *decoder) producer(b *BatchInfo, flags byte) {
	b.ProducerID, b.ProducerEpoch, b.BaseSequence = -1, -1, -1
	if flags&flagProducer == 0 {
		return
	}
	b.ProducerID = d.last.producer + d.svarint("producer id")
	b.ProducerEpoch = int16(d.between("producer epoch", math.MinInt16, math.MaxInt16))
	b.BaseSequence = int32(d.between("base sequence", math.MinInt32, math.MaxInt32))
	d.last.producer = b.ProducerID
	if !b.hasProducer() {
		d.fail("a producer is given, and it is none")
	}
}

func (d *decoder) conditions(b *BatchInfo, flags byte) {
	b.ExpectedOffset = -1
	if flags&flagExpectedOffset != 0 {
		b.ExpectedOffset = d.between("expected offset", 0, math.MaxInt64)
	}
	if flags&flagToken == 0 {
		return
	}
	if flags&flagNewToken != 0 {
		token := d.text("fencing token", MaxFencingToken)
		if d.last.hasToken && token == d.last.token {
			d.fail("a fencing token is given twice")
		}
		d.last.token, d.last.hasToken = token, true
	} else if !d.last.hasToken {
		d.fail("a fencing token is referred to before one was given")
	}
	b.FencingToken, b.HasFencingToken = d.last.token, true
}
