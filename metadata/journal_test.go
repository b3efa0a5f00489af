package metadata_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

func openJournal(t tb, table metadata.Table, id metadata.GatewayID) *metadata.Journal {
	t.Helper()
	j, err := metadata.OpenJournal(context.Background(), table, id)
	if err != nil {
		t.Fatalf("open journal: %v", err)
	}
	return j
}

// value is an entry that is told from others by its time.
func value(n int) []byte { return metadata.NewEntryBuilder(time.UnixMilli(int64(n))).Encode() }

// TestSealRaces: whatever goes wrong with the table, what the owner was told is in
// the sealed journal in order, and nothing is appended after the seal.
func TestSealRaces(t *testing.T) {
	fired, sealedEarly := 0, 0
	checkInBubble(t, func(rt *rapid.T) {
		table := tabletest.NewFaulty(memtable.New(), nil)
		journal := openJournal(rt, table, "g1")
		table.SetPlan(tabletest.RandomPlan(rapid.Uint64().Draw(rt, "faults"), map[tabletest.FaultKind]float64{
			tabletest.LostAnswer: 0.15, tabletest.Vanished: 0.1, tabletest.Late: 0.15, tabletest.Unavailable: 0.1, tabletest.Slow: 0.2}))
		ctx := context.Background()
		delays := []time.Duration{time.Duration(rapid.IntRange(0, 5000).Draw(rt, "ms")) * time.Millisecond,
			time.Duration(rapid.IntRange(0, 5000).Draw(rt, "ms")) * time.Millisecond}
		var appended []int
		var fenced bool
		seals := make([]uint64, 2)
		var all sync.WaitGroup
		all.Go(func() {
			for n := 1; n <= 10; n++ {
				_, err := journal.Append(ctx, value(n))
				switch {
				case err == nil && !fenced:
					appended = append(appended, n)
				case errors.Is(err, metadata.ErrFenced):
					fenced = true
				default:
					rt.Errorf("append %d after fenced %v: %v", n, fenced, err)
				}
			}
		})
		for i, d := range delays {
			all.Go(func() {
				time.Sleep(d)
				var err error
				if seals[i], err = metadata.Seal(ctx, metadata.Retry(table, nil), "g1", metadata.GatewayID(fmt.Sprintf("s%d", i))); err != nil {
					rt.Errorf("seal: %v", err)
				}
			})
		}
		all.Wait()
		table.SetPlan(nil)
		table.Release()
		for kind, n := range table.Fired() {
			if kind != tabletest.Slow {
				fired += n
			}
		}
		checkSealed(rt, table, seals, appended)
		if len(appended) < 10 {
			sealedEarly++
		}
		if _, err := journal.Append(ctx, value(99)); !errors.Is(err, metadata.ErrFenced) {
			rt.Fatalf("append after the seal: %v", err)
		}
		if err := journal.Verify(ctx); !errors.Is(err, metadata.ErrFenced) {
			rt.Fatalf("verify after the seal: %v", err)
		}
	})
	if fired == 0 || sealedEarly == 0 {
		t.Errorf("%d faults fired, %d journals were sealed before their end", fired, sealedEarly)
	}
}

func checkSealed(rt *rapid.T, table metadata.Table, seals []uint64, appended []int) {
	rt.Helper()
	s, err := metadata.ReadSealed(context.Background(), table, "g1")
	if err != nil {
		rt.Fatalf("read: %v", err)
	}
	if seals[0] != seals[1] || seals[0] != s.Seal {
		rt.Fatalf("sealed at %d and %d, read at %d", seals[0], seals[1], s.Seal)
	}
	var found []int
	for _, row := range s.Rows {
		found = append(found, int(row.Time))
	}
	if !slices.Equal(found, appended) {
		rt.Fatalf("the owner was told %v, the journal has %v", appended, found)
	}
}

// TestTrimKeepsTheNewest: neither trimming nor leaving opens a number again.
func TestTrimKeepsTheNewest(t *testing.T) {
	ctx, table := context.Background(), memtable.New()
	journal := openJournal(t, table, "g1")
	for n := 1; n <= 250; n++ {
		if _, err := journal.Append(ctx, value(n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := metadata.TrimJournal(ctx, table, "g1", 200); err != nil {
		t.Fatal(err)
	}
	if err := metadata.TrimJournal(ctx, table, "g1", 100); err != nil { // trimmed-to never falls
		t.Fatal(err)
	}
	if _, err := metadata.Seal(ctx, table, "g1", "g2"); err != nil {
		t.Fatal(err)
	}
	s, err := metadata.ReadSealed(ctx, table, "g1")
	if err != nil || s.TrimmedTo != 200 || s.Seal != 251 || len(s.Rows) != 50 || s.Rows[0].Sequence != 201 {
		t.Fatalf("%v: trimmed to %d, seal %d, %d rows", err, s.TrimmedTo, s.Seal, len(s.Rows))
	}
	if err := s.Trim(ctx, table); err != nil {
		t.Fatal(err)
	}
	again, err := metadata.ReadSealed(ctx, table, "g1")
	if err != nil || again.Seal != 251 || len(again.Rows) != 0 {
		t.Fatalf("%v: %+v", err, again)
	}
	if _, err := journal.Append(ctx, value(251)); !errors.Is(err, metadata.ErrFenced) {
		t.Fatalf("append after seal and trim: %v", err)
	}
}

func TestLeave(t *testing.T) {
	for entries := range 4 {
		ctx, table := context.Background(), memtable.New()
		journal := openJournal(t, table, "g1")
		for n := range entries {
			if _, err := journal.Append(ctx, value(n)); err != nil {
				t.Fatal(err)
			}
		}
		if err := journal.Leave(ctx); err != nil {
			t.Fatal(err)
		}
		s, err := metadata.ReadSealed(ctx, table, "g1")
		if err != nil || s.Seal != uint64(entries+1) {
			t.Errorf("%d entries: %v, %+v", entries, err, s)
		}
		if _, err := journal.Append(ctx, value(9)); !errors.Is(err, metadata.ErrFenced) {
			t.Errorf("append after leaving: %v", err)
		}
	}
}

func TestHoles(t *testing.T) {
	ctx := context.Background()
	for _, gone := range []uint64{1, 2, 3} {
		table := memtable.New()
		journal := openJournal(t, table, "g1")
		for n := 1; n <= 3; n++ {
			if _, err := journal.Append(ctx, value(n)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := metadata.ReadSealed(ctx, table, "g1"); !errors.Is(err, metadata.ErrHole) {
			t.Errorf("read without a seal: %v", err)
		}
		if _, err := metadata.Seal(ctx, table, "g1", "g2"); err != nil {
			t.Fatal(err)
		}
		if err := table.Delete(ctx, metadata.JournalKey("g1", gone), metadata.Condition{}); err != nil {
			t.Fatal(err)
		}
		if _, err := metadata.ReadSealed(ctx, table, "g1"); !errors.Is(err, metadata.ErrHole) {
			t.Errorf("number %d gone: %v", gone, err)
		}
	}
}

// TestReadWhileTrimmed: a reader that began before a trim is no witness of a hole.
func TestReadWhileTrimmed(t *testing.T) {
	ctx, inner := context.Background(), memtable.New()
	journal := openJournal(t, inner, "g1")
	for n := 1; n <= 5; n++ {
		if _, err := journal.Append(ctx, value(n)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := metadata.Seal(ctx, inner, "g1", "g2"); err != nil {
		t.Fatal(err)
	}
	trimmed := false
	table := metadata.Observe(inner, func(o metadata.Observation) {
		if o.Op == metadata.OpGet && !trimmed {
			trimmed = true
			if err := metadata.TrimJournal(ctx, inner, "g1", 3); err != nil {
				t.Error(err)
			}
		}
	})
	s, err := metadata.ReadSealed(ctx, table, "g1")
	if err != nil || s.TrimmedTo != 3 || len(s.Rows) != 2 || s.Seal != 6 {
		t.Fatalf("%v: %+v", err, s)
	}
}

// TestSealBeforeOpen: a gateway that was slow to open its journal finds it sealed.
func TestSealBeforeOpen(t *testing.T) {
	ctx, table := context.Background(), memtable.New()
	if n, err := metadata.Seal(ctx, table, "g1", "g2"); err != nil || n != 1 {
		t.Fatalf("%d %v", n, err)
	}
	if s, err := metadata.ReadSealed(ctx, table, "g1"); err != nil || s.Seal != 1 {
		t.Fatalf("%+v %v", s, err)
	}
	journal := openJournal(t, table, "g1")
	if _, err := journal.Append(ctx, value(1)); !errors.Is(err, metadata.ErrFenced) {
		t.Fatalf("append: %v", err)
	}
}

// TestAcquireRaces: of many who want a partition one gets it, first and later.
func TestAcquireRaces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := tabletest.NewFaulty(memtable.New(), tabletest.RandomPlan(1, map[tabletest.FaultKind]float64{
			tabletest.LostAnswer: 0.1, tabletest.Late: 0.1, tabletest.Slow: 0.5}))
		id := metadata.PartitionID{Topic: metadata.TopicID{1}}
		for round := range 20 {
			var mu sync.Mutex
			won := 0
			var all sync.WaitGroup
			for i := range 8 {
				all.Go(func() {
					journal := openJournal(t, table, metadata.GatewayID(fmt.Sprintf("g%d-%d", round, i)))
					state, lease, err := metadata.Acquire(t.Context(), metadata.Retry(table, nil), id, journal,
						func(ctx context.Context, held metadata.GatewayID) (*metadata.SealedJournal, error) {
							if string(held[:len(held)-2]) == fmt.Sprintf("g%d", round) {
								return nil, metadata.ErrHeld
							}
							if _, err := metadata.Seal(ctx, metadata.Retry(table, nil), held, journal.ID()); err != nil {
								return nil, err
							}
							return metadata.ReadSealed(ctx, metadata.Retry(table, nil), held)
						})
					switch {
					case err == nil:
						if state.Epoch() != uint64(round+1) || lease.Journal != journal.ID() {
							t.Errorf("round %d: epoch %d, journal %s", round, state.Epoch(), lease.Journal)
						}
						mu.Lock()
						won++
						mu.Unlock()
					case !errors.Is(err, metadata.ErrConflict) && !errors.Is(err, metadata.ErrHeld) && !errors.Is(err, metadata.ErrUnknown):
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			all.Wait()
			if won != 1 {
				t.Errorf("round %d: %d won", round, won)
			}
		}
	})
}
