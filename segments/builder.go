package segments

import (
	"fmt"
	"hash/crc32"
	"math"
	"slices"
)

// What a batch without its token, and a span with its topic, take in the directory
// at most, in bytes.
const (
	worstBatch = 1 + 3*5 + 3*10 + 4 + 10 + 3 + 5 + 10 + 2
	worstSpan  = 16 + 5 + 5 + 10 + 5
)

// Builder gathers the batches of one segment. It keeps the slices it is given and
// copies none, so they must not change until the [Object] is done with. For one
// goroutine.
type Builder struct {
	directory Directory // without spans
	spans     map[SpanID]*buildSpan
	bytes     int64
	batches   int
	worst     int64 // bytes that the directory may take
	checked   int   // see Checked; 0: not
}

type buildSpan struct {
	batches []BatchInfo
	data    [][]byte
}

// NewBuilder returns a builder of the segment with that name. Build tells if the name
// is not valid.
func NewBuilder(cluster ClusterID, gateway GatewayID, number uint64) *Builder {
	return &Builder{
		directory: Directory{Cluster: cluster, Gateway: gateway, Number: number},
		spans:     make(map[SpanID]*buildSpan),
		worst:     3 * maxID,
	}
}

// Add appends a batch to the span of its partition. Position and Size in info are set
// here. The error is [ErrTooLarge] if the segment must be closed first, another
// one if the batch is not valid; nothing was added then.
func (b *Builder) Add(id SpanID, data []byte, info BatchInfo) error {
	if err := validateBatch(id, data, &info); err != nil {
		return err
	}
	span := b.spans[id]
	worst := worstBatch + int64(len(info.FencingToken))
	if span == nil {
		worst += worstSpan
	}
	if b.batches == MaxBatches || b.worst+worst > MaxDirectorySize ||
		headerSize+b.bytes+int64(len(data))+b.worst+worst+footerSize > MaxObjectSize {
		return fmt.Errorf("%w: it has %d batches and %d bytes", ErrTooLarge, b.batches, b.bytes)
	}
	if span == nil {
		span = new(buildSpan)
		b.spans[id] = span
	}
	info.Position, info.Size = 0, int32(len(data))
	span.batches = append(span.batches, info)
	span.data = append(span.data, data)
	b.bytes += int64(len(data))
	b.batches++
	b.worst += worst
	return nil
}

func validateBatch(id SpanID, data []byte, info *BatchInfo) error {
	var fault string
	switch {
	case id.Partition < 0:
		fault = "partition is negative"
	case len(data) == 0 || len(data) > math.MaxInt32:
		fault = fmt.Sprintf("it has %d bytes", len(data))
	case info.Offsets < 1 || info.Records < 0:
		fault = fmt.Sprintf("it takes %d offsets and has %d records", info.Offsets, info.Records)
	case info.Ack > AckBuffered:
		fault = info.Ack.String()
	case info.ExpectedOffset < -1:
		fault = fmt.Sprintf("expected offset is %d", info.ExpectedOffset)
	case len(info.FencingToken) > MaxFencingToken:
		fault = fmt.Sprintf("fencing token has %d bytes, the most is %d", len(info.FencingToken), MaxFencingToken)
	case info.FencingToken != "" && !info.HasFencingToken:
		fault = "fencing token is set, but not HasFencingToken"
	default:
		return nil
	}
	return fmt.Errorf("segments: batch of %v: %s", id, fault)
}

// Checked says that each batch was held against the CRC in its info just before it is added, which covers all but its first
// skip bytes. [CRC32C] of the object need not go over large ones again then.
func (b *Builder) Checked(skip int) { b.checked = skip }

// Bytes is the size of all batches.
func (b *Builder) Bytes() int64 { return b.bytes }

// Batches is how many there are.
func (b *Builder) Batches() int { return b.batches }

// Spans is the number of partitions that have batches.
func (b *Builder) Spans() int { return len(b.spans) }

// Object is a finished segment, ready to be put: a [Body] with its directory.
type Object struct {
	*Parts
	Directory Directory
}

var _ Body = (*Object)(nil)

// Key is where the object must be put.
func (o *Object) Key() string { return o.Directory.Key() }

// Build lays out the segment; previous gives the number of the uploader's previous
// segment in each partition, or 0. The builder must not be used afterwards. It
// fails when there are no batches, the name is not valid, or previous does not
// give a lower number.
func (b *Builder) Build(previous func(SpanID) uint64) (*Object, error) {
	d := b.directory
	if err := d.Cluster.Validate(); err != nil {
		return nil, err
	}
	if err := d.Gateway.Validate(); err != nil {
		return nil, err
	}
	if d.Number == 0 || b.batches == 0 {
		return nil, fmt.Errorf("segments: segment %d of %s with %d batches: number and batches start at 1", d.Number, d.Gateway, b.batches)
	}
	parts := make([][]byte, 0, b.batches+2)
	parts = append(parts, appendHeader(nil))
	sums := &knownSums{skip: b.checked, of: make(map[int]uint32)}
	position := int64(headerSize)
	d.Spans = make([]Span, 0, len(b.spans))
	for _, id := range b.order() {
		source := b.spans[id]
		span := Span{SpanID: id, Previous: previous(id), Position: position, Batches: source.batches}
		if span.Previous >= d.Number {
			return nil, fmt.Errorf("segments: segment %d of %s: previous segment of %v is %d", d.Number, d.Gateway, id, span.Previous)
		}
		for i := range span.Batches {
			span.Batches[i].Position = position
			position += int64(span.Batches[i].Size)
			if b.checked > 0 && span.Batches[i].Size >= worthCombining {
				sums.of[len(parts)+i] = span.Batches[i].CRC
			}
		}
		span.Length = position - span.Position
		parts = append(parts, source.data...)
		d.Spans = append(d.Spans, span)
	}
	end := appendEnd(&d, position, b.batches)
	o := &Object{Parts: NewBody(append(parts, end)...), Directory: d}
	o.sums = sums
	return o, nil
}

func (b *Builder) order() []SpanID {
	ids := make([]SpanID, 0, len(b.spans))
	for id := range b.spans {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, SpanID.Compare)
	return ids
}

// appendEnd returns directory and footer of a segment whose spans end at position, and
// sets the directory's size.
func appendEnd(d *Directory, position int64, batches int) []byte {
	out := appendDirectory(make([]byte, 0, 256+32*batches), d)
	d.Size = position + int64(len(out)) + footerSize
	return appendFooter(out, footer{
		directoryPosition: position,
		directoryLength:   len(out),
		directoryCRC:      crc32.Checksum(out, castagnoli),
		spans:             len(d.Spans),
		batches:           batches,
		size:              d.Size,
	})
}
