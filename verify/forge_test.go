package verify_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/verify"
)

// forge writes a cluster's rows and objects, as a gateway does, step by step.
type forge struct {
	t       *testing.T
	store   *memstore.Store
	table   *memtable.Table
	cluster *metadata.Cluster
	topics  *metadata.Topics
	topic   *metadata.Topic
	journal *metadata.Journal
	gateway metadata.GatewayID
	number  uint64
	parts   map[int32]*forged
}

type forged struct {
	state *metadata.Partition
	lease *metadata.Lease
}

// longAgo is when forged gateways were minted: past the grace.
const longAgo = 2 * verify.DefaultGrace

// newForge makes a cluster with one gateway and topic "a" of three partitions.
func newForge(t *testing.T) *forge {
	t.Helper()
	f := &forge{t: t, store: memstore.New(), table: memtable.New()}
	var err error
	f.cluster, err = metadata.OpenCluster(t.Context(), f.table)
	f.must(err)
	f.must(segments.ClaimStore(t.Context(), f.store, segments.ClusterID(f.cluster.ID)))
	number, err := f.cluster.RaiseGeneration(t.Context())
	f.must(err)
	f.putObject(fmt.Sprintf("%s/generation/%020d", f.cluster.ID, number), []byte("x"))
	f.topics = metadata.NewTopics(f.table)
	f.topic, err = f.topics.Create(t.Context(), "a", 3, nil, time.Now())
	f.must(err)
	f.begin()
	return f
}

func (f *forge) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// begin starts another gateway, which holds nothing.
func (f *forge) begin() {
	f.t.Helper()
	f.gateway, f.number, f.parts = metadata.NewGatewayID(time.Now().Add(-longAgo)), 0, make(map[int32]*forged)
	var err error
	f.journal, err = metadata.OpenJournal(f.t.Context(), f.table, f.gateway)
	f.must(err)
	_, err = metadata.RegisterGateway(f.t.Context(), f.table, metadata.Gateway{ID: f.gateway, Floor: 1})
	f.must(err)
}

func (f *forge) id(partition int32) metadata.PartitionID {
	return metadata.PartitionID{Topic: f.topic.ID, Number: partition}
}

// held takes a partition, sealing whoever has it.
func (f *forge) held(partition int32) *forged {
	f.t.Helper()
	if f.parts[partition] == nil {
		state, lease, err := metadata.Acquire(f.t.Context(), f.table, f.id(partition), f.journal,
			func(ctx context.Context, id metadata.GatewayID) (*metadata.SealedJournal, error) {
				if _, err := metadata.Seal(ctx, f.table, id, f.gateway); err != nil {
					return nil, err
				}
				return metadata.ReadSealed(ctx, f.table, id)
			})
		f.must(err)
		f.parts[partition] = &forged{state, lease}
	}
	return f.parts[partition]
}

// segment uploads a segment with one batch of so many records for each of the partitions.
func (f *forge) segment(records int, partitions ...int32) *segments.Directory {
	f.t.Helper()
	f.number++
	object := f.build(f.number, "value", records, partitions...)
	f.must(f.store.Put(f.t.Context(), object.Key(), object))
	return &object.Directory
}

func (f *forge) build(number uint64, value string, records int, partitions ...int32) *segments.Object {
	f.t.Helper()
	b := segments.NewBuilder(segments.ClusterID(f.cluster.ID), segments.GatewayID(f.gateway), number)
	for _, partition := range partitions {
		batches := batch.NewBuilder(batch.None)
		for i := range records {
			f.must(batches.Append(batch.Record{Timestamp: int64(1000*number) + int64(i), Value: []byte(value)}))
		}
		data, err := batches.Build(batch.NoProducer)
		f.must(err)
		info, err := batch.Validate(data, batch.DefaultLimits())
		f.must(err)
		f.must(b.Add(segments.SpanID{Topic: segments.TopicID(f.topic.ID), Partition: partition}, data, segments.BatchInfo{
			Offsets: info.LastOffsetDelta + 1, Records: info.Count, MinTimestamp: info.MinTimestamp, MaxTimestamp: info.MaxTimestamp,
			LastTimestamp: info.LastTimestamp, CRC: info.CRC, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1,
		}))
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return 0 })
	f.must(err)
	return object
}

// append appends a batch of so many records to each of the partitions, in one segment and one journal entry.
func (f *forge) append(records int, partitions ...int32) {
	f.t.Helper()
	f.commit(f.segment(records, partitions...))
}

// commit commits segments in one journal entry.
func (f *forge) commit(directories ...*segments.Directory) {
	f.t.Helper()
	entry := metadata.NewEntryBuilder(time.Now())
	for _, d := range directories {
		for _, s := range d.Spans {
			ref := &metadata.Reference{Partition: f.id(s.Partition), Uploader: metadata.GatewayID(d.Gateway), Number: d.Number, ByNumber: true}
			for _, b := range s.Batches {
				ref.Batches = append(ref.Batches, metadata.Batch{Position: b.Position, Size: b.Size, Offsets: b.Offsets, Records: b.Records,
					MinTimestamp: b.MinTimestamp, MaxTimestamp: b.MaxTimestamp, LastTimestamp: b.LastTimestamp, CRC: b.CRC,
					ProducerID: metadata.NoProducer, ExpectedOffset: metadata.NoOffset})
			}
			_, change := f.held(s.Partition).state.Judge(ref)
			f.apply(entry, s.Partition, change)
		}
	}
	_, err := f.journal.Append(f.t.Context(), entry.Encode())
	f.must(err)
}

func (f *forge) apply(entry *metadata.EntryBuilder, partition int32, change *metadata.Change) {
	f.t.Helper()
	f.must(f.held(partition).state.Apply(change, f.journal.Next()))
	entry.Add(change)
}

func (f *forge) trim(partition int32, offset int64) {
	f.t.Helper()
	change, err := f.held(partition).state.JudgeTrim(offset)
	f.must(err)
	if change == nil {
		return
	}
	entry := metadata.NewEntryBuilder(time.Now())
	f.apply(entry, partition, change)
	_, err = f.journal.Append(f.t.Context(), entry.Encode())
	f.must(err)
}

func (f *forge) checkpoint(partition int32, release bool) {
	f.t.Helper()
	p := f.held(partition)
	plan := p.state.Checkpoint(p.lease, f.journal.Next()-1, release)
	f.must(plan.Write(f.t.Context(), f.table, p.lease))
	p.state.Done(plan)
	f.must(plan.Clean(f.t.Context(), f.table))
}

// leave ends the gateway in good order.
func (f *forge) leave() {
	f.t.Helper()
	for partition := range f.parts {
		f.checkpoint(partition, true)
	}
	f.must(f.journal.Leave(f.t.Context()))
	f.must(metadata.MarkClosed(f.t.Context(), f.table, f.gateway))
}

func (f *forge) putObject(key string, data []byte) {
	f.t.Helper()
	f.must(f.store.Put(f.t.Context(), key, segments.NewBody(data)))
}

// replaceObject changes an object's bytes, which no gateway does.
func (f *forge) replaceObject(key string, change func([]byte) []byte) {
	f.t.Helper()
	data, _, err := f.store.Get(f.t.Context(), key, 0, -1)
	f.must(err)
	f.must(f.store.Delete(f.t.Context(), key))
	f.putObject(key, change(data))
}

func (f *forge) deleteRow(key metadata.Key) {
	f.t.Helper()
	f.must(f.table.Delete(f.t.Context(), key, metadata.Condition{}))
}

func (f *forge) row(key metadata.Key) metadata.Row {
	f.t.Helper()
	row, err := f.table.Get(f.t.Context(), key, metadata.Strong)
	f.must(err)
	return row
}

func (f *forge) putRow(row metadata.Row) {
	f.t.Helper()
	row.Nonce = metadata.NewNonce()
	f.must(f.table.Put(f.t.Context(), row, metadata.Condition{}))
}

func (f *forge) replaceRow(key metadata.Key, change func([]byte) []byte) {
	f.t.Helper()
	row := f.row(key)
	row.Value = change(row.Value)
	f.putRow(row)
}

func (f *forge) key(number uint64) string {
	return segments.ObjectKey(segments.ClusterID(f.cluster.ID), segments.GatewayID(f.gateway), number)
}

// leaseFields are the numbers of a lease row that stand before its lists.
type leaseFields struct {
	flags         byte
	through       uint64
	start, next   uint64
	sum, gone     uint64
	bytes         uint64
	lastOfFirst   uint64 // last number of the first uploader
	before, after []byte // what stands around it
	journal       uint64
	uploaders     uint64
	first         uint64
}

// editLease changes a lease row's numbers: see docs/metadata.md for the row.
func (f *forge) editLease(partition int32, change func(*leaseFields)) {
	f.t.Helper()
	f.replaceRow(f.id(partition).LeaseKey(), func(value []byte) []byte {
		rest := value[1:]
		uvarint := func() uint64 {
			v, n := binary.Uvarint(rest)
			if n <= 0 {
				f.t.Fatal("the lease row is not as this test knows it")
			}
			rest = rest[n:]
			return v
		}
		for range uvarint() {
			rest = rest[uvarint():]
		}
		var l leaseFields
		l.before = slices.Clone(value[:len(value)-len(rest)])
		l.flags, rest = rest[0], rest[1:]
		l.journal, l.through, l.start, l.next = uvarint(), uvarint(), uvarint(), uvarint()
		l.sum, l.gone, rest = binary.BigEndian.Uint64(rest), binary.BigEndian.Uint64(rest[8:]), rest[16:]
		l.bytes = uvarint()
		if fence := uvarint(); fence != 0 {
			f.t.Fatal("this test knows leases without a fencing token only")
		}
		l.uploaders = uvarint()
		if l.uploaders > 0 {
			l.first, l.lastOfFirst = uvarint(), uvarint()
		}
		l.after = rest
		change(&l)
		out := append(l.before, l.flags)
		for _, n := range []uint64{l.journal, l.through, l.start, l.next} {
			out = binary.AppendUvarint(out, n)
		}
		out = binary.BigEndian.AppendUint64(out, l.sum)
		out = binary.BigEndian.AppendUint64(out, l.gone)
		out = binary.AppendUvarint(out, l.bytes)
		out = append(out, 0)
		out = binary.AppendUvarint(out, l.uploaders)
		if l.uploaders > 0 {
			out = binary.AppendUvarint(out, l.first)
			out = binary.AppendUvarint(out, l.lastOfFirst)
		}
		return append(out, l.after...)
	})
}

func (f *forge) config() verify.Config {
	return verify.Config{Store: f.store, Table: f.table, Deep: true}
}

func (f *forge) run(config verify.Config) ([]verify.Finding, verify.Summary) {
	f.t.Helper()
	var findings []verify.Finding
	summary, err := verify.Run(f.t.Context(), config, func(found verify.Finding) { findings = append(findings, found) })
	f.must(err)
	return findings, summary
}

// kinds are the different kinds among findings, in order.
func kinds(findings []verify.Finding) []verify.Kind {
	var list []verify.Kind
	for _, f := range findings {
		list = append(list, f.Kind)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// expect verifies and wants findings of exactly these kinds.
func (f *forge) expect(config verify.Config, want ...verify.Kind) []verify.Finding {
	f.t.Helper()
	findings, summary := f.run(config)
	slices.Sort(want)
	if diff := cmp.Diff(want, kinds(findings)); diff != "" {
		f.t.Errorf("kinds (-want +got):\n%s\nfindings:", diff)
		for _, found := range findings[:min(5, len(findings))] {
			f.t.Errorf("%+v", found)
		}
	}
	breaks, garbage := int64(0), int64(0)
	for _, found := range findings {
		if found.Kind.Break() {
			breaks++
		} else {
			garbage++
		}
		if found.Message == "" || found.Object == "" && found.Row == "" {
			f.t.Errorf("a finding that does not say what and where: %+v", found)
		}
		stays := config.Repair && !found.Kind.Break() && !found.Repaired
		if stays != (found.Stays != "") || stays && !strings.HasSuffix(found.Message, verify.ItStays+found.Stays) {
			f.t.Errorf("a finding that does not say why it stays: %+v", found)
		}
	}
	if summary.Breaks != breaks || summary.Garbage != garbage {
		f.t.Errorf("summary %+v; %d breaks and %d pieces of garbage were reported", summary, breaks, garbage)
	}
	return findings
}
