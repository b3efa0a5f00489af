package gateway

import (
	"sync/atomic"
	"time"
)

// since remembers when something began that is not over, on the monotonic clock.
type since struct {
	began atomic.Pointer[time.Time]
	cause atomic.Value // the last error, as a string
}

// begin starts it, and says whether it had not begun before.
func (s *since) begin() bool {
	now := time.Now()
	return s.began.CompareAndSwap(nil, &now)
}

// end ends it, and says how long it lasted; 0: it had not begun.
func (s *since) end() time.Duration {
	if began := s.began.Swap(nil); began != nil {
		return time.Since(*began)
	}
	return 0
}

// because notes why it goes on.
func (s *since) because(err error) { s.cause.Store(err.Error()) }

func (s *since) reason() string {
	text, _ := s.cause.Load().(string)
	return text
}

// lasting is how long it has been going on; 0: it is not.
func (s *since) lasting() time.Duration {
	if began := s.began.Load(); began != nil {
		return time.Since(*began)
	}
	return 0
}
