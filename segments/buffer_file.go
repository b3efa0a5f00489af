package segments

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/varvelog/varve/internal/seeded"
)

// ErrBufferFailed says that a buffer file takes nothing more: a write could not be
// undone, or a sync failed. It is unknown whether batches that were not known to be
// on disk are there. Go on in a new file; trying again is wrong, because a sync that
// follows a failed one says "done" of bytes that the system has dropped.
var ErrBufferFailed = errors.New("segments: buffer file failed")

// BufferFile holds, for one segment that is being gathered or sent, the batches that
// are acknowledged before their commit.
//
// One goroutine may append while any number of others wait in Sync.
type BufferFile struct {
	dir     *BufferDir
	gateway GatewayID
	path    string
	file    File
	marker  marker

	// Of the appender alone.
	head   []byte
	frames uint32

	named bool // the file's name is durable; of the goroutine that syncs alone

	mu     sync.Mutex
	size   int64 // end of the last whole frame
	synced int64 // up to here all is durable
	failed error
	closed bool
	// The sync that runs, and the one that starts when it ends. Who comes while one
	// runs shares the next: the running one may have missed its bytes.
	running, next *syncRound
	syncing       sync.WaitGroup
}

// syncRound is one sync of the file, shared by all who wait for it.
type syncRound struct {
	upTo int64 // what it covers; known once it runs
	done chan struct{}
}

// Append writes one batch behind the others and returns the position that Sync must
// reach for it to be durable. Nothing is copied and data is not kept. Position in
// info is not stored, Size is that of data.
//
// After an error the batch is not in the file and never will be. A full disk is
// [ErrDiskFull], and the file is as before. [ErrBufferFailed] says that the file
// takes no more.
func (f *BufferFile) Append(span SpanID, info BatchInfo, data []byte) (upTo int64, err error) {
	if err := validateBatch(span, data, &info); err != nil {
		return 0, err
	}
	if len(data) > MaxBufferedBatch {
		return 0, fmt.Errorf("segments: batch of %v has %d bytes, a buffer takes up to %d", span, len(data), MaxBufferedBatch)
	}
	start, err := f.end()
	if err != nil {
		return 0, err
	}
	f.head = appendFrameHead(f.head[:0], f.marker, &frame{index: f.frames, span: span, info: info, data: data})
	if err := f.write(start, f.head, data); err != nil {
		return 0, f.undo(start, err)
	}
	f.frames++
	f.mu.Lock()
	defer f.mu.Unlock()
	f.size = start + int64(len(f.head)+len(data))
	return f.size, nil
}

// end is where the next frame goes.
func (f *BufferFile) end() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed != nil {
		return 0, f.failed
	}
	if f.closed {
		return 0, fmt.Errorf("segments: append to %s: %w", f.path, fs.ErrClosed)
	}
	return f.size, nil
}

// write puts parts at a position. Two calls cost less than gathering the parts in
// one place, which would copy every batch.
func (f *BufferFile) write(position int64, parts ...[]byte) error {
	for _, part := range parts {
		n, err := f.file.WriteAt(part, position)
		if err != nil {
			return err
		}
		position += int64(n)
	}
	return nil
}

// undo cuts off what a failed write left behind the last whole frame.
func (f *BufferFile) undo(size int64, cause error) error {
	err := fmt.Errorf("segments: append to %s: %w", f.path, cause)
	if cut := f.file.Truncate(size); cut != nil {
		return f.fail(fmt.Errorf("%w, and cutting the torn frame off: %w", err, cut))
	}
	return err
}

// fail marks the file as failed, once and for ever.
func (f *BufferFile) fail(cause error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failed == nil {
		f.failed = fmt.Errorf("%w: %w", ErrBufferFailed, cause)
	}
	return f.failed
}

// Sync returns nil once everything up to the position that Append returned is
// durable, the file's name included. Calls share: one sync runs, and all who come
// meanwhile wait for the one after it.
//
// [ErrBufferFailed] says that the outcome is unknown, now and for every later call
// that asks for more than was durable before. When ctx ends first the outcome is
// unknown too, the error wraps that of ctx, and the sync goes on for the others.
func (f *BufferFile) Sync(ctx context.Context, upTo int64) error {
	for {
		round, err := f.join(upTo)
		if round == nil {
			return err
		}
		select {
		case <-round.done:
		case <-ctx.Done():
			return fmt.Errorf("segments: waiting for %s to be on disk: %w", f.path, context.Cause(ctx))
		}
	}
}

// join returns the round to wait for before asking again, or none and the answer.
func (f *BufferFile) join(upTo int64) (*syncRound, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case upTo <= f.synced:
		return nil, nil
	case f.failed != nil:
		return nil, f.failed
	case upTo > f.size:
		return nil, fmt.Errorf("segments: sync of %s up to %d: it ends at %d", f.path, upTo, f.size)
	case f.closed:
		return nil, fmt.Errorf("segments: sync of %s: %w", f.path, fs.ErrClosed)
	case f.running != nil && upTo <= f.running.upTo:
		return f.running, nil
	case f.running != nil:
		if f.next == nil {
			f.next = &syncRound{done: make(chan struct{})}
		}
		return f.next, nil
	}
	f.running = &syncRound{upTo: f.size, done: make(chan struct{})}
	f.syncing.Add(1)
	go f.runSyncs(f.running)
	return f.running, nil
}

// runSyncs syncs until nobody waits any more. It has a goroutine of its own, so that
// a caller can leave early; Close waits for it.
func (f *BufferFile) runSyncs(round *syncRound) {
	defer f.syncing.Done()
	for round != nil {
		round = f.finish(round, f.sync())
	}
}

// sync makes the file durable, then its name: on a journaling file system the first
// sync of a new file carries the name along, and the second finds nothing to do.
func (f *BufferFile) sync() error {
	err := f.file.Sync()
	if err != nil && seeded.Has(seeded.RetrySync) {
		err = f.file.Sync()
	}
	if err != nil {
		return err
	}
	if f.named {
		return nil
	}
	if err := f.dir.syncNames(f.gateway); err != nil {
		return err
	}
	f.named = true
	return nil
}

// finish ends a round and returns the next one, if anybody waits for it.
func (f *BufferFile) finish(round *syncRound, err error) *syncRound {
	if err != nil {
		_ = f.fail(fmt.Errorf("sync of %s: %w", f.path, err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.synced = round.upTo
	}
	close(round.done)
	f.running, f.next = f.next, nil
	if f.running == nil {
		return nil
	}
	if f.failed != nil {
		close(f.running.done)
		f.running = nil
		return nil
	}
	f.running.upTo = f.size
	return f.running
}

// Bytes is the size of the file: what it takes on disk.
func (f *BufferFile) Bytes() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size
}

// Close ends the file's use and leaves it on disk, for the next start to find. It
// waits for the syncs that have been asked for and starts none itself. Closing twice
// is no error.
func (f *BufferFile) Close() error {
	f.mu.Lock()
	was := f.closed
	f.closed = true
	f.mu.Unlock()
	f.syncing.Wait()
	if was {
		return nil
	}
	return f.file.Close()
}

// Remove closes the file and removes it, when every batch in it is committed. After
// a crash of the host it may be back: recovery then finds its batches committed.
// [BufferDir.RemoveGateway] makes removals durable.
func (f *BufferFile) Remove() error {
	// A file that cannot be closed can be removed all the same.
	return errors.Join(f.Close(), f.dir.fs.Remove(f.path))
}
