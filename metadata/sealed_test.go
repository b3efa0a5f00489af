package metadata_test

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// distant is a table each call of which takes 5 ms.
type distant struct {
	metadata.Table
}

func (d distant) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	time.Sleep(5 * time.Millisecond)
	return d.Table.Get(ctx, key, c)
}

func (d distant) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	time.Sleep(5 * time.Millisecond)
	return d.Table.Range(ctx, r)
}

// sealedJournal puts the journal of g1 with rows of one value, and seals it. It returns its bytes.
func sealedJournal(t testing.TB, table metadata.Table, rows int, value []byte) int {
	t.Helper()
	journal := openJournal(t, table, "g1")
	for range rows {
		if _, err := journal.Append(context.Background(), value); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := metadata.Seal(context.Background(), table, "g1", "g2"); err != nil {
		t.Fatal(err)
	}
	return rows * len(value)
}

// heap is how many bytes are in use.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestSealedJournalInMemory: a journal much longer than they get takes a taker less than three times their bytes.
func TestSealedJournalInMemory(t *testing.T) {
	table := memtable.New()
	size := sealedJournal(t, table, 100, spans(t, 6000, 1, false))
	before, began := heap(), time.Now()
	s, err := metadata.ReadSealed(context.Background(), table, "g1")
	took := time.Since(began)
	if err != nil || len(s.Rows) != 100 {
		t.Fatal(err, len(s.Rows))
	}
	p := metadata.NewPartition(metadata.PartitionID{Topic: metadata.TopicID{9}}) // has nothing in it
	if err := metadata.Fold(p, 0, s); err != nil {
		t.Fatal(err)
	}
	kept := heap() - before
	t.Logf("a journal of %d bytes, read in %v, takes %d bytes: %.1f times", size, took, kept, float64(kept)/float64(size))
	if kept > 3*size {
		t.Errorf("a journal of %d bytes takes %d", size, kept)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(table)
}

// TestSealedJournalAtOnce: a takeover does not wait for one page of a long journal after the other, be it
// that its rows are long or that they are many.
func TestSealedJournalAtOnce(t *testing.T) {
	for _, c := range []struct {
		name  string
		rows  int
		value []byte
		most  time.Duration
	}{
		{"long rows", 100, spans(t, 6000, 1, false), 60 * time.Millisecond},
		{"many rows", 20_000, spans(t, 1, 1, false), 200 * time.Millisecond},
		{"few", 3, spans(t, 1, 1, false), 10 * time.Millisecond}, // the opening row and one page
		{"a page and one", 101, spans(t, 1, 1, false), 20 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			table := memtable.New()
			size := sealedJournal(t, table, c.rows, c.value)
			began := time.Now()
			s, err := metadata.ReadSealed(context.Background(), distant{table}, "g1")
			if err != nil || len(s.Rows) != c.rows || s.Seal != uint64(c.rows)+1 {
				t.Fatal(err, len(s.Rows))
			}
			for i := range s.Rows {
				if s.Rows[i].Sequence != uint64(i)+1 || s.Rows[i].Size != len(c.value) {
					t.Fatalf("row %d: %d, of %d bytes", i, s.Rows[i].Sequence, s.Rows[i].Size)
				}
			}
			took := time.Since(began)
			t.Logf("%s: %d bytes in %d rows, %v at 5 ms a call", c.name, size, c.rows, took)
			if took > c.most {
				t.Errorf("%s: %v", c.name, took)
			}
		})
	}
}

// TestSealedJournalWithHole: a row is missing in the middle of a long journal.
func TestSealedJournalWithHole(t *testing.T) {
	for _, missing := range []uint64{1, 50, 101, 250, 300} {
		table := memtable.New()
		sealedJournal(t, table, 300, value(1))
		if err := table.Delete(t.Context(), metadata.JournalKey("g1", missing), metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		if _, err := metadata.ReadSealed(t.Context(), table, "g1"); !errors.Is(err, metadata.ErrHole) {
			t.Errorf("number %d is missing: %v", missing, err)
		}
	}
	table := memtable.New()
	journal := openJournal(t, table, "g1")
	for range 150 {
		if _, err := journal.Append(t.Context(), value(1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := metadata.ReadSealed(t.Context(), table, "g1"); !errors.Is(err, metadata.ErrHole) {
		t.Errorf("not sealed: %v", err)
	}
}
