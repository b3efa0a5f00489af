package bolttable

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bolt "go.etcd.io/bbolt"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
)

// tampered makes a closed file of 500 rows and changes it behind the table's back.
func tampered(t *testing.T, change func(tx *bolt.Tx) error) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "table.db")
	table, err := Open(path, Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	var group []*request
	for i := range 500 {
		group = append(group, put(testRow(fmt.Sprintf("%04d", i), 1), metadata.IfAbsent()))
	}
	table.commit(group)
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(change), db.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTampered makes files in which every page is sound, but not all is there.
func TestTampered(t *testing.T) {
	row := put(testRow("0100", 9), metadata.Condition{})
	another := put(testRow("0100x", 1), metadata.Condition{})
	for name, test := range map[string]struct {
		change func(tx *bolt.Tx) error
		want   string
	}{
		"a row gone": {func(tx *bolt.Tx) error { return tx.Bucket(rowsName).Delete(row.stored) }, "499 rows of 500"},
		"a row more": {func(tx *bolt.Tx) error { return tx.Bucket(rowsName).Put(another.stored, another.value) }, "501 rows of 500"},
		"another version of a row": {func(tx *bolt.Tx) error {
			return tx.Bucket(rowsName).Put(row.stored, row.value)
		}, "not those that were written last"},
		"another row": {func(tx *bolt.Tx) error {
			return errors.Join(tx.Bucket(rowsName).Delete(row.stored), tx.Bucket(rowsName).Put(another.stored, another.value))
		}, "not those that were written last"},
		"no rows": {func(tx *bolt.Tx) error {
			err := tx.DeleteBucket(rowsName)
			_, again := tx.CreateBucket(rowsName)
			return errors.Join(err, again)
		}, "0 rows of 500"},
		"no bucket of rows": {func(tx *bolt.Tx) error { return tx.DeleteBucket(rowsName) }, "root"},
		"no record":         {func(tx *bolt.Tx) error { return tx.Bucket(recordName).Delete(recordKey) }, "record of its rows is gone"},
		"no bucket of it":   {func(tx *bolt.Tx) error { return tx.DeleteBucket(recordName) }, "root"},
		"nothing":           {func(tx *bolt.Tx) error { return errors.Join(tx.DeleteBucket(recordName), tx.DeleteBucket(rowsName)) }, "root"},
	} {
		t.Run(name, func(t *testing.T) {
			path := tampered(t, test.change)
			_, err := Open(path, Options{NoSync: true})
			if !errors.Is(err, metadata.ErrCorrupt) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v, want %v with %q", err, metadata.ErrCorrupt, test.want)
			}
		})
	}
}

// TestNewerFormat is no damage.
func TestNewerFormat(t *testing.T) {
	path := tampered(t, func(tx *bolt.Tx) error {
		b := append(tally{}.encode(), "more"...)
		b[0]++
		binary.BigEndian.PutUint32(b[sumAt:], recordSum(b))
		return tx.Bucket(recordName).Put(recordKey, b)
	})
	_, err := Open(path, Options{NoSync: true})
	if err == nil || errors.Is(err, metadata.ErrCorrupt) || !strings.Contains(err.Error(), "version 2") || !strings.Contains(err.Error(), path) {
		t.Errorf("Open: %v, want that the version is not known", err)
	}
}

// TestLargeFile looks at a file as at one that is too large to read every row: the record is
// looked at, a vanished row is not missed.
func TestLargeFile(t *testing.T) {
	look := func(path string) error {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			t.Fatal(err)
		}
		_, err = verify(file, info.Size(), os.Getpagesize(), 4096)
		return err
	}
	if err := look(tampered(t, func(tx *bolt.Tx) error { return tx.Bucket(rowsName).Delete(storedKey(testRow("0100", 1).Key)) })); err != nil {
		t.Errorf("a row gone: %v", err)
	}
	if err := look(tampered(t, func(tx *bolt.Tx) error { return tx.Bucket(recordName).Delete(recordKey) })); !errors.Is(err, metadata.ErrCorrupt) {
		t.Errorf("the record gone: %v", err)
	}
}

// TestRecord does this and that: the file always opens again, so its record is right.
func TestRecord(t *testing.T) {
	folder := t.TempDir()
	files := 0
	rapid.Check(t, func(t *rapid.T) {
		files++
		path := filepath.Join(folder, fmt.Sprint(files))
		for range 3 {
			table, err := Open(path, Options{NoSync: true})
			if err != nil {
				t.Fatal(err)
			}
			for range rapid.IntRange(0, 4).Draw(t, "groups") {
				table.commit(rapid.SliceOfN(rapid.Custom(drawRequest), 1, 30).Draw(t, "group"))
			}
			if err := table.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func drawRequest(t *rapid.T) *request {
	sort := rapid.StringMatching("[a-f][a-f]?").Draw(t, "sort")
	stamp := metadata.Stamp{Epoch: 1, Sequence: rapid.Uint64Range(1, 3).Draw(t, "stamp")}
	cond := rapid.SampledFrom([]metadata.Condition{{}, metadata.IfAbsent(), metadata.IfEqual(stamp), metadata.IfBelow(stamp)}).Draw(t, "condition")
	if rapid.IntRange(0, 2).Draw(t, "kind") == 0 {
		return remove(sort, cond)
	}
	row := testRow(sort, stamp.Sequence)
	row.Value = make([]byte, rapid.SampledFrom([]int{0, 10, 900, 5000}).Draw(t, "size"))
	return put(row, cond)
}

// BenchmarkOpen opens files of so many rows of about 200 bytes.
func BenchmarkOpen(b *testing.B) {
	for _, rows := range []int{10_000, 100_000} {
		b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "table.db")
			table, err := Open(path, Options{NoSync: true})
			if err != nil {
				b.Fatal(err)
			}
			var group []*request
			for i := range rows {
				row := testRow("lease", 1)
				row.Partition, row.Value = fmt.Sprintf("partition/%032x/%d", i, i), make([]byte, 150)
				group = append(group, put(row, metadata.IfAbsent()))
			}
			table.commit(group)
			for b.Loop() {
				if err := table.Close(); err != nil {
					b.Fatal(err)
				}
				if table, err = Open(path, Options{NoSync: true}); err != nil {
					b.Fatal(err)
				}
			}
			if err := table.Close(); err != nil {
				b.Fatal(err)
			}
		})
	}
}
