package compactor

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestPacer: however many take bytes at once, they get no more than there is in a second, and who gives up does not wait.
func TestPacer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pacer{perSecond: 1000}
		began := time.Now()
		var work sync.WaitGroup
		for range 10 {
			work.Go(func() {
				for range 3 {
					if err := p.take(t.Context(), 500); err != nil {
						t.Error(err)
					}
				}
			})
		}
		work.Wait()
		if took := time.Since(began); took < 14*time.Second || took > 15*time.Second {
			t.Errorf("15,000 bytes at 1,000 a second took %s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who gave up: %v", err)
		}
		time.Sleep(time.Minute)
		began = time.Now()
		if err := p.take(t.Context(), 1); err != nil || time.Since(began) > 0 {
			t.Errorf("after a quiet time: %v, after %s", err, time.Since(began))
		}
	})
}

// TestMergingYields has merging stand back while producers wait, but not for ever, and no longer than they do.
func TestMergingYields(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pressed atomic.Bool
		pressed.Store(true)
		p := &pacer{pressed: pressed.Load}
		take := func() time.Duration {
			began := time.Now()
			if err := p.take(t.Context(), 1); err != nil {
				t.Fatal(err)
			}
			return time.Since(began)
		}
		began := time.Now()
		var waited time.Duration
		for time.Since(began) < 10*time.Minute {
			waited += take()
			time.Sleep(10 * time.Millisecond) // it reads and writes
		}
		if want := mostYielded + 10*time.Minute/yieldShare; waited < mostYielded || waited > want+time.Second {
			t.Errorf("merging stood back for %s of 10 minutes, want up to %s", waited, want)
		}
		pressed.Store(false)
		if d := take(); d != 0 {
			t.Errorf("merging stood back for %s although nobody waits", d)
		}
		time.Sleep(time.Hour)
		pressed.Store(true)
		time.AfterFunc(time.Second, func() { pressed.Store(false) })
		if d := take(); d < time.Second || d > time.Second+yieldLook {
			t.Errorf("merging stood back for %s, want as long as producers wait, 1 s", d)
		}
	})
}

// TestMergingYieldsAtOnce has many goroutines stand back at the same time: it is the same time.
func TestMergingYieldsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pacer{pressed: func() bool { return true }}
		began := time.Now()
		var work sync.WaitGroup
		for range 8 {
			work.Go(func() {
				if err := p.take(t.Context(), 1); err != nil {
					t.Error(err)
				}
				if waited := time.Since(began); waited < mostYielded || waited > 2*mostYielded {
					t.Errorf("one of many stood back for %s, want %s and what is made up for meanwhile", waited, mostYielded)
				}
			})
		}
		work.Wait()
	})
}
