package bolttable_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
)

var noSync = bolttable.Options{NoSync: true}

func testRow(sort, value string) metadata.Row {
	return metadata.Row{
		Key:   metadata.Key{Partition: "p", Sort: sort},
		Stamp: metadata.Stamp{Epoch: 1, Sequence: 1},
		Nonce: metadata.NewNonce(),
		Value: []byte(value),
	}
}

// written makes a closed file with that many rows and returns its path.
func written(t *testing.T, rows int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table.db")
	table, err := bolttable.Open(path, bolttable.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		r := testRow(fmt.Sprintf("%04d", i), fmt.Sprintf("<value %04d>", i)+strings.Repeat(".", 100))
		if err := table.Put(t.Context(), r, metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// count returns how many rows the table shows.
func count(t *testing.T, table metadata.Table) (n int, err error) {
	t.Helper()
	for _, err := range metadata.Rows(t.Context(), table, metadata.Range{Partition: "p"}) {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

func TestReopen(t *testing.T) {
	path := written(t, 100)
	if n, err := count(t, open(t, path, noSync)); n != 100 || err != nil {
		t.Fatalf("%d rows after closing and opening, error %v, want 100", n, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the file's mode is %v, error %v", info.Mode(), err)
	}
}

func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table.db")
	first := open(t, path, noSync)
	began := time.Now()
	_, err := bolttable.Open(path, noSync)
	if !errors.Is(err, metadata.ErrUnavailable) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("Open of a file in use: %v", err)
	}
	if d := time.Since(began); d > 5*time.Second {
		t.Fatalf("Open of a file in use took %v", d)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, path, noSync)
}

func TestOpenRefuses(t *testing.T) {
	foreign := func(bucket string, version uint64) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			db, err := bolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Update(func(tx *bolt.Tx) error {
				b, err := tx.CreateBucket([]byte(bucket))
				if err != nil {
					return err
				}
				return b.SetSequence(version)
			})
			if err := errors.Join(err, db.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	content := func(b []byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, test := range map[string]struct {
		prepare func(*testing.T, string)
		want    error
		text    string
	}{
		"text":           {content([]byte("hello")), metadata.ErrCorrupt, "restore"},
		"zeros":          {content(make([]byte, 1<<16)), metadata.ErrCorrupt, "restore"},
		"noise":          {content(bytes.Repeat([]byte{0xa7}, 1<<16)), metadata.ErrCorrupt, "restore"},
		"other program":  {foreign("theirs", 1), nil, "another program"},
		"newer format":   {foreign("varve", 2), nil, "newer"},
		"no version":     {foreign("varve", 0), metadata.ErrCorrupt, "version"},
		"a folder":       {func(t *testing.T, path string) { _ = os.Mkdir(path, 0o700) }, nil, "directory"},
		"missing folder": {func(t *testing.T, path string) { _ = os.Remove(filepath.Dir(path)) }, os.ErrNotExist, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "table.db")
			test.prepare(t, path)
			for range 2 { // a refusal lets go of the file
				_, err := bolttable.Open(path, noSync)
				if err == nil || test.want != nil && !errors.Is(err, test.want) {
					t.Fatalf("Open: got error %v, want %v", err, test.want)
				}
				if !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), path) {
					t.Fatalf("the error %q does not name %q and %q", err, test.text, path)
				}
			}
		})
	}
}

// TestDamagedPages spoils each page in turn: whatever is asked must be answered by
// the truth or by ErrCorrupt, never by a panic, and the file can be closed.
func TestDamagedPages(t *testing.T) {
	const rows, page = 200, 4096
	whole, err := os.ReadFile(written(t, rows))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "table.db")
	corrupt := 0
	for _, noise := range []byte{0x00, 0xff, 0x5a} {
		for at := 0; at < len(whole); at += page {
			if bytes.Equal(whole[at:at+page], make([]byte, page)) {
				continue // never used
			}
			damaged := bytes.Clone(whole)
			copy(damaged[at:at+page], bytes.Repeat([]byte{noise}, page))
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := use(t, path, rows); errors.Is(err, metadata.ErrCorrupt) {
				corrupt++
			} else if err != nil {
				t.Fatalf("page %d of %#x: %v", at/page, noise, err)
			}
		}
	}
	if corrupt < 3 {
		t.Fatalf("damage was seen only %d times", corrupt)
	}
}

// use reads and writes a file that may be damaged and returns the first error.
func use(t *testing.T, path string, rows int) error {
	t.Helper()
	table, err := bolttable.Open(path, noSync)
	if err != nil {
		return err
	}
	defer func() { _ = table.Close() }()
	n, err := count(t, table)
	if err != nil {
		return err
	}
	// One head page is enough for bbolt, but it may be the one before the last commit.
	if n != rows && n != rows-1 {
		return fmt.Errorf("%d rows, want %d, and no error", n, rows)
	}
	for _, r := range []metadata.Row{testRow("new", "value"), testRow("0100", "again")} {
		if err := table.Put(t.Context(), r, metadata.Condition{}); err != nil {
			return err
		}
		if got, err := table.Get(t.Context(), r.Key, metadata.Strong); err != nil || got.Nonce != r.Nonce {
			return fmt.Errorf("Get after Put: nonce %d, want %d: %w", got.Nonce, r.Nonce, err)
		}
	}
	return nil
}

func TestCutShort(t *testing.T) {
	path := written(t, 200)
	for _, size := range []int64{5, 4096, 8192, 12288} {
		short := filepath.Join(t.TempDir(), "short.db")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(short, whole[:size], 0o600); err != nil {
			t.Fatal(err)
		}
		if err := use(t, short, 200); !errors.Is(err, metadata.ErrCorrupt) {
			t.Fatalf("a file cut to %d bytes: got error %v, want %v", size, err, metadata.ErrCorrupt)
		}
	}
}

// TestCutShortInUse cuts the file under an open table: reading its map faults.
func TestCutShortInUse(t *testing.T) {
	path := written(t, 200)
	table, err := bolttable.Open(path, noSync)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	if _, err := count(t, table); !errors.Is(err, metadata.ErrCorrupt) {
		t.Fatalf("Range: got error %v, want %v", err, metadata.ErrCorrupt)
	}
	for range 2 {
		if err := table.Put(t.Context(), testRow("new", "value"), metadata.IfAbsent()); !errors.Is(err, metadata.ErrCorrupt) {
			t.Fatalf("Put: got error %v, want %v", err, metadata.ErrCorrupt)
		}
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := bolttable.Open(path, noSync); !errors.Is(err, metadata.ErrCorrupt) {
		t.Fatalf("Open: got error %v, want %v", err, metadata.ErrCorrupt)
	}
}

// TestDamagedRow flips one bit of one value: only that row is lost, and can be
// written anew.
func TestDamagedRow(t *testing.T) {
	path := written(t, 200)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Older versions of the page may still lie about: spoil them all.
	spoiled := bytes.ReplaceAll(whole, []byte("<value 0042>"), []byte("<value 0043>"))
	if bytes.Equal(whole, spoiled) {
		t.Fatal("the value is not in the file")
	}
	if err := os.WriteFile(path, spoiled, 0o600); err != nil {
		t.Fatal(err)
	}
	table := open(t, path, noSync)
	bad := testRow("0042", "new")
	_, err = table.Get(t.Context(), bad.Key, metadata.Strong)
	if !errors.Is(err, metadata.ErrCorrupt) || !strings.Contains(err.Error(), "0042") {
		t.Fatalf("Get of the damaged row: %v", err)
	}
	if _, err := table.Get(t.Context(), testRow("0041", "").Key, metadata.Strong); err != nil {
		t.Fatalf("Get of its neighbour: %v", err)
	}
	if err := table.Put(t.Context(), bad, metadata.IfBelow(metadata.Stamp{Epoch: 9})); !errors.Is(err, metadata.ErrCorrupt) {
		t.Fatalf("Put over the damaged row: %v", err)
	}
	if err := table.Put(t.Context(), bad, metadata.Condition{}); err != nil {
		t.Fatalf("Put over the damaged row without a condition: %v", err)
	}
	if n, err := count(t, table); n != 200 || err != nil {
		t.Fatalf("%d rows, error %v", n, err)
	}
}
