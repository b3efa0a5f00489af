package faultfs_test

import (
	"errors"
	"io/fs"
	"syscall"
	"testing"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

func create(t *testing.T, sys *faultfs.FS, path string) segments.File {
	t.Helper()
	file, err := sys.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func write(t *testing.T, file segments.File, text string, offset int64) {
	t.Helper()
	if _, err := file.WriteAt([]byte(text), offset); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, sys *faultfs.FS, path, text string) {
	t.Helper()
	if got, err := sys.Content(path); err != nil || string(got) != text {
		t.Errorf("%s holds %q, %v, want %q", path, got, err, text)
	}
}

func TestCrashDropsWhatWasNotSynced(t *testing.T) {
	sys := faultfs.New()
	file := create(t, sys, "/a")
	write(t, file, "synced", 0)
	if err := errors.Join(file.Sync(), sys.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	write(t, file, "lost", 6)
	create(t, sys, "/b")
	if err := sys.Remove("/a"); err != nil {
		t.Fatal(err)
	}
	sys.Crash(nil)
	want(t, sys, "/a", "synced")
	if _, err := sys.Open("/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a name that was not synced: %v", err)
	}
	if err := file.Sync(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("a file from before the crash: %v", err)
	}
}

func TestCrashKeepsAPart(t *testing.T) {
	sys := faultfs.New()
	file := create(t, sys, "/a")
	write(t, file, "one", 0)
	write(t, file, "two", 3)
	// The name, the first write, two bytes of the second.
	answers := []int{1, 1, 2}
	sys.Crash(func(int) int {
		answer := answers[0]
		answers = answers[1:]
		return answer
	})
	want(t, sys, "/a", "onetw")
}

func TestFailedSyncDrops(t *testing.T) {
	sys := faultfs.New()
	file := create(t, sys, "/a")
	if err := sys.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	write(t, file, "dropped", 0)
	sys.Intercept(func(op faultfs.Op) *faultfs.Fault {
		if op.Kind == faultfs.Sync {
			return &faultfs.Fault{Err: syscall.EIO}
		}
		return nil
	})
	if err := file.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("sync: %v", err)
	}
	sys.Intercept(nil)
	want(t, sys, "/a", "dropped")
	if err := file.Sync(); err != nil {
		t.Fatalf("the sync after the failed one: %v", err)
	}
	sys.Crash(nil)
	want(t, sys, "/a", "")
}

func TestKillKeepsWhatWasWritten(t *testing.T) {
	sys := faultfs.New()
	if _, err := sys.Lock("/LOCK"); err != nil {
		t.Fatal(err)
	}
	write(t, create(t, sys, "/a"), "written", 0)
	sys.Kill()
	want(t, sys, "/a", "written")
	if _, err := sys.Lock("/LOCK"); err != nil {
		t.Errorf("a lock outlives its process: %v", err)
	}
}

func TestRoomEnds(t *testing.T) {
	sys := faultfs.New()
	file := create(t, sys, "/a")
	sys.SetRoom(4)
	if n, err := file.WriteAt([]byte("abcdef"), 0); n != 4 || !errors.Is(err, segments.ErrDiskFull) {
		t.Errorf("wrote %d bytes, %v", n, err)
	}
	want(t, sys, "/a", "abcd")
	if err := file.Truncate(1); err != nil {
		t.Fatal(err)
	}
	if free, err := sys.Free("/"); free != 3 || err != nil {
		t.Errorf("free: %d, %v", free, err)
	}
}
