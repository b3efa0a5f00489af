package compactor_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
)

// tb is what testing.T and rapid.T have in common.
type tb interface {
	Helper()
	Fatalf(format string, args ...any)
	Context() context.Context
}

// forgery is a cluster whose gateways do what gateways do, one step at a time.
type forgery struct {
	t       tb
	store   *memstore.Store
	table   *memtable.Table
	cluster *metadata.Cluster
	topics  *metadata.Topics
	topic   *metadata.Topic
	all     []*forged
	swaps   []*swap // that were prepared and not decided
	did     map[string]int
	asking  sync.Mutex // several may be asked at once
}

// forged is one of its gateways.
type forged struct {
	w       *forgery
	id      metadata.GatewayID
	row     *metadata.Gateway
	journal *metadata.Journal
	dead    bool // it does nothing more, but for what is on its way
	closed  bool
	parts   map[int32]*part
	// seen are the gateways' rows as it knows them.
	seen map[metadata.GatewayID]metadata.GatewayState

	number, merged uint64
	// flying are segments that were uploaded and are not settled.
	flying []*segments.Directory
}

type part struct {
	state *metadata.Partition
	lease *metadata.Lease
}

const partitions = 3

func newForgery(t tb) *forgery {
	t.Helper()
	w := &forgery{t: t, store: memstore.New(), table: memtable.New(), did: make(map[string]int)}
	var err error
	w.cluster, err = metadata.OpenCluster(t.Context(), w.table)
	w.must(err)
	w.must(segments.ClaimStore(t.Context(), w.store, segments.ClusterID(w.cluster.ID)))
	w.topics = metadata.NewTopics(w.table)
	w.topic, err = w.topics.Create(t.Context(), "a", partitions, nil, time.Now())
	w.must(err)
	return w
}

func (w *forgery) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%v", err)
	}
}

func (w *forgery) id(partition int32) metadata.PartitionID {
	return metadata.PartitionID{Topic: w.topic.ID, Number: partition}
}

func (w *forgery) key(uploader metadata.GatewayID, number uint64) string {
	return segments.ObjectKey(segments.ClusterID(w.cluster.ID), segments.GatewayID(uploader), number)
}

func (w *forgery) has(key string) bool {
	_, _, err := w.store.Get(w.t.Context(), key, 0, 1)
	if err != nil && !errors.Is(err, segments.ErrNotFound) {
		w.t.Fatalf("%v", err)
	}
	return err == nil
}

// begin starts a gateway.
func (w *forgery) begin() *forged {
	w.t.Helper()
	g := &forged{w: w, id: metadata.NewGatewayID(time.Now()), parts: make(map[int32]*part)}
	var err error
	g.journal, err = metadata.OpenJournal(w.t.Context(), w.table, g.id)
	w.must(err)
	g.row, err = metadata.RegisterGateway(w.t.Context(), w.table, metadata.Gateway{ID: g.id, Floor: 1, MergeFloor: 1})
	w.must(err)
	g.look()
	w.all = append(w.all, g)
	return g
}

// look reads the gateways' rows.
func (g *forged) look() {
	rows, err := metadata.ListGateways(g.w.t.Context(), g.w.table, metadata.Strong, nil)
	g.w.must(err)
	g.seen = make(map[metadata.GatewayID]metadata.GatewayState)
	for _, r := range rows {
		g.seen[r.ID] = r.State
	}
}

// takes says whether it judges references of an uploader.
func (g *forged) takes(uploader metadata.GatewayID) bool {
	if _, known := g.seen[uploader.Owner()]; !known {
		g.look() // it may have begun only now
	}
	state, known := g.seen[uploader.Owner()]
	return known && state != metadata.GatewayClosed
}

// Acknowledge implements compactor.Gateways.
func (w *forgery) Acknowledge(_ context.Context, id metadata.GatewayID) error {
	w.asking.Lock()
	defer w.asking.Unlock()
	for _, g := range w.all {
		if g.id == id && !g.dead {
			g.look()
			return nil
		}
	}
	return errors.New("it is gone")
}

// build makes a segment with one batch of so many records for each of the partitions.
func (w *forgery) build(uploader metadata.GatewayID, number uint64, records int, partitions ...int32) *segments.Object {
	w.t.Helper()
	b := segments.NewBuilder(segments.ClusterID(w.cluster.ID), segments.GatewayID(uploader), number)
	for _, partition := range partitions {
		batches := batch.NewBuilder(batch.None)
		for i := range records {
			w.must(batches.Append(batch.Record{Timestamp: int64(1000*number) + int64(i), Value: []byte("x")}))
		}
		data, err := batches.Build(batch.NoProducer)
		w.must(err)
		info, err := batch.Validate(data, batch.DefaultLimits())
		w.must(err)
		w.must(b.Add(segments.SpanID{Topic: segments.TopicID(w.topic.ID), Partition: partition}, data, segments.BatchInfo{
			Offsets: info.LastOffsetDelta + 1, Records: info.Count, MinTimestamp: info.MinTimestamp, MaxTimestamp: info.MaxTimestamp,
			LastTimestamp: info.LastTimestamp, CRC: info.CRC, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1,
		}))
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return 0 })
	w.must(err)
	return object
}

// upload puts a segment whose references are on their way then.
func (g *forged) upload(records int, partitions ...int32) *segments.Directory {
	g.w.t.Helper()
	g.number++
	object := g.w.build(g.id, g.number, records, partitions...)
	g.w.must(g.w.store.Put(g.w.t.Context(), object.Key(), object))
	g.flying = append(g.flying, &object.Directory)
	return &object.Directory
}

func batchesOf(s *segments.Span) []metadata.Batch {
	var list []metadata.Batch
	for _, b := range s.Batches {
		list = append(list, metadata.Batch{Position: b.Position, Size: b.Size, Offsets: b.Offsets, Records: b.Records,
			MinTimestamp: b.MinTimestamp, MaxTimestamp: b.MaxTimestamp, LastTimestamp: b.LastTimestamp, CRC: b.CRC,
			ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset})
	}
	return list
}

// hold takes a partition, if it may: nil when somebody who lives has it.
func (g *forged) hold(partition int32) *part {
	g.w.t.Helper()
	if g.parts[partition] != nil {
		return g.parts[partition]
	}
	state, lease, err := metadata.Acquire(g.w.t.Context(), g.w.table, g.w.id(partition), g.journal,
		func(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
			for _, other := range g.w.all {
				if other.id == id && !other.dead {
					return nil, metadata.ErrHeld
				}
			}
			if _, err := metadata.Seal(ctx, g.w.table, id, g.id); err != nil {
				return nil, err
			}
			return metadata.ReadSealed(ctx, g.w.table, id)
		})
	if errors.Is(err, metadata.ErrHeld) {
		return nil
	}
	g.w.must(err)
	g.look() // before anything is judged
	for _, uploader := range state.Uploaders() {
		if !g.takes(uploader) {
			state.Forget(uploader)
		}
	}
	g.parts[partition] = &part{state, lease}
	return g.parts[partition]
}

// commit puts a change into the journal.
func (g *forged) commit(p *part, change *metadata.Change) {
	g.w.t.Helper()
	if change == nil {
		return
	}
	for _, e := range change.Entries {
		if key := g.w.key(e.Gateway, e.Number); e.Gateway != "" && !g.w.has(key) {
			g.w.t.Fatalf("%s was collected, and is named now", key)
		}
	}
	entry := metadata.NewEntryBuilder(time.Now())
	g.w.must(p.state.Apply(change, g.journal.Next()))
	entry.Add(change)
	_, err := g.journal.Append(g.w.t.Context(), entry.Encode())
	g.w.must(err)
}

// judge has the span of a partition judged by a sequencer; false: not now.
func (g *forged) judge(d *segments.Directory, s *segments.Span) bool {
	g.w.t.Helper()
	p := g.hold(s.Partition)
	if p == nil {
		return false
	}
	if !g.takes(metadata.GatewayID(d.Gateway)) {
		g.w.did["late reference refused"]++
		return true
	}
	_, change := p.state.Judge(&metadata.Reference{Partition: g.w.id(s.Partition), Uploader: metadata.GatewayID(d.Gateway), Number: d.Number, ByNumber: true, Batches: batchesOf(s)})
	g.commit(p, change)
	return true
}

// settle has all spans of the oldest segment on its way judged, by whoever has the partitions; with beat, its row says so.
func (g *forged) settle(beat bool) {
	g.w.t.Helper()
	if len(g.flying) == 0 {
		return
	}
	d := g.flying[0]
	for i := range d.Spans {
		done := false
		for _, other := range g.w.all {
			done = done || !other.dead && other.judge(d, &d.Spans[i])
		}
		if !done {
			return // nobody lives
		}
	}
	g.flying = g.flying[1:]
	if beat && !g.dead {
		g.beat()
	}
}

// beat writes its floors.
func (g *forged) beat() {
	g.w.t.Helper()
	g.row.Floor, g.row.MergeFloor = g.number+1, g.merged+1
	for _, d := range g.flying {
		g.row.Floor = min(g.row.Floor, d.Number)
	}
	for _, m := range g.w.swaps {
		if m.by == g {
			g.row.MergeFloor = min(g.row.MergeFloor, m.Number)
		}
	}
	g.w.must(g.row.Write(g.w.t.Context(), g.w.table))
}

func (g *forged) checkpoint(partition int32, release bool) {
	g.w.t.Helper()
	p := g.parts[partition]
	if p == nil {
		return
	}
	plan := p.state.Checkpoint(p.lease, g.journal.Next()-1, release)
	g.w.must(plan.Write(g.w.t.Context(), g.w.table, p.lease))
	p.state.Done(plan)
	g.w.must(plan.Clean(g.w.t.Context(), g.w.table))
	if release {
		delete(g.parts, partition)
	}
}

func (g *forged) trim(partition int32, offset int64) {
	g.w.t.Helper()
	p := g.parts[partition]
	if p == nil {
		return
	}
	change, err := p.state.JudgeTrim(min(offset, p.state.Next()))
	g.w.must(err)
	g.commit(p, change)
}

// trimJournal lets go of what every partition has checkpointed.
func (g *forged) trimJournal() {
	g.w.t.Helper()
	through := g.journal.Next() - 2
	for _, p := range g.parts {
		if since := p.state.Unfolded(); since != 0 {
			through = min(through, since-1)
		}
	}
	if g.journal.Next() >= 3 {
		g.w.must(metadata.TrimJournal(g.w.t.Context(), g.w.table, g.id, through))
	}
}

// leave ends it in good order.
func (g *forged) leave() {
	g.w.t.Helper()
	if g.dead {
		return
	}
	for len(g.flying) > 0 {
		g.settle(false)
	}
	for _, m := range slices.Clone(g.w.swaps) {
		if m.by == g {
			m.decide()
		}
	}
	for partition := range g.parts {
		g.checkpoint(partition, true)
	}
	g.w.must(g.journal.Leave(g.w.t.Context()))
	g.dead, g.closed = true, true
	g.w.must(metadata.MarkClosed(g.w.t.Context(), g.w.table, g.id))
}

// end closes one that died, though references of it may be on their way.
func (g *forged) end(by metadata.GatewayID) {
	g.w.t.Helper()
	g.dead, g.closed = true, true
	_, err := metadata.Seal(g.w.t.Context(), g.w.table, g.id, by)
	g.w.must(err)
	g.w.must(metadata.MarkSealed(g.w.t.Context(), g.w.table, g.id, time.Now()))
	g.w.must(metadata.MarkClosed(g.w.t.Context(), g.w.table, g.id))
}

// swap is a merge of a section of a partition, with its segment uploaded and its rows written.
type swap struct {
	*metadata.Swap
	by *forged
}

// merge prepares a swap of one section into one entry, if there is one.
func (g *forged) merge(partition int32, pick func(n int) int) *swap {
	g.w.t.Helper()
	ctx := g.w.t.Context()
	view, err := metadata.ReadView(ctx, g.w.table, g.w.id(partition))
	g.w.must(err)
	sections := view.Sections()
	if len(sections) == 0 {
		return nil
	}
	s := sections[pick(len(sections))]
	if s.To <= view.Start {
		return nil
	}
	g.merged++
	object := g.w.build(metadata.MergerID(g.id), g.merged, int(s.To-s.From), partition)
	g.w.must(g.w.store.Put(ctx, object.Key(), object))
	entry := metadata.MergedEntry(metadata.MergerID(g.id), g.merged, batchesOf(&object.Directory.Spans[0]), []int64{s.From}, s.From, s.To)
	m, err := metadata.PrepareSwap(ctx, g.w.table, s, metadata.MergerID(g.id), g.merged, []metadata.Entry{entry})
	if errors.Is(err, metadata.ErrInvalid) {
		return nil
	}
	g.w.must(err)
	m.Rewritten = true
	g.w.swaps = append(g.w.swaps, &swap{m, g})
	return g.w.swaps[len(g.w.swaps)-1]
}

// decide has a swap judged by whoever has the partition.
func (m *swap) decide() {
	w := m.by.w
	w.t.Helper()
	w.swaps = slices.DeleteFunc(w.swaps, func(other *swap) bool { return other == m })
	for _, g := range w.all {
		if g.dead {
			continue
		}
		p := g.hold(m.Partition.Number)
		if p == nil {
			continue
		}
		if !g.takes(m.Uploader) {
			w.did["late swap refused"]++
			return
		}
		outcome, change, err := p.state.JudgeSwap(m.Swap)
		if errors.Is(err, metadata.ErrClosed) {
			return
		}
		w.must(err)
		w.did[fmt.Sprintf("swap outcome %d", outcome)]++
		for _, e := range m.Children {
			if _, err := w.table.Get(w.t.Context(), m.Partition.PageKey(e.Place()), metadata.Strong); err != nil && outcome == metadata.Swapped && m.Level == 0 {
				w.t.Fatalf("a page of a swap was collected before it: %v", err)
			}
		}
		g.commit(p, change)
		return
	}
}

// named lists what partitions name now, by key.
func (w *forgery) named() []string {
	w.t.Helper()
	var keys []string
	if topic, err := w.topics.Refresh(w.t.Context(), "a"); err != nil || topic.ID != w.topic.ID {
		return nil
	}
	for partition := range int32(partitions) {
		for _, e := range w.entries(partition) {
			keys = append(keys, w.key(e.Gateway, e.Number))
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// entries are those that readers of a partition can reach.
func (w *forgery) entries(partition int32) []metadata.Entry {
	w.t.Helper()
	view, err := metadata.ReadView(w.t.Context(), w.table, w.id(partition))
	w.must(err)
	var all []metadata.Entry
	for offset := view.Start; offset < view.Next; {
		entries, err := view.Entries(w.t.Context(), metadata.TableIndex{Table: w.table}, offset)
		w.must(err)
		all = append(all, entries...)
		offset = entries[len(entries)-1].End
	}
	return all
}

// objects lists the segments in the bucket.
func (w *forgery) objects() []string {
	w.t.Helper()
	list, err := w.store.List(w.t.Context(), w.cluster.ID+"/", "", 100_000)
	w.must(err)
	var keys []string
	for _, o := range list {
		if _, _, _, err := segments.ParseObjectKey(o.Key); err == nil {
			keys = append(keys, o.Key)
		}
	}
	return keys
}

// collector makes one with no grace.
func (w *forgery) collector(change func(*compactor.CollectConfig)) *compactor.Collector {
	w.t.Helper()
	config := compactor.CollectConfig{Store: w.store, Table: w.table, Gateways: w, Grace: -1}
	if change != nil {
		change(&config)
	}
	c, err := compactor.NewCollector(config)
	w.must(err)
	return c
}

func (w *forgery) collect(c *compactor.Collector, o compactor.CollectOptions) *compactor.Collection {
	w.t.Helper()
	report, err := c.Collect(w.t.Context(), o)
	w.must(err)
	return report
}
