package compactor

import (
	"context"
	"errors"
	"sync"
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
