package gateway

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/varvelog/varve/segments"
)

// tailTime is for how long after an append, or a record that went to a follower, the tail counts as busy.
const tailTime = time.Second

// coldLimit holds up reads of old data, so that they do not hold up the tail: what they have on its way is bounded
// always, how much they read in a second while somebody appends or follows.
type coldLimit struct {
	total int64 // bytes
	room  *semaphore.Weighted
	rate  int64        // bytes a second; 0: as many as there are
	tail  atomic.Int64 // when it moved last, Unix nanoseconds

	mu   sync.Mutex
	next time.Time // when the next read may begin
}

func newColdLimit(c Config) *coldLimit {
	return &coldLimit{total: c.ColdBytes, room: semaphore.NewWeighted(c.ColdBytes), rate: max(c.ColdRate, 0)}
}

// tailMoved notes that somebody appends or follows.
func (l *coldLimit) tailMoved() { l.tail.Store(time.Now().UnixNano()) }

// enter returns when a read of so many bytes may begin, or at once when hurry is closed. leave says that it has ended.
func (l *coldLimit) enter(ctx context.Context, bytes int64, hurry <-chan struct{}) (leave func(), err error) {
	weight := min(bytes, l.total)
	if !l.room.TryAcquire(weight) {
		waiting, stop := context.WithCancel(ctx)
		hurried := make(chan struct{})
		go func() {
			defer close(hurried)
			select {
			case <-hurry:
				stop()
			case <-waiting.Done():
			}
		}()
		acquired := l.room.Acquire(waiting, weight) == nil
		stop()
		<-hurried
		if err := segments.Interrupted(ctx); err != nil {
			if acquired {
				l.room.Release(weight)
			}
			return nil, err
		}
		if !acquired {
			return func() {}, nil
		}
	}
	if err := l.pace(ctx, bytes, hurry); err != nil {
		l.room.Release(weight)
		return nil, err
	}
	return func() { l.room.Release(weight) }, nil
}

// pace waits for a read's turn, while the tail is busy.
func (l *coldLimit) pace(ctx context.Context, bytes int64, hurry <-chan struct{}) error {
	select {
	case <-hurry:
		return nil
	default:
	}
	wait := l.turn(time.Now(), bytes)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-hurry:
	case <-ctx.Done():
		return segments.Interrupted(ctx)
	}
	return nil
}

// turn says how long a read has to wait, and counts it.
func (l *coldLimit) turn(now time.Time, bytes int64) time.Duration {
	if l.rate == 0 || now.UnixNano()-l.tail.Load() > int64(tailTime) {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next.Before(now) {
		l.next = now
	}
	wait := l.next.Sub(now)
	l.next = l.next.Add(time.Duration(float64(bytes) / float64(l.rate) * float64(time.Second)))
	return wait
}
