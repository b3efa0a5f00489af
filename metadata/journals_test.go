package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// readCounts is a table that counts reads, each of which takes a millisecond.
type readCounts struct {
	metadata.Table
	mu           sync.Mutex
	gets, ranges int
}

func (r *readCounts) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	r.count(&r.gets)
	return r.Table.Get(ctx, key, c)
}

func (r *readCounts) Range(ctx context.Context, a metadata.Range) ([]metadata.Row, error) {
	r.count(&r.ranges)
	return r.Table.Range(ctx, a)
}

func (r *readCounts) count(n *int) {
	r.mu.Lock()
	*n++
	r.mu.Unlock()
	time.Sleep(time.Millisecond)
}

func (r *readCounts) took() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := fmt.Sprintf("%d gets, %d ranges", r.gets, r.ranges)
	r.gets, r.ranges = 0, 0
	return s
}

// mustView reads the partition, which must end there.
func mustView(t testing.TB, j *metadata.Journals, next int64) {
	t.Helper()
	switch v, _, err := j.View(context.Background(), timelinePartition); {
	case err != nil:
		t.Error(err)
	case v.Next != next:
		t.Errorf("it ends at %d, not at %d", v.Next, next)
	}
}

// TestSharedJournal counts what readers of a partition read, one after the other: of a journal that is written to what
// came since, of one that was sealed nothing more than the lease row.
func TestSharedJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := memtable.New()
		counts := &readCounts{Table: table}
		journals := metadata.NewJournals(counts)
		read := func(what string, next int64, want string) {
			t.Helper()
			mustView(t, journals, next)
			if got := counts.took(); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
		}
		read("nobody has appended", 0, "2 gets, 0 ranges")
		o := arrive(t, table, "g1")
		for n := range uint64(150) {
			o.refer(t, reference(n+1, plain()))
		}
		read("150 rows, two pages", 150, "3 gets, 3 ranges")
		read("and nothing since", 150, "3 gets, 1 ranges")
		o.refer(t, reference(151, plain()))
		read("one more", 151, "3 gets, 2 ranges")
		if _, err := metadata.Seal(t.Context(), table, "g1", "g2"); err != nil {
			t.Fatal(err)
		}
		read("its owner was found dead", 151, "3 gets, 1 ranges")
		read("which is known", 151, "1 gets, 0 ranges")
		if s, err := journals.Sealed(t.Context(), "g1"); err != nil || len(s.Rows) != 151 {
			t.Error("a taker:", err)
		}
		if got := counts.took(); got != "0 gets, 0 ranges" {
			t.Errorf("a taker: %s", got)
		}
		o = arrive(t, table, "g2")
		o.refer(t, reference(152, plain()))
		read("taken over", 152, "3 gets, 2 ranges")
		o.checkpoint(t, table, true)
		read("released", 152, "1 gets, 0 ranges")
	})
}

// TestSharedJournalAtOnce: all who come while a journal is read share the next reading of it, and no one is given what
// may not have what was committed before he came.
func TestSharedJournalAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := memtable.New()
		counts := &readCounts{Table: table}
		journals := metadata.NewJournals(counts)
		o := arrive(t, table, "g1")
		o.refer(t, reference(1, plain()))
		var readers sync.WaitGroup
		for i := range 100 {
			readers.Go(func() { mustView(t, journals, 1) })
			if i == 0 {
				time.Sleep(2500 * time.Microsecond) // it has read that there is a row, and looks for the next
			}
		}
		readers.Wait()
		// A hundred read the lease row twice, two the opening row; the first finds a row and looks which is the newest.
		if got := counts.took(); got != "202 gets, 3 ranges" {
			t.Error(got)
		}
		first := make(chan struct{})
		go func() {
			defer close(first)
			if _, _, err := journals.View(context.Background(), timelinePartition); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(3500 * time.Microsecond) // the range was read, and had nothing new
		synctest.Wait()
		o.refer(t, reference(2, plain()))
		mustView(t, journals, 2)
		<-first
	})
}

// TestSharedJournalOfOneThatLeaves: who reads for all may leave, and a failure is told to those who waited for it, once.
func TestSharedJournalOfOneThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := memtable.New()
		counts := &readCounts{Table: table}
		journals := metadata.NewJournals(counts)
		o := arrive(t, table, "g1")
		for n := range uint64(3) {
			o.refer(t, reference(n+1, plain()))
		}
		ctx, leave := context.WithTimeout(t.Context(), 1500*time.Microsecond)
		defer leave()
		var readers sync.WaitGroup
		readers.Go(func() {
			if _, _, err := journals.View(ctx, timelinePartition); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("who leaves: %v", err)
			}
		})
		for range 3 {
			readers.Go(func() { mustView(t, journals, 3) })
		}
		readers.Wait()
		if err := table.Delete(t.Context(), metadata.JournalKey("g1", 2), metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		damaged := metadata.NewJournals(counts)
		counts.took()
		for range 50 {
			readers.Go(func() {
				if v, _, err := damaged.View(t.Context(), timelinePartition); !errors.Is(err, metadata.ErrHole) {
					t.Errorf("%+v %v", v, err)
				}
			})
		}
		readers.Wait()
		if got := counts.took(); got != "102 gets, 1 ranges" && got != "104 gets, 2 ranges" {
			t.Errorf("a damaged journal: %s", got)
		}
	})
}

// TestSharedJournalTrimmed: what was trimmed since it was read does no harm, and is let go of; where trimming has overtaken what
// was read, the reading begins anew.
func TestSharedJournalTrimmed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := memtable.New()
		counts := &readCounts{Table: table}
		journals := metadata.NewJournals(counts)
		o := arrive(t, table, "g1")
		next := uint64(0)
		grow := func(rows int) {
			for range rows {
				next++
				o.refer(t, reference(next, plain()))
			}
		}
		trim := func(through uint64) {
			t.Helper()
			o.checkpoint(t, table, false)
			if err := metadata.TrimJournal(t.Context(), table, "g1", through); err != nil {
				t.Fatal(err)
			}
		}
		rows := func() (n int, from uint64) {
			s := journals.Kept("g1")
			return len(s.Rows), s.Rows[0].Sequence
		}
		grow(10)
		mustView(t, journals, 10)
		trim(4)
		mustView(t, journals, 10)
		if n, from := rows(); n != 10 || from != 1 {
			t.Errorf("%d rows from %d on are kept, want all", n, from)
		}
		grow(1)
		trim(8)
		mustView(t, journals, 11)
		if n, from := rows(); n != 3 || from != 9 {
			t.Errorf("%d rows from %d on are kept, want 3 from 9 on", n, from)
		}
		grow(20)
		trim(25)
		mustView(t, journals, 31)
		if n, from := rows(); n != 6 || from != 26 {
			t.Errorf("%d rows from %d on are kept, want 6 from 26 on", n, from)
		}
		if _, err := metadata.Seal(t.Context(), table, "g1", "g2"); err != nil {
			t.Fatal(err)
		}
		mustView(t, journals, 31)
		if s, err := metadata.ReadSealed(t.Context(), table, "g1"); err != nil || s.Trim(t.Context(), table) != nil {
			t.Fatal(err)
		}
		mustView(t, journals, 31)
	})
}

// TestSharedJournalIsLetGo: what nobody asks for is not kept.
func TestSharedJournalIsLetGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := memtable.New()
		journals := metadata.NewJournals(table)
		o := arrive(t, table, "g1")
		o.refer(t, reference(1, plain()))
		for range 3 {
			mustView(t, journals, 1)
			time.Sleep(7 * time.Second)
		}
		if n := journals.Len(); n != 1 {
			t.Errorf("%d journals are kept of one that is used", n)
		}
		time.Sleep(4 * time.Second)
		if n := journals.Len(); n != 0 {
			t.Errorf("%d journals are kept of one that nobody uses", n)
		}
		mustView(t, journals, 1)
	})
}

// TestManyReadersOfOneJournal: thousands of partitions of a gateway that died are read, and its journal once.
func TestManyReadersOfOneJournal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := memtable.New()
		journal := openJournal(t, table, "g1")
		const partitions = 2000
		id := func(n int) metadata.PartitionID {
			return metadata.PartitionID{Topic: timelinePartition.Topic, Number: int32(n)}
		}
		states := make([]*metadata.Partition, partitions)
		for n := range partitions {
			var err error
			if states[n], _, err = metadata.Acquire(t.Context(), table, id(n), journal, sealer(table)); err != nil {
				t.Fatal(err)
			}
		}
		for number := range uint64(120) {
			b := metadata.NewEntryBuilder(time.Now())
			for n, p := range states {
				r := reference(number+1, plain())
				r.Partition = id(n)
				_, change := p.Judge(r)
				b.Add(change)
				if err := p.Apply(change, journal.Next()); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := journal.Append(t.Context(), b.Encode()); err != nil {
				t.Fatal(err)
			}
		}
		counts := &readCounts{Table: table}
		journals := metadata.NewJournals(counts)
		var readers sync.WaitGroup
		for n := range partitions {
			readers.Go(func() {
				v, holder, err := journals.View(t.Context(), id(n))
				if err != nil || v.Next != 120 || holder != "g1" {
					t.Errorf("%d: %+v of %q %v", n, v, holder, err)
				}
			})
		}
		readers.Wait()
		if counts.ranges > 20 {
			t.Errorf("%s to read %d partitions", counts.took(), partitions)
		}
	})
}
