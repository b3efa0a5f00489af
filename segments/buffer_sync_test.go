package segments_test

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// openFile returns a new buffer file in memory.
func openFile(t *testing.T) (*faultfs.FS, *segments.BufferFile) {
	t.Helper()
	sys := faultfs.New()
	dir, err := segments.OpenBufferDir(sys, "/buffer", segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	file, err := dir.Create(sampleGateway, 7)
	if err != nil {
		t.Fatal(err)
	}
	return sys, file
}

func appendSample(t *testing.T, file *segments.BufferFile) int64 {
	t.Helper()
	batch := sampleBatches()[0]
	end, err := file.Append(batch.Span, batch.Info, batch.Data)
	if err != nil {
		t.Fatal(err)
	}
	return end
}

// heldSyncs makes each sync of a file wait for a word: nil lets it succeed.
func heldSyncs(sys *faultfs.FS) chan<- error {
	words := make(chan error)
	sys.Intercept(func(op faultfs.Op) *faultfs.Fault {
		if op.Kind != faultfs.Sync {
			return nil
		}
		if err := <-words; err != nil {
			return &faultfs.Fault{Err: err}
		}
		return nil
	})
	return words
}

// waiters starts n appends that wait for their sync, one after the other.
func waiters(t *testing.T, file *segments.BufferFile, n int) <-chan error {
	answers := make(chan error, n)
	for range n {
		end := appendSample(t, file)
		go func() { answers <- file.Sync(context.Background(), end) }()
	}
	synctest.Wait()
	return answers
}

func TestSyncIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys, file := openFile(t)
		words := heldSyncs(sys)
		first := waiters(t, file, 1)
		rest := waiters(t, file, 1000)
		words <- nil
		synctest.Wait()
		if len(first) != 1 || len(rest) != 0 {
			t.Fatalf("after the first sync %d of 1 and %d of 1000 are answered, want 1 and 0", len(first), len(rest))
		}
		late := make(chan error, 1)
		go func() { late <- file.Sync(context.Background(), file.Bytes()) }()
		synctest.Wait()
		if len(late) != 0 {
			t.Fatal("what came after the sync began counts as covered by it")
		}
		words <- nil
		synctest.Wait()
		if len(rest) != 1000 {
			t.Fatalf("after the second sync %d of 1000 are answered", len(rest))
		}
		for range 1000 {
			if err := <-rest; err != nil {
				t.Fatal(err)
			}
		}
		if err := <-late; err != nil {
			t.Fatal(err)
		}
		if n := sys.Count(faultfs.Sync); n != 2 {
			t.Errorf("1001 waiters took %d syncs, want 2", n)
		}
		if err := file.Sync(context.Background(), file.Bytes()); err != nil || sys.Count(faultfs.Sync) != 2 {
			t.Errorf("sync of what is durable: %v, %d syncs in all", err, sys.Count(faultfs.Sync))
		}
		if n := sys.Count(faultfs.SyncDir); n != 3 {
			t.Errorf("%d syncs of folders, want 3: the root, the gateway's and the buffer's", n)
		}
	})
}

func TestFailedSyncFailsAllWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys, file := openFile(t)
		words := heldSyncs(sys)
		end := appendSample(t, file)
		durable := waiters(t, file, 1)
		words <- nil
		if err := <-durable; err != nil {
			t.Fatal(err)
		}
		first, rest := waiters(t, file, 1), waiters(t, file, 10)
		words <- syscall.EIO
		synctest.Wait()
		if len(first) != 1 || len(rest) != 10 {
			t.Fatalf("after the failed sync %d of 1 and %d of 10 are answered", len(first), len(rest))
		}
		for _, answers := range []<-chan error{first, rest} {
			for range len(answers) {
				if err := <-answers; !errors.Is(err, segments.ErrBufferFailed) || !errors.Is(err, syscall.EIO) {
					t.Fatalf("waiter of a failed sync: %v", err)
				}
			}
		}
		if err := file.Sync(context.Background(), file.Bytes()); !errors.Is(err, segments.ErrBufferFailed) {
			t.Errorf("later sync: %v", err)
		}
		if err := file.Sync(context.Background(), end); err != nil {
			t.Errorf("sync of what was durable before: %v", err)
		}
		batch := sampleBatches()[0]
		if _, err := file.Append(batch.Span, batch.Info, batch.Data); !errors.Is(err, segments.ErrBufferFailed) {
			t.Errorf("later append: %v", err)
		}
		if n := sys.Count(faultfs.Sync); n != 2 {
			t.Errorf("%d syncs, want 2: none after the one that failed", n)
		}
		if err := file.Remove(); err != nil {
			t.Error(err)
		}
	})
}

func TestWaiterLeavesEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys, file := openFile(t)
		words := heldSyncs(sys)
		ctx, leave := context.WithCancel(context.Background())
		end := appendSample(t, file)
		gone := make(chan error, 1)
		go func() { gone <- file.Sync(ctx, end) }()
		synctest.Wait()
		stays := make(chan error, 1)
		go func() { stays <- file.Sync(context.Background(), end) }()
		synctest.Wait()
		leave()
		if err := <-gone; !errors.Is(err, context.Canceled) {
			t.Errorf("who left was told %v", err)
		}
		words <- nil
		if err := <-stays; err != nil {
			t.Errorf("who stayed was told %v", err)
		}
		if n := sys.Count(faultfs.Sync); n != 1 {
			t.Errorf("%d syncs, want 1", n)
		}
	})
}

func TestCloseWaitsForSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sys, file := openFile(t)
		words := heldSyncs(sys)
		first, second := waiters(t, file, 1), waiters(t, file, 1)
		closed := make(chan error, 1)
		go func() { closed <- file.Close() }()
		synctest.Wait()
		if len(closed) != 0 {
			t.Fatal("closed under a running sync")
		}
		words <- nil
		words <- nil
		if err := errors.Join(<-first, <-second, <-closed, file.Close()); err != nil {
			t.Error(err)
		}
		batch := sampleBatches()[0]
		if _, err := file.Append(batch.Span, batch.Info, batch.Data); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("append to a closed file: %v", err)
		}
	})
}

func TestSyncPastTheEnd(t *testing.T) {
	_, file := openFile(t)
	if err := file.Sync(context.Background(), file.Bytes()+1); err == nil {
		t.Error("bytes that were never appended are durable")
	}
}
