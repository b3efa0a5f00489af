package compactor

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
)

const (
	keyCluster  = segments.ClusterID("c")
	keyUploader = metadata.GatewayID("g1-m")
)

var keyPartition = metadata.PartitionID{Topic: metadata.TopicID{7}, Number: 3}

// keyLog is a partition with real segments, and what was appended to it.
type keyLog struct {
	t        keyT
	store    segments.Store
	table    *memtable.Table
	state    *metadata.Partition
	lease    *metadata.Lease
	sequence uint64
	number   uint64 // of the gateway's segments
	merges   uint64 // of the compactor's
	now      int64  // ms
	all      []batch.Record
	// horizons say from when on at the earliest a tombstone may go, by its offset.
	horizons map[int64]int64
	// disturb, if set, is called before each swap is decided.
	disturb func()
	damaged []int64 // first offsets
}

// keyT is what rapid's T and testing's T have in common.
type keyT interface {
	Fatalf(string, ...any)
	Helper()
}

func newKeyLog(t keyT) *keyLog {
	l := &keyLog{t: t, store: memstore.New(), table: memtable.New(), now: 1_700_000_000_000, horizons: make(map[int64]int64)}
	journal, err := metadata.OpenJournal(context.Background(), l.table, "g1")
	l.must(err)
	l.state, l.lease, err = metadata.Acquire(context.Background(), l.table, keyPartition, journal, nil)
	l.must(err)
	return l
}

func (l *keyLog) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatalf("%v", err)
	}
}

func (l *keyLog) apply(c *metadata.Change) {
	l.t.Helper()
	if c != nil {
		l.sequence++
		l.must(l.state.Apply(c, l.sequence))
	}
}

// append adds a segment with batches of these records.
func (l *keyLog) append(codec batch.Codec, batches ...[]batch.Record) {
	l.t.Helper()
	l.number++
	b := segments.NewBuilder(keyCluster, "g1", l.number)
	id := segments.SpanID{Topic: segments.TopicID(keyPartition.Topic), Partition: keyPartition.Number}
	for _, records := range batches {
		builder := batch.NewBuilder(codec)
		for _, r := range records {
			l.must(builder.Append(r))
			r.Offset = int64(len(l.all))
			l.all = append(l.all, r)
		}
		data, err := builder.Build(batch.NoProducer)
		l.must(err)
		info, err := batch.Validate(data, batch.Limits{})
		l.must(err)
		l.must(b.Add(id, data, segments.BatchInfo{Offsets: info.LastOffsetDelta + 1, Records: info.Count, MinTimestamp: info.MinTimestamp,
			MaxTimestamp: info.MaxTimestamp, LastTimestamp: info.LastTimestamp, CRC: info.CRC, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1}))
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return l.number - 1 })
	l.must(err)
	l.must(l.store.Put(context.Background(), object.Key(), object))
	ref := &metadata.Reference{Partition: keyPartition, Uploader: "g1", Number: l.number, Previous: l.number - 1}
	for _, i := range object.Directory.Spans[0].Batches {
		ref.Batches = append(ref.Batches, metadata.Batch{Position: i.Position, Size: i.Size, Offsets: i.Offsets, Records: i.Records,
			MinTimestamp: i.MinTimestamp, MaxTimestamp: i.MaxTimestamp, LastTimestamp: i.LastTimestamp, CRC: i.CRC,
			ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset})
	}
	_, change := l.state.Judge(ref)
	l.apply(change)
}

func (l *keyLog) checkpoint() {
	l.t.Helper()
	ctx := context.Background()
	plan := l.state.Checkpoint(l.lease, l.sequence, false)
	l.must(plan.Write(ctx, l.table, l.lease))
	l.state.Done(plan)
	l.must(plan.Clean(ctx, l.table))
}

func (l *keyLog) trim(to int64) {
	l.t.Helper()
	change, err := l.state.JudgeTrim(to)
	l.must(err)
	l.apply(change)
}

// collect deletes the objects that nothing readable names.
func (l *keyLog) collect() {
	l.t.Helper()
	v, ctx := l.state.View(), context.Background()
	named := make(map[string]bool)
	for at := v.Start; at < v.Next; {
		entries, err := v.Entries(ctx, l.index(), at)
		l.must(err)
		for _, e := range entries {
			named[segments.ObjectKey(keyCluster, segments.GatewayID(e.Gateway), e.Number)] = true
			at = e.End
		}
	}
	objects, err := l.store.List(ctx, "", "", 1<<20)
	l.must(err)
	for _, o := range objects {
		if !named[o.Key] {
			l.must(l.store.Delete(ctx, o.Key))
		}
	}
}

func (l *keyLog) index() metadata.Index { return metadata.TableIndex{Table: l.table} }

func (l *keyLog) deps() KeyDeps {
	return KeyDeps{
		Store: l.store, Cluster: keyCluster, Table: l.table, Index: l.index(), Uploader: keyUploader,
		Number: func() uint64 { l.merges++; return l.merges },
		View:   func(context.Context, metadata.PartitionID) (*metadata.View, error) { return l.state.View(), nil },
		Swap:   l.swap,
		Now:    func() time.Time { return time.UnixMilli(l.now) },
		Damaged: func(_ metadata.PartitionID, e *metadata.Entry, _ error) {
			l.damaged = append(l.damaged, e.First)
		},
	}
}

func (l *keyLog) swap(_ context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
	if l.disturb != nil {
		l.disturb()
	}
	w, err := metadata.DecodeSwap(w.Partition, w.Encode())
	l.must(err)
	outcome, change, err := l.state.JudgeSwap(w)
	l.must(err)
	l.apply(change)
	return outcome, nil
}

// stored is a record as it is read, and the horizon of its batch.
type stored struct {
	batch.Record
	horizon int64 // math.MaxInt64: none
}

// read reads all that is readable, as a reader would, and checks that the index covers the log and agrees with the objects.
func (l *keyLog) read() []stored {
	l.t.Helper()
	v := l.state.View()
	var out []stored
	at, sum := v.Start, uint64(0)
	for at < v.Next {
		entries, err := v.Entries(context.Background(), l.index(), at)
		l.must(err)
		for i := range entries {
			e := &entries[i]
			if e.First > at || e.First < at && at != v.Start {
				l.t.Fatalf("an entry begins at %d, the one before ends at %d", e.First, at)
			}
			for _, r := range l.readEntry(e) {
				if r.Offset >= v.Start {
					out = append(out, r)
				}
			}
			at = e.End
			sum += e.Sum
		}
	}
	if at != v.Next {
		l.t.Fatalf("the index ends at %d, the log at %d", at, v.Next)
	}
	return out
}

// readEntry reads an entry's records and holds the entry against them.
func (l *keyLog) readEntry(e *metadata.Entry) []stored {
	l.t.Helper()
	if e.Length == 0 {
		if e.Records != 0 || e.Gateway != "" || e.Sum != 0 {
			l.t.Fatalf("empty entry %+v", e)
		}
		return nil
	}
	var out []stored
	var sum uint64
	next := e.First
	least, largest, last := int64(math.MaxInt64), int64(-1), int64(-1)
	for _, c := range e.Chunks() {
		data := l.bytes(c)
		if next != c.First {
			if !c.Sparse || next > c.First {
				l.t.Fatalf("chunk %+v of %+v does not begin at %d", c, e, next)
			}
		}
		next = c.First
		for b, err := range batch.Split(data) {
			l.must(err)
			h, err := batch.Check(b)
			l.must(err)
			if !c.Sparse {
				h.BaseOffset = next
			}
			if h.BaseOffset < next || h.EndOffset() > c.End {
				l.t.Fatalf("a batch of offsets %d to %d lies in chunk %+v at %d", h.BaseOffset, h.EndOffset(), c, next)
			}
			batch.SetBaseOffset(b, h.BaseOffset, 0)
			_, err = batch.Inspect(b, batch.Limits{})
			l.must(err)
			horizon := int64(math.MaxInt64)
			if at, ok := h.DeleteHorizon(); ok {
				horizon = at
			}
			for r, err := range batch.Records(b, batch.Limits{}) {
				l.must(err)
				out = append(out, stored{r, horizon})
				least, largest, last = min(least, r.Timestamp), max(largest, r.Timestamp), r.Timestamp
			}
			sum += batch.ContentSum(h)
			next = h.EndOffset()
		}
		if !c.Sparse && next != c.End {
			l.t.Fatalf("chunk %+v ends at %d", c, next)
		}
	}
	if sum != e.Sum || int64(len(out)) != e.Records || least != e.MinTimestamp || largest != e.MaxTimestamp || last != e.LastTimestamp {
		l.t.Fatalf("entry %+v has %d records, timestamps %d to %d, last %d, sum %x", e, len(out), least, largest, last, sum)
	}
	return out
}

func (l *keyLog) bytes(c metadata.Chunk) []byte {
	l.t.Helper()
	data, _, err := l.store.Get(context.Background(), segments.ObjectKey(keyCluster, segments.GatewayID(c.Gateway), c.Number), c.Position, c.Length)
	l.must(err)
	if int64(len(data)) != c.Length {
		l.t.Fatalf("chunk %+v has %d bytes", c, len(data))
	}
	return slices.Clone(data)
}

// scan is a [metadata.ScanFunc].
func (l *keyLog) scan(_ context.Context, c metadata.Chunk, from, at int64) (f metadata.Found, largest int64, ok bool, err error) {
	largest = metadata.NoTimestamp
	next := c.First
	for b, err := range batch.Split(l.bytes(c)) {
		l.must(err)
		h, err := batch.ParseHeader(b)
		l.must(err)
		if !c.Sparse {
			h.BaseOffset = next
			batch.SetBaseOffset(b, next, 0)
		}
		next = h.EndOffset()
		for r, err := range batch.Records(b, batch.Limits{}) {
			l.must(err)
			if r.Offset < from {
				continue
			}
			largest = max(largest, r.Timestamp)
			switch {
			case ok:
			case r.Timestamp >= at:
				f.Offset, f.Timestamp, ok = r.Offset, r.Timestamp, true
			default:
				f.PreviousOffset, f.Previous, f.PreviousKnown = r.Offset, r.Timestamp, true
			}
		}
	}
	return f, largest, ok, nil
}

func describeRecord(r batch.Record) string {
	return fmt.Sprintf("%d: %q=%q at %d", r.Offset, r.Key, r.Value, r.Timestamp)
}
