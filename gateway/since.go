package gateway

import (
	"sync/atomic"
	"time"
)

// since remembers when something began that is not over, on the monotonic clock.
type since struct{ began atomic.Pointer[time.Time] }

// begin starts it, and says whether it had not begun before.
func (s *since) begin() bool {
	now := time.Now()
	return s.began.CompareAndSwap(nil, &now)
}

func (s *since) end() { s.began.Store(nil) }

// lasting is how long it has been going on; 0: it is not.
func (s *since) lasting() time.Duration {
	if began := s.began.Load(); began != nil {
		return time.Since(*began)
	}
	return 0
}
