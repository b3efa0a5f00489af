package bolttable

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	berrors "go.etcd.io/bbolt/errors"

	"github.com/varvelog/varve/metadata"
)

func openTable(t *testing.T, o Options) *Table {
	t.Helper()
	o.NoSync = true
	table, err := Open(filepath.Join(t.TempDir(), "table.db"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = table.Close() })
	return table
}

func testRow(sort string, sequence uint64) metadata.Row {
	return metadata.Row{
		Key:   metadata.Key{Partition: "p", Sort: sort},
		Stamp: metadata.Stamp{Epoch: 1, Sequence: sequence},
		Nonce: metadata.NewNonce(),
		Value: []byte("value"),
	}
}

func put(r metadata.Row, c metadata.Condition) *request {
	stored := storedKey(r.Key)
	return &request{key: r.Key, stored: stored, value: encodeRow(stored, r), cond: c}
}

func remove(sort string, c metadata.Condition) *request {
	k := metadata.Key{Partition: "p", Sort: sort}
	return &request{key: k, stored: storedKey(k), cond: c}
}

// TestGroup checks that one transaction holds a whole group, in which later
// conditions see earlier writes and refusals leave the others alone.
func TestGroup(t *testing.T) {
	table := openTable(t, Options{})
	one := metadata.Stamp{Epoch: 1, Sequence: 1}
	group := []*request{
		put(testRow("a", 1), metadata.IfAbsent()),
		put(testRow("a", 2), metadata.IfAbsent()),
		put(testRow("a", 2), metadata.IfEqual(one)),
		put(testRow("a", 3), metadata.IfEqual(one)),
		remove("b", metadata.IfEqual(one)),
		remove("b", metadata.Condition{}),
		put(testRow("b", 1), metadata.IfBelow(one)),
		remove("b", metadata.IfEqual(one)),
		put(testRow("b", 5), metadata.IfAbsent()),
	}
	before := table.lastCommit()
	table.commit(group)
	if n := table.lastCommit() - before; n != 1 {
		t.Errorf("the group took %d transactions, want 1", n)
	}
	for i, want := range []error{nil, metadata.ErrConflict, nil, metadata.ErrConflict, metadata.ErrConflict, nil, nil, nil, nil} {
		if got := group[i].outcome; !errors.Is(got, want) {
			t.Errorf("write %d of the group: got %v, want %v", i, got, want)
		}
	}
	for sort, want := range map[string]uint64{"a": 2, "b": 5} {
		got, err := table.Get(t.Context(), metadata.Key{Partition: "p", Sort: sort}, metadata.Strong)
		if err != nil || got.Stamp.Sequence != want {
			t.Errorf("row %s is at %v, want %d, error %v", sort, got.Stamp, want, err)
		}
	}

	before = table.lastCommit()
	table.commit([]*request{put(testRow("a", 9), metadata.IfAbsent()), remove("c", metadata.Condition{})})
	if n := table.lastCommit() - before; n != 0 {
		t.Errorf("a group that changes nothing took %d transactions, want 0", n)
	}
}

// TestGather plays the writer, once all writes wait: it must get them all at once.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const writers = 50
		table := &Table{requests: make(chan *request), closing: make(chan struct{})}
		var done sync.WaitGroup
		for i := range writers {
			done.Go(func() {
				if err := table.Put(t.Context(), testRow(fmt.Sprint(i), 1), metadata.IfAbsent()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		group := table.gather(<-table.requests)
		if len(group) != writers {
			t.Errorf("the group has %d of %d waiting writes", len(group), writers)
		}
		for _, r := range group {
			r.answer <- nil
		}
		done.Wait()
	})
}

// TestGatherEnds checks that a group is bounded: a transaction must not grow for ever.
func TestGatherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := &Table{requests: make(chan *request)}
		for range 3 {
			go func() { table.requests <- &request{value: make([]byte, maxGroup/2)} }()
		}
		synctest.Wait()
		if n := len(table.gather(<-table.requests)); n != 2 {
			t.Errorf("the group has %d writes of half its limit, want 2", n)
		}
		<-table.requests
	})
}

// TestFailedCommit breaks the file beneath the table: the outcome is unknown, and
// nothing is answered from a state that may not be on disk.
func TestFailedCommit(t *testing.T) {
	table := openTable(t, Options{})
	r := testRow("a", 1)
	if err := table.Put(t.Context(), r, metadata.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	if err := table.file.Close(); err != nil {
		t.Fatal(err)
	}
	group := []*request{put(testRow("b", 1), metadata.IfAbsent()), put(testRow("a", 1), metadata.IfAbsent())}
	table.commit(group)
	for _, r := range group {
		if !errors.Is(r.outcome, metadata.ErrUnknown) || errors.Is(r.outcome, metadata.ErrConflict) {
			t.Errorf("write of a failed commit: got %v, want %v", r.outcome, metadata.ErrUnknown)
		}
	}
	_, err := table.Get(t.Context(), r.Key, metadata.Strong)
	for op, err := range map[string]error{
		"Get": err,
		"Put": table.Put(t.Context(), testRow("c", 1), metadata.IfAbsent()),
	} {
		if !errors.Is(err, metadata.ErrUnavailable) || !strings.Contains(err.Error(), "a commit failed") {
			t.Errorf("%s after a failed commit: %v", op, err)
		}
	}
}

func TestFull(t *testing.T) {
	const limit = 1 << 20
	table := openTable(t, Options{MaxSize: limit})
	large := testRow("", 1)
	large.Value = make([]byte, 100<<10)
	var err error
	n := 0
	for ; err == nil && n < 100; n++ {
		large.Sort = fmt.Sprint(n)
		err = table.Put(t.Context(), large, metadata.IfAbsent())
	}
	if !errors.Is(err, metadata.ErrUnavailable) || !strings.Contains(err.Error(), "full") {
		t.Fatalf("Put beyond the limit: %v", err)
	}
	if _, err := table.Get(t.Context(), large.Key, metadata.Strong); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("Get of the row that did not fit: %v", err)
	}
	for i := range n - 1 {
		if err := table.Delete(t.Context(), metadata.Key{Partition: "p", Sort: fmt.Sprint(i)}, metadata.Condition{}); err != nil {
			t.Fatalf("Delete in a full file: %v", err)
		}
	}
	if err := table.Put(t.Context(), large, metadata.IfAbsent()); err != nil {
		t.Fatalf("Put after room was made: %v", err)
	}
}

func TestNoSpace(t *testing.T) {
	for _, test := range []struct {
		err  error
		want bool
	}{
		{berrors.ErrMaxSizeReached, true},
		{&fs.PathError{Op: "write", Err: syscall.ENOSPC}, true},
		{&fs.PathError{Op: "write", Err: syscall.EDQUOT}, true},
		{&fs.PathError{Op: "write", Err: syscall.EFBIG}, true},
		{&fs.PathError{Op: "write", Err: syscall.EIO}, false},
		{syscall.ENOSPC, false}, // of an fsync
		{syscall.EIO, false},
	} {
		if got := noSpace(fmt.Errorf("commit: %w", test.err)); got != test.want {
			t.Errorf("noSpace(%v) = %v, want %v", test.err, got, test.want)
		}
	}
}

// TestGivenUp checks what a caller learns who leaves before and after the writer took
// the write.
func TestGivenUp(t *testing.T) {
	table := openTable(t, Options{})
	tx, err := table.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	taken := &request{key: testRow("taken", 1).Key, answer: make(chan error, 1)}
	taken.stored, taken.value = storedKey(taken.key), encodeRow(storedKey(taken.key), testRow("taken", 1))
	table.requests <- taken // now the writer waits for our transaction to end
	errs := make(chan error)
	go func() { errs <- table.Put(ctx, testRow("waiting", 1), metadata.IfAbsent()) }()
	cancel()
	if err := <-errs; !errors.Is(err, metadata.ErrUnavailable) || !errors.Is(err, context.Canceled) {
		t.Fatalf("Put given up before it was taken: %v", err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	if err := <-taken.answer; err != nil {
		t.Fatal(err)
	}
	if _, err := table.Get(t.Context(), testRow("waiting", 1).Key, metadata.Strong); !errors.Is(err, metadata.ErrNotFound) {
		t.Fatalf("Get of the row that was given up: %v", err)
	}
}

func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "table.db")
	table, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	const writers = 20
	written := make([]int, writers)
	firsts := make(chan struct{}, writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				err := table.Put(t.Context(), testRow(fmt.Sprint(w, "/", i), 1), metadata.IfAbsent())
				if errors.Is(err, metadata.ErrUnavailable) {
					return
				}
				if err != nil {
					t.Errorf("Put while the table closes: %v", err)
					return
				}
				if written[w]++; i == 0 {
					firsts <- struct{}{}
				}
			}
		})
	}
	for range writers {
		<-firsts
	}
	for range 2 {
		if err := table.Close(); err != nil {
			t.Fatal(err)
		}
	}
	wg.Wait()
	if _, err := table.Get(t.Context(), testRow("0/0", 1).Key, metadata.Strong); !errors.Is(err, metadata.ErrUnavailable) {
		t.Fatalf("Get of a closed table: %v", err)
	}
	again, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	for w, n := range written {
		for i := range n {
			if _, err := again.Get(t.Context(), testRow(fmt.Sprint(w, "/", i), 1).Key, metadata.Strong); err != nil {
				t.Fatalf("a row that was written is gone: %v", err)
			}
		}
	}
}

// TestRowFormat pins the stored form: what is written today must be read for ever.
func TestRowFormat(t *testing.T) {
	r := metadata.Row{
		Key:   metadata.Key{Partition: "pp", Sort: "s"},
		Stamp: metadata.Stamp{Epoch: 1, Sequence: 0x0203},
		Nonce: 0x0a0b0c0d0e0f1011,
		Value: []byte("value"),
	}
	key := storedKey(r.Key)
	if got, want := hex.EncodeToString(key), "0002"+"7070"+"73"; got != want {
		t.Errorf("key %s, want %s", got, want)
	}
	b := encodeRow(key, r)
	if got, want := hex.EncodeToString(b), "01"+"3e0a092d"+"0000000000000001"+"0000000000000203"+"0a0b0c0d0e0f1011"+"76616c7565"; got != want {
		t.Errorf("row %s, want %s", got, want)
	}
	for i := range b {
		spoiled := append([]byte(nil), b...)
		spoiled[i] ^= 1
		if _, err := decodeRow(r.Key, key, spoiled); !errors.Is(err, metadata.ErrCorrupt) {
			t.Errorf("byte %d spoiled: %v", i, err)
		}
		if _, err := decodeRow(r.Key, key, b[:i]); !errors.Is(err, metadata.ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", i, err)
		}
	}
}
