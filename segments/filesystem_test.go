package segments_test

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// TestFileSystems holds the real file system and the tests' own to the same contract.
func TestFileSystems(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) (segments.FS, string){
		"os":      func(t *testing.T) (segments.FS, string) { return segments.OS(), t.TempDir() },
		"faultfs": func(*testing.T) (segments.FS, string) { return faultfs.New(), "/" },
	} {
		t.Run(name+"/names", func(t *testing.T) { testNames(t, open) })
		t.Run(name+"/bytes", func(t *testing.T) { testBytes(t, open) })
	}
}

func testNames(t *testing.T, open func(t *testing.T) (segments.FS, string)) {
	sys, root := open(t)
	at := func(name string) string { return filepath.Join(root, name) }
	touch := func(name string) {
		t.Helper()
		file, err := sys.Create(at(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := file.Close(); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(what string, got, want error) {
		t.Helper()
		if !errors.Is(got, want) || (want == nil && got != nil) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	expect("mkdir", sys.Mkdir(at("folder")), nil)
	expect("mkdir twice", sys.Mkdir(at("folder")), fs.ErrExist)
	expect("mkdir in nothing", sys.Mkdir(at("none/folder")), fs.ErrNotExist)
	touch("folder/b")
	touch("folder/a")
	_, err := sys.Create(at("folder/a"))
	expect("create twice", err, fs.ErrExist)
	_, err = sys.Open(at("folder/c"))
	expect("open nothing", err, fs.ErrNotExist)
	expect("rename nothing", sys.Rename(at("folder/c"), at("folder/d")), fs.ErrNotExist)
	expect("rename", sys.Rename(at("folder/b"), at("folder/c")), nil)
	entries, err := sys.ReadDir(at("folder"))
	expect("list", err, nil)
	if diff := cmp.Diff([]segments.DirEntry{{Name: "a"}, {Name: "c"}}, entries); diff != "" {
		t.Error(diff)
	}
	expect("rename onto another", sys.Rename(at("folder/c"), at("folder/a")), nil)
	if err := sys.Remove(at("folder")); err == nil {
		t.Error("removed a folder that is not empty")
	}
	expect("remove a file", sys.Remove(at("folder/a")), nil)
	expect("remove it again", sys.Remove(at("folder/a")), fs.ErrNotExist)
	expect("sync a folder", sys.SyncDir(at("folder")), nil)
	expect("remove a folder", sys.Remove(at("folder")), nil)
	expect("sync nothing", sys.SyncDir(at("folder")), fs.ErrNotExist)
	_, err = sys.ReadDir(at("folder"))
	expect("list nothing", err, fs.ErrNotExist)
	if free, err := sys.Free(root); free <= 0 || err != nil {
		t.Errorf("free: %d, %v", free, err)
	}
}

func testBytes(t *testing.T, open func(t *testing.T) (segments.FS, string)) {
	sys, root := open(t)
	path := filepath.Join(root, "file")
	file, err := sys.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := file.WriteAt([]byte("abcdef"), 2); n != 6 || err != nil {
		t.Fatalf("wrote %d bytes, %v", n, err)
	}
	if err := errors.Join(file.Truncate(5), file.Sync()); err != nil {
		t.Fatal(err)
	}
	read, err := sys.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if size, err := read.Size(); size != 5 || err != nil {
		t.Errorf("size %d, %v", size, err)
	}
	in := make([]byte, 4)
	if n, err := read.ReadAt(in, 1); n != 4 || err != nil || string(in) != "\x00abc" {
		t.Errorf("read %q, %d, %v", in[:n], n, err)
	}
	if n, err := read.ReadAt(in, 3); n != 2 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := read.ReadAt(in, 9); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read past the end: %d, %v", n, err)
	}
	if _, err := read.WriteAt(in, 0); err == nil {
		t.Error("wrote to a file that is open for reading")
	}
	if err := errors.Join(read.Close(), file.Close()); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	if _, err := file.WriteAt(in, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("wrote to a closed file: %v", err)
	}
}
