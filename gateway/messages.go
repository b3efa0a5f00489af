package gateway

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
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
	// outgoing are those in buffers, *byte to *message: by the first byte of what they hold.
	outgoing sync.Map
}

func newMessageRoom(size int64) *messageRoom {
	return &messageRoom{total: size, room: semaphore.NewWeighted(size), buffers: sync.Pool{New: func() any { return new([]byte) }}}
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
	first  *byte // by which it is found among those that go out; nil: it is not
}

const (
	// headroom is before the records of a message, and footroom behind them, in bytes, so that the rest of the message is encoded
	// around them.
	headroom = 16
	footroom = 256
	// messageSlack is what its memory has more, which shifts by a few bytes each time that it is given away.
	messageSlack = 16 << 10
)

// take returns a buffer of so many bytes once there is room for it. The nil message gets it at once.
func (m *message) take(ctx context.Context, size int64) ([]byte, error) {
	if m == nil {
		return make([]byte, size), nil
	}
	m.leave() // what it took for a try that led to nothing
	held := min(messageCopies*size, m.room.total)
	if err := m.room.room.Acquire(ctx, held); err != nil {
		return nil, err
	}
	m.held = held
	m.room.used.Add(held)
	if !m.reuse {
		return make([]byte, size), nil
	}
	m.pooled = m.room.buffers.Get().(*[]byte)
	if need := headroom + int(size) + footroom; cap(*m.pooled) < need {
		*m.pooled = make([]byte, need+messageSlack)
	}
	buffer := (*m.pooled)[headroom : headroom+size]
	if size > 0 {
		m.first = &buffer[0]
		m.room.outgoing.Store(m.first, m)
	}
	return buffer, nil
}

// write encodes a response whose records are in the memory of a message around them, and gives that memory to the transport's buffer for
// the buffer's own: nothing is copied. It does nothing and returns false where the records lie elsewhere, or the buffer has much less memory.
func (m *messageRoom) write(buffer *bytes.Buffer, r *varvev1.ConsumeResponse) (bool, error) {
	data := r.GetRecordBatches()
	if len(data) == 0 || buffer.Len() > 0 {
		return false, nil
	}
	found, ok := m.outgoing.Load(&data[0])
	if !ok {
		return false, nil
	}
	message := found.(*message)
	memory, spare := (*message.pooled)[:headroom+len(data)], buffer.AvailableBuffer()
	if cap(spare) < len(memory)/2 {
		return false, nil
	}
	r.RecordBatches = nil // it goes first
	defer func() { r.RecordBatches = data }()
	if proto.Size(r) > cap(memory)-len(memory) {
		return false, nil
	}
	memory, err := proto.MarshalOptions{}.MarshalAppend(memory, r)
	if err != nil {
		return false, err
	}
	var head [headroom]byte
	field := protowire.AppendVarint(protowire.AppendTag(head[:0], recordBatchesField, protowire.BytesType), uint64(len(data)))
	start := headroom - len(field)
	copy(memory[start:], field)
	*buffer = *bytes.NewBuffer(memory[start:])
	*message.pooled = spare[:cap(spare)]
	// The records are no longer in the message's memory: whoever writes them a second time must not take that for theirs.
	m.outgoing.Delete(message.first)
	message.first = nil
	return true, nil
}

// recordBatchesField is the number of record_batches in ConsumeResponse.
const recordBatchesField = 2

// leave gives back what was taken.
func (m *message) leave() {
	if m.first != nil {
		m.room.outgoing.Delete(m.first)
		m.first = nil
	}
	if m.pooled != nil {
		m.room.buffers.Put(m.pooled)
		m.pooled = nil
	}
	m.room.used.Add(-m.held)
	m.room.room.Release(m.held)
	m.held = 0
}
