// Package storetest holds the suite that every [segments.Store] passes, and wrappers
// that make a store fail as real ones do.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
)

// Run checks what the contract of [segments.Store] promises. Each call of open gives
// an empty store.
func Run(t *testing.T, open func(t *testing.T) segments.Store) {
	tests := []struct {
		name string
		run  func(*testing.T, segments.Store)
	}{
		{"OneWinner", oneWinner},
		{"PutTwice", putTwice},
		{"Ranges", ranges},
		{"EmptyObject", emptyObject},
		{"Missing", missing},
		{"Delete", deletes},
		{"List", list},
		{"ListOrder", listOrder},
		{"CancelledPut", cancelledPut},
		{"EndedContext", endedContext},
		{"LargeBody", largeBody},
		{"Keys", keys},
		{"BadKeys", badKeys},
		{"Concurrent", concurrent},
		{"ResultIsOwned", resultIsOwned},
		{"Probe", probe},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

func oneWinner(t *testing.T, store segments.Store) {
	const racers = 16
	for round := range 3 {
		key := fmt.Sprintf("race/%d", round)
		errs := make([]error, racers)
		var start, done sync.WaitGroup
		start.Add(1)
		for i := range racers {
			done.Go(func() {
				start.Wait()
				errs[i] = putUntilKnown(t.Context(), store, key, fmt.Sprintf("racer %02d", i))
			})
		}
		start.Done()
		done.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("%s: racers %d and %d both won", key, winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, segments.ErrExists):
				t.Errorf("%s: racer %d: %v, want ErrExists", key, i, err)
			}
		}
		wantBytes(t, store, key, fmt.Sprintf("racer %02d", winner))
	}
}

// putUntilKnown repeats a put that the store could not decide (S3 answers 409 to a
// racing one). No such answer may have taken effect.
func putUntilKnown(ctx context.Context, store segments.Store, key, text string) error {
	for {
		if err := put(ctx, store, key, text); !errors.Is(err, segments.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
	}
}

func putTwice(t *testing.T, store segments.Store) {
	mustPut(t, store, "twice", "first")
	wantErr(t, put(t.Context(), store, "twice", "second, longer"), segments.ErrExists)
	wantErr(t, put(t.Context(), store, "twice", "first"), segments.ErrExists)
	wantBytes(t, store, "twice", "first")
}

func ranges(t *testing.T, store segments.Store) {
	const text = "0123456789"
	mustPut(t, store, "range", "01", "", "2345", "6789")
	tests := []struct {
		name           string
		offset, length int64
		want           string
	}{
		{"all", 0, -1, text},
		{"exactly all", 0, 10, text},
		{"middle", 3, 4, "3456"},
		{"first", 0, 1, "0"},
		{"to the end", 7, -1, "789"},
		{"last", 9, 1, "9"},
		{"past the end", 8, 100, "89"},
		{"far past the end", 8, math.MaxInt64, "89"},
		{"from the end", -4, 0, "6789"},
		{"from the end, length ignored", -4, 2, "6789"},
		{"from the end, all", -10, -1, text},
		{"from before the start", -11, 0, text},
		{"from far before the start", math.MinInt64, 0, text},
		{"nothing", 4, 0, ""},
		{"nothing of the first", 0, 0, ""},
		{"at the end", 10, 5, ""},
		{"nothing at the end", 10, 0, ""},
		{"at the end, to the end", 10, -1, ""},
		{"beyond the end", 11, 1, ""},
		{"far beyond the end", math.MaxInt64, math.MaxInt64, ""},
	}
	for _, test := range tests {
		data, size, err := store.Get(t.Context(), "range", test.offset, test.length)
		if err != nil || string(data) != test.want || size != int64(len(text)) {
			t.Errorf("%s: Get(%d, %d) = %q, size %d, %v; want %q, size %d",
				test.name, test.offset, test.length, data, size, err, test.want, len(text))
		}
		if test.offset < 0 || test.offset > 1<<30 || test.length < 0 || test.length > 1<<20 {
			continue
		}
		into := make([]byte, test.length)
		if n, err := segments.GetInto(t.Context(), store, "range", into, test.offset); err != nil || string(into[:n]) != test.want {
			t.Errorf("%s: GetInto(%d, %d) = %q, %v; want %q", test.name, test.offset, test.length, into[:n], err, test.want)
		}
		scattered := make([]byte, test.length)
		pieces := slices.Collect(slices.Chunk(scattered, 3))
		if n, err := segments.GetScattered(t.Context(), store, "range", pieces, test.offset); err != nil || string(scattered[:n]) != test.want {
			t.Errorf("%s: GetScattered(%d, %d) = %q, %v; want %q", test.name, test.offset, test.length, scattered[:n], err, test.want)
		}
	}
	if _, err := segments.GetInto(t.Context(), store, "absent", make([]byte, 1), 0); !errors.Is(err, segments.ErrNotFound) {
		t.Errorf("GetInto of an absent object: %v", err)
	}
}

func emptyObject(t *testing.T, store segments.Store) {
	mustPut(t, store, "empty")
	for _, r := range [][2]int64{{0, -1}, {0, 0}, {0, 5}, {-5, 0}, {3, 1}, {3, -1}} {
		data, size, err := store.Get(t.Context(), "empty", r[0], r[1])
		if err != nil || len(data) != 0 || size != 0 {
			t.Errorf("Get(%d, %d) = %q, size %d, %v; want nothing of nothing", r[0], r[1], data, size, err)
		}
	}
	wantErr(t, put(t.Context(), store, "empty", "more"), segments.ErrExists)
}

func missing(t *testing.T, store segments.Store) {
	mustPut(t, store, "there/is/one", "x")
	for _, key := range []string{"absent", "there/is/two", "there/was/one", "there/is", "there"} {
		for _, offset := range []int64{0, -5, 5} {
			_, _, err := store.Get(t.Context(), key, offset, -1)
			wantErr(t, err, segments.ErrNotFound)
		}
	}
}

func deletes(t *testing.T, store segments.Store) {
	for _, key := range []string{"absent", "no/such/folder/absent"} {
		if err := store.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete(%s), which is absent: %v", key, err)
		}
	}
	mustPut(t, store, "folder/one", "1")
	mustPut(t, store, "folder/two", "2")
	// A folder is no object.
	if err := store.Delete(t.Context(), "folder"); err != nil {
		t.Errorf("Delete(folder): %v", err)
	}
	for range 2 {
		if err := store.Delete(t.Context(), "folder/one"); err != nil {
			t.Errorf("Delete: %v", err)
		}
		_, _, err := store.Get(t.Context(), "folder/one", 0, -1)
		wantErr(t, err, segments.ErrNotFound)
	}
	wantBytes(t, store, "folder/two", "2")
	if got := listAll(t, store, "", 10); !slices.Equal(got, []string{"folder/two"}) {
		t.Errorf("after Delete, List = %q", got)
	}
}

func list(t *testing.T, store segments.Store) {
	if got := listAll(t, store, "", 10); len(got) != 0 {
		t.Errorf("List of an empty store = %q", got)
	}
	var all []string
	for i := range 7 {
		all = append(all, fmt.Sprintf("list/a/%03d.seg", i))
	}
	all = append(all, "list/b/000.seg", "other")
	for i, key := range all {
		mustPut(t, store, key, strings.Repeat("x", i))
	}
	for _, limit := range []int{1, 2, 3, 9, 1000} {
		if diff := cmp.Diff(all, listAll(t, store, "", limit)); diff != "" {
			t.Errorf("pages of %d: %s", limit, diff)
		}
	}
	tests := []struct {
		prefix, after string
		limit         int
		want          []string
	}{
		{"list/", "", 3, all[:3]},
		{"list/a/", "", 1000, all[:7]},
		{"list/a/", "list/a/002.seg", 2, all[3:5]},
		{"list/a/00", "list/a/004.seg", 1000, all[5:7]},
		{"list/", "list/a/0025", 1000, all[3:8]}, // after needs not exist
		{"list/", "a", 1, all[:1]},
		{"list/", "list/b/000.seg", 10, nil},
		{"list/", "zzz", 10, nil},
		{"list/a/003.seg", "", 10, all[3:4]},
		{"list/a", "", 10, all[:7]},
		{"nothing/", "", 10, nil},
		{"o", "", 10, all[8:]},
	}
	for _, test := range tests {
		var want []segments.ObjectInfo
		for _, key := range test.want {
			want = append(want, segments.ObjectInfo{Key: key, Size: int64(slices.Index(all, key))})
		}
		got, err := store.List(t.Context(), test.prefix, test.after, test.limit)
		if err != nil || len(got) != len(want) || !slices.Equal(got, want) {
			t.Errorf("List(%q, after %q, %d) = %v, %v; want %v", test.prefix, test.after, test.limit, got, err, want)
		}
	}
}

// listOrder has keys whose order depends on where the slash sorts.
func listOrder(t *testing.T, store segments.Store) {
	all := []string{"A/x", "a-b", "a-b0/x", "a.b", "a.b0/x", "a/b", "a/b-c", "a/c/d", "a0", "a_/x", "aa"}
	for _, key := range slices.Backward(all) {
		mustPut(t, store, key, "x")
	}
	for _, limit := range []int{1, 2, 100} {
		if diff := cmp.Diff(all, listAll(t, store, "", limit)); diff != "" {
			t.Errorf("pages of %d: %s", limit, diff)
		}
	}
}

// cancelledPut cancels while the body is read, which every backend must do.
func cancelledPut(t *testing.T, store segments.Store) {
	const size = 8 << 20
	whole := bytes.Repeat([]byte("v"), size)
	for i := range 4 {
		key := fmt.Sprintf("cancelled/%d", i)
		ctx, cancel := context.WithCancel(t.Context())
		body := &cancelling{Body: segments.NewBody(whole), cancel: cancel}
		if i > 0 { // while it is sent
			body.cancel = func() { go cancel() }
		}
		err := store.Put(ctx, key, body)
		cancel()
		if err != nil && !(errors.Is(err, segments.ErrUnavailable) && errors.Is(err, context.Canceled)) {
			t.Errorf("cancelled Put: %v, want context.Canceled and ErrUnavailable", err)
		}
		data, _, getErr := store.Get(t.Context(), key, 0, -1)
		absent := errors.Is(getErr, segments.ErrNotFound)
		if !absent && !bytes.Equal(data, whole) {
			t.Errorf("after a cancelled Put: %d bytes, %v; want all or nothing", len(data), getErr)
		}
		if err == nil && absent {
			t.Error("Put succeeded, and the object is absent")
		}
	}
}

// cancelling is a body that cancels its own write once somebody asks for its bytes.
type cancelling struct {
	segments.Body
	cancel func()
}

func (c *cancelling) Slices() [][]byte {
	c.cancel()
	return c.Body.Slices()
}

func endedContext(t *testing.T, store segments.Store) {
	mustPut(t, store, "there", "x")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithTimeout(t.Context(), -1)
	defer cancel()
	for _, ctx := range []context.Context{cancelled, expired} {
		_, _, getErr := store.Get(ctx, "there", 0, -1)
		_, listErr := store.List(ctx, "", "", 1)
		for op, err := range map[string]error{
			"Put": put(ctx, store, "new", "x"), "Get": getErr, "Delete": store.Delete(ctx, "there"), "List": listErr,
		} {
			if !errors.Is(err, segments.ErrUnavailable) || !errors.Is(err, ctx.Err()) {
				t.Errorf("%s: %v, want %v and ErrUnavailable", op, err, ctx.Err())
			}
		}
	}
	if got := listAll(t, store, "", 10); !slices.Equal(got, []string{"there"}) {
		t.Errorf("calls with an ended context changed the store: %q", got)
	}
}

func largeBody(t *testing.T, store segments.Store) {
	const size = 20 << 20
	whole := make([]byte, size)
	for i := range whole {
		whole[i] = byte(i ^ i>>8 ^ i>>16)
	}
	// Slices of all lengths: many tiny ones, empty ones, one of several megabytes.
	var parts [][]byte
	for rest, n := whole, 0; len(rest) > 0; n = (n*7 + 1) % 5003 {
		if len(parts) == 3000 {
			n = 9 << 20
		}
		n = min(n, len(rest))
		parts = append(parts, rest[:n])
		rest = rest[n:]
	}
	if err := store.Put(t.Context(), "large", segments.NewBody(parts...)); err != nil {
		t.Fatalf("Put of %d slices: %v", len(parts), err)
	}
	data, total, err := store.Get(t.Context(), "large", 0, -1)
	if err != nil || total != size || !bytes.Equal(data, whole) {
		t.Fatalf("Get: %d bytes of %d, %v; want the %d that were put", len(data), total, err, size)
	}
	data, _, err = store.Get(t.Context(), "large", 5<<20+1, 1<<20)
	if err != nil || !bytes.Equal(data, whole[5<<20+1:][:1<<20]) {
		t.Errorf("Get of the middle: %d bytes, %v", len(data), err)
	}
	data, _, err = store.Get(t.Context(), "large", -64<<10, 0)
	if err != nil || !bytes.Equal(data, whole[size-64<<10:]) {
		t.Errorf("Get of the end: %d bytes, %v", len(data), err)
	}
}

func keys(t *testing.T, store segments.Store) {
	for _, key := range []string{
		"a", "-", "_", "...", ".hidden", "a..b", "-rf", "..a/b..", "0", "CON", "a/.b/-c/_d",
		"index.html", "x.seg", "x.seg.tmp", strings.Repeat("n", 255),
		strings.Repeat("d", 255) + "/" + strings.Repeat("e", 255) + "/" + strings.Repeat("f", 255),
	} {
		mustPut(t, store, key, key)
		wantBytes(t, store, key, key)
		if got, err := store.List(t.Context(), key, "", 1); err != nil || len(got) != 1 || got[0].Key != key {
			t.Errorf("List(%.40q) = %v, %v", key, got, err)
		}
		if err := store.Delete(t.Context(), key); err != nil {
			t.Errorf("Delete(%.40q): %v", key, err)
		}
	}
}

func badKeys(t *testing.T, store segments.Store) {
	for _, key := range []string{
		"", "/", "/etc/passwd", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", "a b", "a\x00b", "a\nb", "ä", `a\b`,
		"~tmp/put", "a?b", "a%2fb", "a:b", strings.Repeat("n", 256), strings.Repeat("a/", 400) + "a",
	} {
		if put(t.Context(), store, key, "x") == nil {
			t.Errorf("Put(%.40q) succeeded", key)
		}
		if _, _, err := store.Get(t.Context(), key, 0, -1); err == nil {
			t.Errorf("Get(%.40q) succeeded", key)
		}
		if store.Delete(t.Context(), key) == nil {
			t.Errorf("Delete(%.40q) succeeded", key)
		}
	}
}

// concurrent lets writers, readers and deleters at the same few keys: a reader sees
// a whole object or none.
func concurrent(t *testing.T, store segments.Store) {
	const rounds, objects = 30, 4
	text := func(i int) string { return strings.Repeat(fmt.Sprintf("object %d;", i), 1000) }
	var workers sync.WaitGroup
	for worker := range 9 {
		workers.Go(func() {
			for round := range rounds {
				i := (worker/3 + round) % objects
				key := fmt.Sprintf("busy/%d", i)
				var err error
				switch worker % 3 {
				case 0:
					if err = putUntilKnown(t.Context(), store, key, text(i)); errors.Is(err, segments.ErrExists) {
						err = nil
					}
				case 1:
					err = store.Delete(t.Context(), key)
				case 2:
					var data []byte
					if data, _, err = store.Get(t.Context(), key, 0, -1); errors.Is(err, segments.ErrNotFound) {
						err = nil
					} else if err == nil && string(data) != text(i) {
						t.Errorf("Get(%s): %d bytes that nobody wrote", key, len(data))
					}
				}
				if err != nil {
					t.Errorf("worker %d: %v", worker, err)
				}
			}
		})
	}
	workers.Wait()
}

func resultIsOwned(t *testing.T, store segments.Store) {
	source := []byte("source")
	if err := store.Put(t.Context(), "owned", segments.NewBody(source)); err != nil {
		t.Fatal(err)
	}
	copy(source, "XXXXXX")
	data, _, err := store.Get(t.Context(), "owned", 0, -1)
	if err != nil || string(data) != "source" {
		t.Fatalf("Get = %q, %v", data, err)
	}
	copy(data, "YYYYYY")
	wantBytes(t, store, "owned", "source")
}

func probe(t *testing.T, store segments.Store) {
	if err := segments.Probe(t.Context(), store, "cluster/probe"); err != nil {
		t.Error(err)
	}
	if left := listAll(t, store, "", 10); len(left) > 0 {
		t.Errorf("the probe left %q", left)
	}
}

func put(ctx context.Context, store segments.Store, key string, parts ...string) error {
	slices := make([][]byte, len(parts))
	for i, part := range parts {
		slices[i] = []byte(part)
	}
	return store.Put(ctx, key, segments.NewBody(slices...))
}

func mustPut(t *testing.T, store segments.Store, key string, parts ...string) {
	t.Helper()
	if err := put(t.Context(), store, key, parts...); err != nil {
		t.Fatalf("Put(%.40q): %v", key, err)
	}
}

func wantBytes(t *testing.T, store segments.Store, key, want string) {
	t.Helper()
	data, size, err := store.Get(t.Context(), key, 0, -1)
	if err != nil || string(data) != want || size != int64(len(want)) {
		t.Errorf("Get(%.40q) = %.80q, size %d, %v; want %.80q", key, data, size, err, want)
	}
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
	for _, other := range []error{
		segments.ErrNotFound, segments.ErrExists, segments.ErrUnavailable,
		segments.ErrDenied, segments.ErrNoBucket, segments.ErrCorrupt,
	} {
		if other != want && errors.Is(err, other) {
			t.Errorf("%v is also %v", err, other)
		}
	}
}

// listAll reads all pages and checks that none is longer than the limit.
func listAll(t *testing.T, store segments.Store, prefix string, limit int) []string {
	t.Helper()
	var keys []string
	for after := ""; ; after = keys[len(keys)-1] {
		page, err := store.List(t.Context(), prefix, after, limit)
		if err != nil || len(page) > limit {
			t.Fatalf("List(%q, after %q, %d): %d objects, %v", prefix, after, limit, len(page), err)
		}
		if len(page) == 0 {
			return keys
		}
		for _, object := range page {
			keys = append(keys, object.Key)
		}
	}
}
