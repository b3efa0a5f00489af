package gateway

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
)

const (
	// leastMessage is what a reader gets for a message however many others there are, in bytes.
	leastMessage = 32 << 10
	// messageCopies is how often a message is in memory: the transport has a copy.
	messageCopies = 2
	// messageShare is the part of the free room that one message may take, one in so many: readers that do not
	// take their messages leave room for others.
	messageShare = 32
)

// messageRoom bounds the memory of all messages of records that are being made or sent. When it becomes short, messages
// become smaller; a batch that is larger than that waits for room.
type messageRoom struct {
	total int64 // bytes
	used  atomic.Int64
	room  *semaphore.Weighted
	// buffers are *[]byte for messages that are written out before the next one is made.
	buffers sync.Pool
}

func newMessageRoom(bytes int64) *messageRoom {
	return &messageRoom{total: bytes, room: semaphore.NewWeighted(bytes), buffers: sync.Pool{New: func() any { return new([]byte) }}}
}

// share is how many bytes a message may have of those that its reader wants.
func (m *messageRoom) share(wanted int) int {
	free := (m.total - m.used.Load()) / messageCopies
	return min(wanted, max(int(free/messageShare), leastMessage))
}

// message is the memory of one message.
type message struct {
	room *messageRoom
	// reuse: what was sent is no longer used when it is let go.
	reuse  bool
	held   int64
	pooled *[]byte
}

// take returns a buffer of so many bytes once there is room for it. The nil message gets it at once.
func (m *message) take(ctx context.Context, bytes int64) ([]byte, error) {
	if m == nil {
		return make([]byte, bytes), nil
	}
	m.leave() // what it took for a try that led to nothing
	held := min(messageCopies*bytes, m.room.total)
	if err := m.room.room.Acquire(ctx, held); err != nil {
		return nil, err
	}
	m.held = held
	m.room.used.Add(held)
	if !m.reuse {
		return make([]byte, bytes), nil
	}
	m.pooled = m.room.buffers.Get().(*[]byte)
	if int64(cap(*m.pooled)) < bytes {
		*m.pooled = make([]byte, bytes)
	}
	return (*m.pooled)[:bytes], nil
}

// leave gives back what was taken.
func (m *message) leave() {
	if m.pooled != nil {
		m.room.buffers.Put(m.pooled)
		m.pooled = nil
	}
	m.room.used.Add(-m.held)
	m.room.room.Release(m.held)
	m.held = 0
}
