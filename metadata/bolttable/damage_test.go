package bolttable_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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
	table, err := bolttable.Open(path, noSync) // a synced file grows by 16 MB at once
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
	theirs := func(t *testing.T, path string) {
		db, err := bolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		err = db.Update(func(tx *bolt.Tx) error {
			_, err := tx.CreateBucket([]byte("theirs"))
			return err
		})
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
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
		"other program":  {theirs, metadata.ErrCorrupt, "another program"},
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
	if corrupt < 15 { // two heads, root, branch, list of free pages
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
	if n != rows {
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

// TestDamagedBytes flips the bytes of a file, one by one: each opens to the whole truth or is
// refused, and left as it is.
func TestDamagedBytes(t *testing.T) {
	path := written(t, 70) // a root, a branch and some leaves
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := everything(t, path)
	if err != nil || len(truth) != 70 {
		t.Fatalf("%d rows, error %v", len(truth), err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	refused, opened := 0, 0
	for at := range good {
		// All of what bbolt wrote but values, and some of the rest.
		if filler := good[at] == 0 || good[at] == '.'; filler && r.IntN(64) > 0 {
			continue
		}
		for _, flip := range []byte{1 << r.IntN(8), byte(1 + r.IntN(255))} {
			good[at] ^= flip
			if honest(t, path, good, truth) {
				opened++
			} else {
				refused++
			}
			good[at] ^= flip
		}
		if t.Failed() {
			t.Fatalf("byte %d", at)
		}
	}
	t.Logf("of %d damaged files %d were refused; in the others the damage was where nothing is", refused+opened, refused)
	if refused < opened {
		t.Errorf("of %d damaged files only %d were refused", refused+opened, refused)
	}
}

// TestScratched does the same with longer damage, and with rows of several pages.
func TestScratched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table.db")
	table := open(t, path, noSync)
	for i := range 300 {
		row := testRow(fmt.Sprintf("%04d", i*7%300), strings.Repeat("x", i*i%9000))
		if err := table.Put(t.Context(), row, metadata.IfAbsent()); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	truth, err := everything(t, path)
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		at := r.IntN(len(good)/page) * page // most of what matters is at a page's begin
		bad := bytes.Clone(good)
		for n := range r.IntN(200) {
			bad[at+n] = byte(r.IntN(256))
		}
		honest(t, path, bad, truth)
	}
}

// honest tells whether a file was opened; what is found then must be the truth.
func honest(t *testing.T, path string, content []byte, truth []metadata.Row) bool {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0) // in place: some file systems sync what is written anew
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
	rows, err := everything(t, path)
	if err != nil {
		if !errors.Is(err, metadata.ErrCorrupt) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "restore") {
			t.Errorf("got error %v, want %v with path and next step", err, metadata.ErrCorrupt)
		}
	} else if !reflect.DeepEqual(truth, rows) { // cmp.Diff takes a hundred times as long
		t.Errorf("not the truth (-want +got):\n%s", cmp.Diff(truth, rows))
	}
	after, readErr := os.ReadFile(path)
	if readErr != nil || !bytes.Equal(after, content) {
		t.Errorf("the file was changed (%v)", readErr)
	}
	return err == nil
}

// everything reads all rows, in order and then one by one.
func everything(t *testing.T, path string) (rows []metadata.Row, err error) {
	t.Helper()
	table, err := bolttable.Open(path, noSync)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, table.Close()) }()
	for row, err := range metadata.Rows(t.Context(), table, metadata.Range{Partition: "p"}) {
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	for _, row := range rows {
		if _, err := table.Get(t.Context(), row.Key, metadata.Strong); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// TestDamagedRow flips one bit of one value.
func TestDamagedRow(t *testing.T) {
	path := written(t, 200)
	rewrite(t, path, "<value 0042>", "<value 0043>")
	_, err := bolttable.Open(path, noSync)
	if !errors.Is(err, metadata.ErrCorrupt) || !strings.Contains(err.Error(), "p 0042") || !strings.Contains(err.Error(), path) {
		t.Fatalf("Open with a damaged row: %v", err)
	}
}

// TestDamagedRowInUse does so while the table is open: only that row is lost.
func TestDamagedRowInUse(t *testing.T) {
	path := written(t, 200)
	table := open(t, path, noSync)
	rewrite(t, path, "<value 0042>", "<value 0043>")
	bad := testRow("0042", "new")
	_, err := table.Get(t.Context(), bad.Key, metadata.Strong)
	for op, err := range map[string]error{
		"Get":    err,
		"Put":    table.Put(t.Context(), bad, metadata.Condition{}),
		"Put if": table.Put(t.Context(), bad, metadata.IfBelow(metadata.Stamp{Epoch: 9})),
		"Delete": table.Delete(t.Context(), bad.Key, metadata.Condition{}),
	} {
		if !errors.Is(err, metadata.ErrCorrupt) || !strings.Contains(err.Error(), "0042") || !strings.Contains(err.Error(), path) {
			t.Errorf("%s of the damaged row: %v", op, err)
		}
	}
	if _, err := table.Get(t.Context(), testRow("0041", "").Key, metadata.Strong); err != nil {
		t.Errorf("Get of its neighbour: %v", err)
	}
}

// rewrite replaces text in the file, in place. Older versions of a page may still lie about: it
// spoils them all.
func rewrite(t *testing.T, path, from, to string) {
	t.Helper()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	changes := 0
	for at := range whole {
		if bytes.HasPrefix(whole[at:], []byte(from)) {
			if _, err := file.WriteAt([]byte(to), int64(at)); err != nil {
				t.Fatal(err)
			}
			changes++
		}
	}
	if changes == 0 {
		t.Fatalf("%q is not in the file", from)
	}
}
