package segments_test

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// slowStore answers each call after what delay says of it, the first being call 1.
type slowStore struct {
	segments.Store
	calls, open atomic.Int64
	delay       func(call int64) time.Duration
}

func (s *slowStore) wait(ctx context.Context) error {
	call := s.calls.Add(1)
	s.open.Add(1)
	defer s.open.Add(-1)
	timer := time.NewTimer(s.delay(call))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return segments.Interrupted(ctx)
	}
}

func (s *slowStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	if err := s.wait(ctx); err != nil {
		return nil, 0, err
	}
	return s.Store.Get(ctx, key, offset, length)
}

func (s *slowStore) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	into[0] = 'x' // while it is read, it holds anything
	data, _, err := s.Get(ctx, key, offset, int64(len(into)))
	return copy(into, data), err
}

func (s *slowStore) Put(ctx context.Context, key string, body segments.Body) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Store.Put(ctx, key, body)
}

func newSlowStore(t *testing.T, delay func(int64) time.Duration) *slowStore {
	store := memstore.New()
	if err := store.Put(t.Context(), "a", segments.NewBody([]byte("0123456789"))); err != nil {
		t.Fatal(err)
	}
	return &slowStore{Store: store, delay: delay}
}

func TestHedge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const usual = 10 * time.Millisecond
		var stuck atomic.Bool
		slow := newSlowStore(t, nil)
		slow.delay = func(int64) time.Duration {
			if stuck.CompareAndSwap(true, false) {
				return time.Hour
			}
			return usual
		}
		var sent, won int
		store := segments.Hedge(slow, segments.HedgeConfig{Sent: func() { sent++ }, Won: func() { won++ }})
		late := false
		read := func() {
			t.Helper()
			stuck.Store(late)
			if data, size, err := store.Get(t.Context(), "a", 2, 3); err != nil || string(data) != "234" || size != 10 {
				t.Fatalf("%q, %d, %v", data, size, err)
			}
			stuck.Store(late)
			into := make([]byte, 3)
			if n, err := segments.GetInto(t.Context(), store, "a", into, 2); err != nil || string(into[:n]) != "234" {
				t.Fatalf("%q, %v", into, err)
			}
		}
		for range 100 {
			read()
		}
		if sent != 0 {
			t.Fatalf("%d were sent twice while none was late", sent)
		}
		late = true
		for range 2 {
			began := time.Now()
			read()
			if took := time.Since(began); took > 5*usual {
				t.Errorf("a read took %s", took)
			}
			if n := slow.open.Load(); n != 0 {
				t.Errorf("%d calls are still open", n)
			}
		}
		if sent != 4 || won != 4 {
			t.Errorf("%d were sent twice, %d won", sent, won)
		}
		// Of writes none.
		before := slow.calls.Load()
		stuck.Store(true)
		if err := store.Put(t.Context(), "b", segments.NewBody([]byte("b"))); err != nil || slow.calls.Load() != before+1 {
			t.Errorf("%d calls for one put, %v", slow.calls.Load()-before, err)
		}
		// An answer is one, also if it is no.
		for range 3 {
			if _, _, err := store.Get(t.Context(), "absent", 0, 1); !errors.Is(err, segments.ErrNotFound) {
				t.Error(err)
			}
		}
	})
}

// TestHedgeBudget has a store that becomes slow as a whole: second tries stay within their share.
func TestHedgeBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := newSlowStore(t, func(call int64) time.Duration {
			if call > 200 {
				return time.Duration(math.Pow(1.02, float64(call-200)) * float64(10*time.Millisecond)) // slower all the time
			}
			return time.Millisecond
		})
		sent := 0
		store := segments.Hedge(slow, segments.HedgeConfig{Sent: func() { sent++ }})
		const reads = 1000
		for range reads {
			if _, _, err := store.Get(t.Context(), "a", 0, 1); err != nil {
				t.Fatal(err)
			}
		}
		if sent < 10 || sent > reads/20 {
			t.Errorf("%d of %d were sent twice", sent, reads)
		}
	})
}

// TestHedgeEnds: a read ends with its caller, both tries of it.
func TestHedgeEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := newSlowStore(t, func(call int64) time.Duration {
			if call > 100 {
				return time.Hour
			}
			return time.Millisecond
		})
		store := segments.Hedge(slow, segments.HedgeConfig{})
		for range 100 {
			if _, _, err := store.Get(t.Context(), "a", 0, 1); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := segments.GetInto(ctx, store, "a", make([]byte, 1), 0); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		synctest.Wait()
		if slow.calls.Load() != 102 || slow.open.Load() != 0 {
			t.Errorf("%d calls, %d are open", slow.calls.Load()-100, slow.open.Load())
		}
	})
}
