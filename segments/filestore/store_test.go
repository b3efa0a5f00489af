package filestore_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/filestore"
	"github.com/varvelog/varve/segments/storetest"
)

func open(t *testing.T, dir string) *filestore.Store {
	t.Helper()
	store, err := filestore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) segments.Store { return open(t, filepath.Join(t.TempDir(), "new", "store")) })
}

// Every file and folder is for its owner only, and nothing is left of the writing.
func TestFiles(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	store := open(t, root)
	for range 2 {
		err := store.Put(t.Context(), "a/b/c.seg", segments.NewBody([]byte("abc")))
		if err != nil && !errors.Is(err, segments.ErrExists) {
			t.Fatal(err)
		}
	}
	want := map[string]fs.FileMode{".": 0o700, "~tmp": 0o700, "a": 0o700, "a/b": 0o700, "a/b/c.seg": 0o600}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		info, err := entry.Info()
		if mode, known := want[name]; err != nil || !known || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, mode)
		}
		delete(want, name)
		return nil
	})
	if err != nil || len(want) > 0 {
		t.Errorf("missing %v, %v", want, err)
	}
}

// cancelling is a body that ends its own write once its bytes are asked for.
type cancelling struct {
	segments.Body
	cancel func()
}

func (c cancelling) Slices() [][]byte {
	c.cancel()
	return c.Body.Slices()
}

func TestCancelledPutLeavesNothing(t *testing.T) {
	root := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	err := open(t, root).Put(ctx, "key", cancelling{segments.NewBody([]byte("x")), cancel})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Put: %v", err)
	}
	for _, pattern := range []string{"key", "~tmp/*"} {
		if left, err := filepath.Glob(filepath.Join(root, pattern)); err != nil || len(left) > 0 {
			t.Errorf("left %q, %v", left, err)
		}
	}
}

// A restart removes what a crash left, but not what another process is writing.
func TestLeftovers(t *testing.T) {
	root := t.TempDir()
	open(t, root)
	left, used := filepath.Join(root, "~tmp", "put-left"), filepath.Join(root, "~tmp", "put-used")
	for _, path := range []string{left, used} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(used)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	store := open(t, root)
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("leftover: %v", err)
	}
	if _, err := os.Stat(used); err != nil {
		t.Errorf("file in use: %v", err)
	}
	if objects, err := store.List(t.Context(), "", "", 10); err != nil || len(objects) != 0 {
		t.Errorf("List = %v, %v", objects, err)
	}
}

// Objects are there after a restart, and a folder that vanishes under a store is not
// taken for lost objects.
func TestFolder(t *testing.T) {
	root := filepath.Join(t.TempDir(), "store")
	if err := open(t, root).Put(t.Context(), "a/b", segments.NewBody([]byte("kept"))); err != nil {
		t.Fatal(err)
	}
	store := open(t, root)
	if data, _, err := store.Get(t.Context(), "a/b", 0, -1); err != nil || string(data) != "kept" {
		t.Fatalf("Get = %q, %v", data, err)
	}
	if err := os.Rename(root, root+".away"); err != nil {
		t.Fatal(err)
	}
	_, _, getErr := store.Get(t.Context(), "a/b", 0, -1)
	_, listErr := store.List(t.Context(), "", "", 10)
	for op, err := range map[string]error{
		"Get": getErr, "List": listErr, "Put": store.Put(t.Context(), "a/c", segments.NewBody()),
	} {
		if !errors.Is(err, segments.ErrNoBucket) || errors.Is(err, segments.ErrNotFound) {
			t.Errorf("%s without the folder: %v, want ErrNoBucket", op, err)
		}
	}
}

func TestOpenFails(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := filestore.Open(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("Open of a file: %v, want an error that names it", err)
	}
}

// /dev/full is a device on which every write fails with ENOSPC. Only Linux has it.
func TestDiskFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	_, err = full.Write([]byte("x"))
	got := filestore.Translate(err)
	if !errors.Is(got, segments.ErrFull) || !errors.Is(got, segments.ErrUnavailable) || !strings.Contains(got.Error(), "disk full") {
		t.Errorf("ENOSPC: %v, want ErrFull that says disk full", got)
	}
}

func BenchmarkGet(b *testing.B) {
	store, err := filestore.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	if err := store.Put(b.Context(), "object", segments.NewBody(make([]byte, 8<<20))); err != nil {
		b.Fatal(err)
	}
	for _, size := range []int64{4 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			b.SetBytes(size)
			for i := 0; b.Loop(); i++ {
				if _, _, err := store.Get(b.Context(), "object", int64(i)%100*4096, size); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkStore(b *testing.B) {
	store, err := filestore.Open(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	storetest.BenchmarkObjects(b, store)
}
