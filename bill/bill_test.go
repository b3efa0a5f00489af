package bill

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// TestChargeLosesNothing: whatever is divided, its parts come to it, and nobody's is off by more than one.
func TestChargeLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := NewLedger(time.Now())
		weights := rapid.SliceOfN(rapid.Int64Range(0, 1<<40), 0, 50).Draw(t, "weights")
		n := rapid.Uint64Range(0, 1<<50).Draw(t, "n")
		var shares []Share
		var all float64
		for i, w := range weights {
			shares = append(shares, Share{metadata.TopicID{byte(i)}, w})
			all += float64(w)
		}
		l.charge(shares, amount{CommitUnits, n}, amount{BytesPut, 7})
		s := l.Statement()
		if sum := s.Total(); sum[CommitUnits] != n || sum[BytesPut] != 7 {
			t.Fatalf("%d and %d of %d and 7 are left", sum[CommitUnits], sum[BytesPut], n)
		}
		for i, w := range weights {
			used := s.Topics[metadata.TopicID{byte(i)}]
			if all > 0 {
				want := float64(n) * (float64(w) / all)
				if got := float64(used[CommitUnits]); got < want-1-want*1e-9 || got > want+1+want*1e-9 {
					t.Fatalf("share %d of weight %d got %v, not %v", i, w, got, want)
				}
			}
		}
	})
}

// BenchmarkCharge divides a segment's PUT among ten thousand topics.
func BenchmarkCharge(b *testing.B) {
	l := NewLedger(time.Now())
	var shares []Share
	for i := range 10_000 {
		shares = AddShare(shares, metadata.TopicID{byte(i), byte(i >> 8)}, 700)
	}
	b.ReportAllocs()
	for b.Loop() {
		l.charge(shares, amount{FlushPuts, Part}, amount{BytesPut, 7_000_000})
	}
}

func TestUnits(t *testing.T) {
	for _, c := range []struct {
		got  uint64
		want float64
	}{
		{WriteUnits(0), 1}, {WriteUnits(1024 - rowOverhead), 1}, {WriteUnits(1025 - rowOverhead), 2}, {WriteUnits(256 << 10), 257},
		{ReadUnits(0, 0, metadata.Strong), 1}, {ReadUnits(0, 0, metadata.Eventual), 0.5}, {ReadUnits(4096-rowOverhead, 1, metadata.Strong), 1},
		{ReadUnits(4097-rowOverhead, 1, metadata.Strong), 2}, {ReadUnits(8192, 100, metadata.Eventual), 2},
	} {
		if float64(c.got)/Part != c.want {
			t.Errorf("%v units, want %v", float64(c.got)/Part, c.want)
		}
	}
}

// TestWhoPays: rows of the table by what they are, calls to the bucket by the context.
func TestWhoPays(t *testing.T) {
	l := NewLedger(time.Now())
	table, store := l.Table(memtable.New()), l.Store(memstore.New())
	one, two := metadata.TopicID{1}, metadata.TopicID{2}
	ctx := context.Background()
	shared := Shared(ctx, []Share{{one, 3}, {two, 1}})
	put := func(ctx context.Context, partition, sort string, size int) {
		t.Helper()
		row := metadata.Row{Key: metadata.Key{Partition: partition, Sort: sort}, Stamp: metadata.Stamp{Epoch: 1}, Nonce: 1, Value: make([]byte, size)}
		if err := table.Put(ctx, row, metadata.IfAbsent()); err != nil && !errors.Is(err, metadata.ErrConflict) {
			t.Fatal(err)
		}
	}
	put(shared, "partition/"+two.String()+"/0", "lease", 2900)
	put(shared, "journal/g1", "0000000000000001", 3900)
	put(ctx, "journal/g1", openingRow, 1)
	put(ctx, "journal/g1", openingRow, 1) // its condition fails: billed all the same
	put(shared, "gateways", "g1", 1)
	put(shared, "partition/odd", "lease", 1)
	trimmed := metadata.WithRemovedSize(shared, 3950)
	if err := table.Delete(trimmed, metadata.Key{Partition: "journal/g1", Sort: "0000000000000001"}, metadata.Condition{}); err != nil {
		t.Fatal(err)
	}
	put(Merging(ctx, two), "partition/"+one.String()+"/0", "page/1", 10)
	reading := ForTopic(ctx, two)
	if _, err := table.Range(reading, metadata.Range{Partition: "partition/" + one.String() + "/0"}); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Get(reading, metadata.Key{Partition: "topics", Sort: "a"}, metadata.Strong); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatal(err)
	}
	if err := store.Put(ctx, "a", segments.NewBody([]byte("12345"))); err != nil {
		t.Fatal(err)
	}
	for _, ctx := range []context.Context{ctx, reading, Merging(ctx, one)} {
		if _, _, err := store.Get(ctx, "a", 1, 3); err != nil {
			t.Fatal(err)
		}
		if _, err := store.List(ctx, "", "", 1); err != nil {
			t.Fatal(err)
		}
	}
	s := l.Statement()
	want := map[metadata.TopicID]Usage{
		one: {CommitUnits: 3 * Part, MergeUnits: Part, TrimUnits: 3 * Part, IndexReadUnits: Part / 2, MergeGets: Part, BytesGot: 3, Lists: Part},
		two: {CommitUnits: 1 * Part, TrimUnits: 1 * Part, CheckpointUnits: 3 * Part, ReadGets: Part, BytesGot: 3, Lists: Part},
	}
	cluster := Usage{TrimUnits: 2 * Part, BeatUnits: Part, CheckpointUnits: Part, OtherReadUnits: Part, OtherPuts: Part, BytesPut: 5, OtherGets: Part, BytesGot: 3, Lists: Part}
	if s.Cluster != cluster {
		t.Errorf("cluster: %v\nwant     %v", s.Cluster, cluster)
	}
	for id, w := range want {
		if s.Topics[id] != w {
			t.Errorf("%s: %v\nwant %v", id, s.Topics[id], w)
		}
	}
}

// TestLedgerIsBounded: more topics than there are accounts share one.
func TestLedgerIsBounded(t *testing.T) {
	l := NewLedger(time.Now())
	const more = 10
	for i := range MaxAccounts + more {
		l.Appended(metadata.TopicID{byte(i), byte(i >> 8), byte(i >> 16)}, Batches{Bytes: 100, Records: 1})
	}
	s := l.Statement()
	total := s.Total()
	if len(s.Topics) != MaxAccounts || s.Rest[AppendedRecords] != more || total[AppendedRecords] != MaxAccounts+more {
		t.Errorf("%d accounts, %d records beside them, %d in all", len(s.Topics), s.Rest[AppendedRecords], total[AppendedRecords])
	}
}

func TestPrices(t *testing.T) {
	p := DefaultPrices()
	u := Usage{FlushPuts: 1000 * Part, ReadGets: 1000 * Part, BytesGot: 5 << 30, CommitUnits: 1_000_000 * Part, IndexReadUnits: 1_000_000 * Part, AppendedBytes: 2 << 30}
	c := p.Of(&u)
	if total := 0.005 + 0.0004 + 0.625 + 0.125; c.Total < total-1e-9 || c.Total > total+1e-9 {
		t.Errorf("it costs %v, not %v", c.Total, total)
	}
	if v, ok := c.PerGiB(); !ok || v != c.Total/2 {
		t.Errorf("%v a GiB", v)
	}
	if driver, ok := c.Driver(); !ok || driver.Name != ItemCommits {
		t.Errorf("driven by %v", driver)
	}
	if advice := c.Advice(&u, Setting{FlushInterval: 250 * time.Millisecond, SegmentBytes: 8 << 20}); !strings.HasPrefix(advice, "83 % are write units of commits, 500000 a GiB appended: ") {
		t.Errorf("%q", advice)
	}
	if month := p.StoredMonth(100 << 30); month < 2.299 || month > 2.301 {
		t.Errorf("100 GiB cost %v a month", month)
	}
	var nothing Usage
	none := p.Of(&nothing)
	if _, ok := none.PerGiB(); ok || none.Total != 0 || none.Advice(&nothing, Setting{}) != "" {
		t.Errorf("nothing costs %v", none)
	}
}

// TestAdvice: whatever costs most, the advice knows it by name.
func TestAdvice(t *testing.T) {
	p := DefaultPrices()
	p.Bucket.ReadGiB, p.Bucket.DeletesPer1000 = 0.09, 0.001
	for unit := range Units {
		var u Usage
		u[unit] = 1 << 50
		c := p.Of(&u)
		driver, costs := c.Driver()
		advice := c.Advice(&u, Setting{FlushInterval: time.Second, SegmentBytes: 8 << 20})
		if costs != (advice != "") || costs && !strings.HasPrefix(advice, "100 % are "+driver.Name) || strings.Contains(advice, "%!") {
			t.Errorf("unit %d: %v, %q", unit, driver, advice)
		}
		if free := unit == BytesPut || unit == AppendedBytes || unit == AppendedRecords; free == costs {
			t.Errorf("unit %d costs: %t", unit, costs)
		}
	}
}

func TestParsePrices(t *testing.T) {
	good := string(DefaultPricesText())
	for _, c := range []struct{ from, to, fault string }{
		{"", "", ""},
		{"currency: USD", `currency: "EUR"`, ""},
		{"currency: USD\n", "", "currency is missing"},
		{"  gets_per_1000: 0.0004\n", "", "bucket.gets_per_1000 is missing"},
		{"gets_per_1000: 0.0004", "gets_per_1000: -1", "bucket.gets_per_1000 is -1: no price"},
		{"gets_per_1000: 0.0004", "gets_per_1000: .nan", "no price"},
		{"gets_per_1000: 0.0004", "gets_per_1000: cheap", "cheap"},
		{"currency: USD", "currency: USD\ncurrancy: EUR", "currancy"},
		{good, "", "it is empty"},
		{good, "[1, 2]", "cannot"},
		{good, "\x00{", "control characters"},
		{good, `{"currency":"X","bucket":{"puts_and_lists_per_1000":1,"gets_per_1000":1,"deletes_per_1000":0,"stored_per_gib_month":1,"read_per_gib":1},"table":{"write_units_per_million":1,"read_units_per_million":1}}`, ""},
	} {
		_, err := ParsePrices([]byte(strings.Replace(good, c.from, c.to, 1)))
		if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%q instead of %q: %v, want %q", c.to, c.from, err, c.fault)
		}
	}
}

// plainStore fails a test that reads by Get what was asked for in pieces.
type plainStore struct {
	segments.Store
	t *testing.T
}

func (p plainStore) Get(context.Context, string, int64, int64) ([]byte, int64, error) {
	p.t.Error("a scattered read came as a plain one")
	return nil, 0, nil
}

func (p plainStore) GetInto(_ context.Context, _ string, into []byte, _ int64) (int, error) {
	return len(into), nil
}

func (p plainStore) GetScattered(_ context.Context, _ string, into [][]byte, _ int64) (int, error) {
	return len(into[0]) + len(into[1]), nil
}

// TestScatteredReads: a read into several pieces of memory stays one: the store below fills them itself.
func TestScatteredReads(t *testing.T) {
	l := NewLedger(time.Now())
	n, err := segments.GetScattered(t.Context(), l.Store(plainStore{t: t}), "a", [][]byte{make([]byte, 3), make([]byte, 4)}, 0)
	if err != nil || n != 7 {
		t.Errorf("%d bytes, %v", n, err)
	}
}
