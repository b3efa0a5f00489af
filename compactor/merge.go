package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

const (
	// readsAtOnce is how many objects a merge reads at a time.
	readsAtOnce = 8
	// joinGap is how many bytes between two ranges of one object are read along rather than asked around, if they are no more
	// than what is wanted: less time passes with them than with another request.
	joinGap = 64 << 10
	// mostJoined is how many bytes one request asks for, unless one entry alone has more.
	mostJoined = 8 << 20
	// mostBatches bounds those of a merged segment, so that its directory fits whatever is in them.
	mostBatches = 150_000
)

// merger makes merged segments.
type merger struct {
	store   segments.Store
	cluster segments.ClusterID
	// pace waits until so many bytes more may be read and written.
	pace func(ctx context.Context, bytes int64) error
}

// replacement is an index entry that stands for neighbours of a stretch.
type replacement struct {
	stretch  *stretch
	from, to int // in its entries; to exclusive
	entry    metadata.Entry
	was      []metadata.Entry // those entries
}

// aside is an entry whose bytes are not what the index says: it stays.
type aside struct {
	stretch *stretch
	index   int
	err     error
}

// product is what became of a job.
type product struct {
	replacements []replacement
	asides       []aside
	objects      int
	bytes        int64 // of batches
	objectBytes  int64
}

// source is an entry that is read.
type source struct {
	topic   metadata.TopicID
	entry   *metadata.Entry
	key     string
	batches []placed
	fault   error // it cannot be merged
}

// placed is a batch with its offset, also in its bytes.
type placed struct {
	data   []byte
	offset int64
	info   segments.BatchInfo
}

// run makes the segments of a job, usually one. number gives each the next number of uploader. An error that is not of
// the bytes themselves ends it; what was put then is garbage.
func (m *merger) run(ctx context.Context, uploader metadata.GatewayID, number func() uint64, j *job) (*product, error) {
	sources := m.sources(j)
	if err := m.read(ctx, sources); err != nil {
		return nil, err
	}
	out := &product{}
	w := &segmentWriter{m: m, uploader: uploader, number: number, out: out}
	at := 0
	for i := range j.groups {
		g := &j.groups[i]
		n := g.to - g.from
		if err := w.group(ctx, g, sources[at:at+n]); err != nil {
			return nil, err
		}
		at += n
	}
	return out, w.finish(ctx)
}

// sources lists what a job reads, in its order.
func (m *merger) sources(j *job) []source {
	var list []source
	for i := range j.groups {
		entries := j.groups[i].entries()
		for k := range entries {
			e := &entries[k]
			list = append(list, source{topic: j.groups[i].stretch.partition.Topic, entry: e, key: segments.ObjectKey(m.cluster, segments.GatewayID(e.Gateway), e.Number)})
		}
	}
	return list
}

// read reads all sources, object by object.
func (m *merger) read(ctx context.Context, sources []source) error {
	order := make([]*source, 0, len(sources))
	for i := range sources {
		if sources[i].entry.Length > 0 {
			order = append(order, &sources[i])
		}
	}
	slices.SortFunc(order, func(a, b *source) int {
		return cmp.Or(cmp.Compare(a.key, b.key), cmp.Compare(a.entry.Position, b.entry.Position))
	})
	group, reading := errgroup.WithContext(ctx)
	group.SetLimit(readsAtOnce)
	for len(order) > 0 && reading.Err() == nil {
		n := 1
		for n < len(order) && order[n].key == order[0].key {
			n++
		}
		object := order[:n]
		order = order[n:]
		group.Go(func() error { return m.readObject(reading, object) })
	}
	return errors.Join(group.Wait(), context.Cause(ctx))
}

// paidBy has the topics of sources pay for what is read of them, by their bytes.
func paidBy(ctx context.Context, list []*source) context.Context {
	var shares []bill.Share
	for _, s := range list {
		shares = bill.AddShare(shares, s.topic, s.entry.Length)
	}
	return bill.MergingShared(ctx, shares)
}

// readObject reads the sources that lie in one object, which are in order.
func (m *merger) readObject(ctx context.Context, list []*source) error {
	for rest := list; len(rest) > 0; {
		n, useful := 1, rest[0].entry.Length
		end := rest[0].entry.Position + useful
		for n < len(rest) && useful < mostJoined && rest[n].entry.Position-end <= min(joinGap, useful) {
			useful += rest[n].entry.Length
			end = max(end, rest[n].entry.Position+rest[n].entry.Length)
			n++
		}
		if err := m.readRange(ctx, rest[:n], end, useful); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return m.date(ctx, list)
}

// readRange reads neighbours with one request. A source that does not come out right is read once more by itself: its bytes may
// have suffered on their way.
func (m *merger) readRange(ctx context.Context, list []*source, end, useful int64) error {
	begin := list[0].entry.Position
	data, err := m.get(paidBy(ctx, list), list[0].key, begin, end-begin)
	if err != nil && !errors.Is(err, segments.ErrNotFound) && !errors.Is(err, segments.ErrCorrupt) {
		return err
	}
	for _, s := range list {
		from := min(s.entry.Position-begin, int64(len(data)))
		piece := data[from:min(from+s.entry.Length, int64(len(data)))]
		if useful < end-begin {
			piece = slices.Clone(piece) // what lies between need not stay in memory
		}
		s.parse(piece, err)
		if s.fault == nil {
			continue
		}
		again, err := m.get(paidBy(ctx, []*source{s}), s.key, s.entry.Position, s.entry.Length)
		if err != nil && !errors.Is(err, segments.ErrNotFound) && !errors.Is(err, segments.ErrCorrupt) {
			return err
		}
		s.parse(again, err)
	}
	return nil
}

func (m *merger) get(ctx context.Context, key string, position, length int64) ([]byte, error) {
	if err := m.pace(ctx, length); err != nil {
		return nil, err
	}
	data, _, err := m.store.Get(ctx, key, position, length)
	if err != nil {
		return nil, fmt.Errorf("read segment %s: %w", key, err)
	}
	return data, nil
}

// parse checks an entry's bytes and places their batches.
func (s *source) parse(data []byte, err error) {
	s.batches = nil
	if s.fault = err; err == nil {
		s.batches, s.fault = place(s.entry, data)
	}
}

// place finds an entry's batches in its bytes, checks each and gives it its offset. The bytes become those batches'
// own, each sealed at its place. Where offsets were compacted away, those that are stored in the batches are the truth:
// the content sum has them, so that a seal which is damaged by itself does no harm, and is made anew.
func place(e *metadata.Entry, data []byte) ([]placed, error) {
	if int64(len(data)) != e.Length {
		return nil, fmt.Errorf("%w: it ends after %d of %d bytes", segments.ErrCorrupt, len(data), e.Length)
	}
	sparse := e.Records != e.End-e.First
	var list []placed
	var sum uint64
	next := e.First
	for at := 0; at < len(data); {
		h, err := batch.Check(data[at:])
		if err != nil {
			return nil, fmt.Errorf("%w: the batch at byte %d: %w", segments.ErrCorrupt, e.Position+int64(at), err)
		}
		if !sparse {
			h.BaseOffset = next
		}
		if h.BaseOffset < next || h.EndOffset() > e.End {
			return nil, fmt.Errorf("%w: the batch at byte %d has offsets %d to %d, where %d to %d belong", segments.ErrCorrupt,
				e.Position+int64(at), h.BaseOffset, h.EndOffset()-1, next, e.End-1)
		}
		size := h.Size()
		piece := data[at : at+size : at+size]
		batch.SealPlace(piece, h.BaseOffset)
		list = append(list, placed{piece, h.BaseOffset, infoOf(h)})
		sum += batch.ContentSum(h)
		next = h.EndOffset()
		at += size
	}
	if sum != e.Sum {
		return nil, fmt.Errorf("%w: the batches add up to %016x, the index entry says %016x", segments.ErrCorrupt, sum, e.Sum)
	}
	if len(list) == 1 {
		list[0].info.MinTimestamp, list[0].info.LastTimestamp = e.MinTimestamp, e.LastTimestamp
	}
	return list, nil
}

// infoOf is what a header tells of a batch: all but the timestamps of its records, unless they are all the same.
func infoOf(h batch.Header) segments.BatchInfo {
	return segments.BatchInfo{Size: int32(h.Size()), Offsets: h.LastOffsetDelta + 1, Records: h.Count, CRC: h.CRC,
		MinTimestamp: h.MaxTimestamp, MaxTimestamp: h.MaxTimestamp, LastTimestamp: h.MaxTimestamp,
		ProducerID: h.ProducerID, ProducerEpoch: h.ProducerEpoch, BaseSequence: h.BaseSequence, ExpectedOffset: -1,
		Ack: segments.AckCommitted}
}

// dated says that the timestamps of a batch's records follow from its header.
func dated(p *placed) bool {
	h, err := batch.ParseHeader(p.data)
	return err == nil && (h.AppendTime() || h.Count == 1)
}

// date takes least and last timestamps, which no header has, from the object's directory: inflating the batches would
// cost far more.
func (m *merger) date(ctx context.Context, list []*source) error {
	defer func() {
		for _, s := range list {
			s.compare()
		}
	}()
	if !slices.ContainsFunc(list, (*source).undated) {
		return nil
	}
	ctx = paidBy(ctx, list)
	directory, err := segments.ReadDirectory(ctx, m.store, list[0].key)
	if errors.Is(err, segments.ErrCorrupt) {
		directory, err = segments.ReadDirectory(ctx, m.store, list[0].key)
	}
	if err != nil && !errors.Is(err, segments.ErrCorrupt) && !errors.Is(err, segments.ErrNotFound) {
		return err
	}
	for _, s := range list {
		if !s.undated() {
			continue
		}
		if err == nil {
			s.fault = s.dateFrom(directory)
		} else {
			s.fault = err
		}
	}
	return nil
}

// compare finds entries that the index describes otherwise than their batches are.
func (s *source) compare() {
	if s.fault != nil {
		return
	}
	e, first := s.entry, &s.batches[0].info
	is := metadata.Entry{MinTimestamp: first.MinTimestamp, MaxTimestamp: first.MaxTimestamp}
	for i := range s.batches {
		b := &s.batches[i].info
		is.Records += int64(b.Records)
		is.MinTimestamp, is.MaxTimestamp, is.LastTimestamp = min(is.MinTimestamp, b.MinTimestamp), max(is.MaxTimestamp, b.MaxTimestamp), b.LastTimestamp
	}
	if is.Records != e.Records || is.MinTimestamp != e.MinTimestamp || is.MaxTimestamp != e.MaxTimestamp || is.LastTimestamp != e.LastTimestamp {
		s.fault = fmt.Errorf("%w: the index says %d records, timestamps %d to %d, last %d; the batches have %d, %d to %d, last %d", segments.ErrCorrupt,
			e.Records, e.MinTimestamp, e.MaxTimestamp, e.LastTimestamp, is.Records, is.MinTimestamp, is.MaxTimestamp, is.LastTimestamp)
	}
}

// undated says that the entry's batches lack timestamps.
func (s *source) undated() bool {
	return s.fault == nil && len(s.batches) > 1 && slices.ContainsFunc(s.batches, func(p placed) bool { return !dated(&p) })
}

// dateFrom finds the batches in the directory, by their place.
func (s *source) dateFrom(d *segments.Directory) error {
	span := slices.IndexFunc(d.Spans, func(x segments.Span) bool {
		return x.Position <= s.entry.Position && s.entry.Position+s.entry.Length <= x.Position+x.Length
	})
	if span < 0 {
		return fmt.Errorf("%w: the directory has no span at bytes %d to %d", segments.ErrCorrupt, s.entry.Position, s.entry.Position+s.entry.Length-1)
	}
	infos := d.Spans[span].Batches
	at, found := slices.BinarySearchFunc(infos, s.entry.Position, func(b segments.BatchInfo, p int64) int { return cmp.Compare(b.Position, p) })
	if !found || at+len(s.batches) > len(infos) {
		return fmt.Errorf("%w: the directory has no batches at byte %d", segments.ErrCorrupt, s.entry.Position)
	}
	for i := range s.batches {
		has, is := &infos[at+i], &s.batches[i].info
		if has.CRC != is.CRC || has.Size != is.Size || has.MaxTimestamp != is.MaxTimestamp {
			return fmt.Errorf("%w: the batch at byte %d is another one than the directory says", segments.ErrCorrupt, has.Position)
		}
		is.MinTimestamp, is.LastTimestamp = has.MinTimestamp, has.LastTimestamp
	}
	return nil
}

// segmentWriter puts the batches of a job into segments.
type segmentWriter struct {
	m        *merger
	uploader metadata.GatewayID
	number   func() uint64
	out      *product

	builder *segments.Builder
	current uint64
	pending []pendingEntry
}

// pendingEntry is an entry of the segment that is being built.
type pendingEntry struct {
	replacement
	first, end int64
	batches    []placed
}

// group adds what can be merged of a group: neighbours that came out right become one entry, up to one that did not. Of a group that
// falls apart so, pieces stay as they are that nobody would merge by themselves: else each process that meets the damage anew would
// write again what lies beside it.
func (w *segmentWriter) group(ctx context.Context, g *group, sources []source) error {
	apart := slices.ContainsFunc(sources, func(s source) bool { return s.fault != nil })
	for i := 0; i < len(sources); {
		if sources[i].fault != nil {
			w.out.asides = append(w.out.asides, aside{g.stretch, g.from + i, sources[i].fault})
			i++
			continue
		}
		var batches []placed
		n := i
		for ; n < len(sources) && sources[n].fault == nil; n++ {
			if len(batches) > 0 && len(batches)+len(sources[n].batches) > mostBatches {
				break
			}
			batches = append(batches, sources[n].batches...)
		}
		if len(batches) > 0 && (!apart || g.stretch.worthy(g.from+i, g.from+n)) {
			if err := w.add(ctx, g, g.from+i, g.from+n, batches); err != nil {
				return err
			}
		}
		i = n
	}
	return nil
}

// add takes one entry's batches, into a new segment if the one that is open has no room for them.
func (w *segmentWriter) add(ctx context.Context, g *group, from, to int, batches []placed) error {
	if w.builder != nil && w.builder.Batches()+len(batches) > mostBatches {
		if err := w.finish(ctx); err != nil {
			return err
		}
	}
	if w.builder == nil {
		w.current = w.number()
		w.builder = segments.NewBuilder(w.m.cluster, segments.GatewayID(w.uploader), w.current)
	}
	id := segments.SpanID{Topic: segments.TopicID(g.stretch.partition.Topic), Partition: g.stretch.partition.Number}
	for i := range batches {
		if err := w.builder.Add(id, batches[i].data, batches[i].info); err != nil {
			return err
		}
	}
	entries := g.stretch.entries
	w.pending = append(w.pending, pendingEntry{replacement{stretch: g.stretch, from: from, to: to, was: entries[from:to]},
		entries[from].First, entries[to-1].End, batches})
	return nil
}

// finish puts the segment that is open, once what goes into it balances with what it is made of.
func (w *segmentWriter) finish(ctx context.Context) error {
	if w.builder == nil {
		return nil
	}
	bytes := w.builder.Bytes()
	object, err := w.builder.Build(func(segments.SpanID) uint64 { return 0 })
	if err != nil {
		return err
	}
	next := make(map[metadata.PartitionID]int64) // where its next batch lies
	for i := range object.Directory.Spans {
		s := &object.Directory.Spans[i]
		next[metadata.PartitionID{Topic: metadata.TopicID(s.Topic), Number: s.Partition}] = s.Position
	}
	var done []replacement
	for i := range w.pending {
		p := &w.pending[i]
		id := p.stretch.partition
		p.entry, next[id] = p.index(w.uploader, w.current, next[id])
		if err := p.balances(); err != nil {
			return err
		}
		done = append(done, p.replacement)
	}
	if err := w.m.put(ctx, object); err != nil {
		return err
	}
	w.out.replacements = append(w.out.replacements, done...)
	w.out.objects++
	w.out.bytes += bytes
	w.out.objectBytes += object.Directory.Size
	w.builder, w.pending = nil, nil
	return nil
}

// index makes the entry of batches that lie at position on, and says where they end.
func (p *pendingEntry) index(uploader metadata.GatewayID, number uint64, position int64) (metadata.Entry, int64) {
	batches, offsets := make([]metadata.Batch, len(p.batches)), make([]int64, len(p.batches))
	for i := range p.batches {
		b := &p.batches[i]
		offsets[i] = b.offset
		batches[i] = metadata.Batch{Position: position, Size: b.info.Size, Offsets: b.info.Offsets, Records: b.info.Records,
			MinTimestamp: b.info.MinTimestamp, MaxTimestamp: b.info.MaxTimestamp, LastTimestamp: b.info.LastTimestamp, CRC: b.info.CRC}
		position += int64(b.info.Size)
	}
	e := metadata.MergedEntry(uploader, number, batches, offsets, p.first, p.end)
	e.Clean = !slices.ContainsFunc(p.was, func(was metadata.Entry) bool { return !was.Clean })
	return e, position
}

// balances compares the new entry with those that it stands for.
func (p *pendingEntry) balances() error {
	var was metadata.Entry
	for i := range p.was {
		e := &p.was[i]
		if was.Records == 0 && e.Records > 0 {
			was.MinTimestamp, was.MaxTimestamp = e.MinTimestamp, e.MaxTimestamp
		}
		if e.Records > 0 {
			was.MinTimestamp, was.MaxTimestamp, was.LastTimestamp = min(was.MinTimestamp, e.MinTimestamp), max(was.MaxTimestamp, e.MaxTimestamp), e.LastTimestamp
		}
		was.Records += e.Records
		was.Length += e.Length
		was.Sum += e.Sum
	}
	is := &p.entry
	if was.Records != is.Records || was.Length != is.Length || was.Sum != is.Sum || was.MinTimestamp != is.MinTimestamp ||
		was.MaxTimestamp != is.MaxTimestamp || was.LastTimestamp != is.LastTimestamp {
		return fmt.Errorf("%w: a merge of offsets %d to %d of %s does not balance: %d records, %d bytes, timestamps %d to %d, last %d, sum %016x went in, "+
			"%d records, %d bytes, timestamps %d to %d, last %d, sum %016x came out", errUnbalanced, is.First, is.End-1, p.stretch.partition,
			was.Records, was.Length, was.MinTimestamp, was.MaxTimestamp, was.LastTimestamp, was.Sum,
			is.Records, is.Length, is.MinTimestamp, is.MaxTimestamp, is.LastTimestamp, is.Sum)
	}
	return nil
}

// errUnbalanced says that a merge would have changed what is in the log.
var errUnbalanced = errors.New("compactor: not balanced")

// put puts a segment. One that is there already is its own first try, whose answer was lost: nobody else has its name.
func (m *merger) put(ctx context.Context, object *segments.Object) error {
	if err := m.pace(ctx, object.Directory.Size); err != nil {
		return err
	}
	err := m.store.Put(ctx, object.Key(), object)
	if !errors.Is(err, segments.ErrExists) {
		return err
	}
	there, err := segments.ReadDirectory(ctx, m.store, object.Key())
	if err != nil {
		return err
	}
	if there.Size != object.Directory.Size || !slices.EqualFunc(there.Spans, object.Directory.Spans, func(a, b segments.Span) bool {
		return a.SpanID == b.SpanID && slices.Equal(a.Batches, b.Batches)
	}) {
		return fmt.Errorf("%w: another object lies under the name of the merged segment %s", segments.ErrCorrupt, object.Key())
	}
	return nil
}
