package gateway

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// TestMessageRoom has many readers that do not take their messages: what is in memory for them stays within the limit,
// others get messages, and all of it is given back.
func TestMessageRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 16 << 20
		g := runGateway(t, Config{Exclusive: true, ReadBytes: limit, MaxMessageBytes: 4 << 20}, memory())
		g.create(t, "a", 1, nil)
		g.fillLarge(t, 100)
		var group sync.WaitGroup
		var sent, bytes atomic.Int64
		ctx, cancel := context.WithCancel(t.Context())
		for range 60 {
			c, err := g.consumerOf(ctx, t)
			if err != nil {
				t.Fatal(err)
			}
			c.maxBytes = 4 << 20
			c.send = func(m *varvev1.ConsumeResponse) error {
				sent.Add(1)
				bytes.Add(int64(cap(m.GetRecordBatches())))
				<-ctx.Done()
				return ctx.Err()
			}
			group.Go(func() { _ = c.run(ctx, nil) })
			synctest.Wait()
		}
		if n := sent.Load(); n != 60 {
			t.Errorf("%d of 60 readers have a message", n)
		}
		if n, used := bytes.Load(), g.reader.room.used.Load(); messageCopies*n > limit || used > limit || used < n {
			t.Errorf("messages of %d bytes, %d are counted, the limit is %d", n, used, limit)
		}
		if seen, err := g.consumeAll(t.Context(), t); err != nil || !ascending(seen, 100) {
			t.Errorf("a reader beside them: %v, %v", seen, err)
		}
		cancel()
		group.Wait()
		if used := g.reader.room.used.Load(); used != 0 {
			t.Errorf("%d bytes are still counted", used)
		}
		g.leave()
		<-g.ended
	})
}

// TestMessageIsWrittenWhereItLies: a response whose records lie in a message's memory is encoded around them, decodes to what it was, and
// the buffer's memory is the message's then. Others are copied.
func TestMessageIsWrittenWhereItLies(t *testing.T) {
	room := newMessageRoom(1 << 20)
	codec := newBinaryCodec(room)
	for _, size := range []int{1, 127, 128, 70_000} {
		for _, spare := range []int{0, 200_000} {
			m := &message{room: room, reuse: true}
			data, err := m.take(t.Context(), int64(size))
			if err != nil {
				t.Fatal(err)
			}
			for i := range data {
				data[i] = byte(i * 7)
			}
			r := &varvev1.ConsumeResponse{Partition: 3, RecordBatches: data, NextOffset: 1 << 40, HighWatermark: 77, End: true, StartOffset: 5}
			want := proto.Clone(r)
			buffer := bytes.NewBuffer(make([]byte, 0, spare))
			if err := codec.MarshalWrite(t.Context(), buffer, r); err != nil {
				t.Fatal(err)
			}
			if given := cap(*m.pooled) == spare; given != (spare > 0) {
				t.Errorf("%d bytes, a buffer of %d: the message has %d now", size, spare, cap(*m.pooled))
			}
			if spare > 0 {
				clear((*m.pooled)[:spare]) // it is somebody else's
			}
			got := new(varvev1.ConsumeResponse)
			if err := proto.Unmarshal(buffer.Bytes(), got); err != nil || !proto.Equal(got, want) {
				t.Errorf("%d bytes, a buffer of %d: %v, %v", size, spare, got, err)
			}
			again := bytes.NewBuffer(make([]byte, 0, spare))
			if err := codec.MarshalWrite(t.Context(), again, r); err != nil {
				t.Fatal(err)
			}
			if got := new(varvev1.ConsumeResponse); proto.Unmarshal(again.Bytes(), got) != nil || !proto.Equal(got, want) {
				t.Errorf("%d bytes, a buffer of %d: written a second time it is another", size, spare)
			}
			m.leave()
		}
	}
	room.outgoing.Range(func(_, _ any) bool {
		t.Error("a message that has left is still among those that go out")
		return false
	})
	if used := room.used.Load(); used != 0 {
		t.Errorf("%d bytes are still counted", used)
	}
}

// TestColdLimit: reads of old data are held up in bytes, and in bytes a second while the tail is busy; who hurries is not.
func TestColdLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const mib = 1 << 20
		l := newColdLimit(Config{ColdBytes: 4 * mib, ColdRate: 8 * mib})
		read := func(n int, busy bool) time.Duration {
			began := time.Now()
			for range n {
				if busy {
					l.tailMoved()
				}
				leave, err := l.enter(t.Context(), mib, nil)
				if err != nil {
					t.Fatal(err)
				}
				leave()
			}
			return time.Since(began)
		}
		time.Sleep(time.Hour)
		if took := read(64, false); took != 0 {
			t.Errorf("64 MiB while nothing happens took %s", took)
		}
		if took := read(64, true); took < 7*time.Second || took > 9*time.Second {
			t.Errorf("64 MiB while the tail is busy took %s", took)
		}
		time.Sleep(time.Hour)
		var leaves []func()
		for range 4 {
			leave, err := l.enter(t.Context(), mib, nil)
			if err != nil {
				t.Fatal(err)
			}
			leaves = append(leaves, leave)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := l.enter(ctx, mib, nil); err == nil {
			t.Error("more is on its way than may be")
		}
		hurry := make(chan struct{})
		time.AfterFunc(time.Second, func() { close(hurry) })
		began := time.Now()
		leave, err := l.enter(t.Context(), mib, hurry)
		if took := time.Since(began); err != nil || took != time.Second {
			t.Errorf("who hurries waited for %s, %v", took, err)
		}
		leave()
		for _, leave := range leaves {
			leave()
		}
		if !l.room.TryAcquire(l.total) {
			t.Error("not all was given back")
		}
	})
}
