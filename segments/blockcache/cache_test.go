package blockcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

const testBlock = 64

// fetchFrom reads a store.
func fetchFrom(store segments.Store) Fetch {
	return func(ctx context.Context, r Request) (int, error) {
		return segments.GetScattered(ctx, store, r.Object, r.Into, r.Offset)
	}
}

// objects are of lengths around those of blocks.
func objects(t testing.TB, store segments.Store) map[string][]byte {
	all := make(map[string][]byte)
	for _, size := range []int{1, testBlock - 1, testBlock, testBlock + 1, 3 * testBlock, 5*testBlock + 7, 20 * testBlock} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		key := fmt.Sprint("object-", size)
		all[key] = data
		if err := store.Put(t.Context(), key, segments.NewBody(data)); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// expected is what a read of an object should give.
func expected(data []byte, offset int64, length int) []byte {
	start, n := segments.ResolveRange(offset, int64(length), int64(len(data)))
	return data[start : start+n]
}

// references counts those of everything that is kept, which nobody should have beside the cache.
func (c *Cache) loose() int {
	loose := 0
	for _, b := range c.recent.list {
		if b.refers.Load() != 1 {
			loose++
		}
	}
	for b := range c.kept.Values() {
		if b.refers.Load() != 1 {
			loose++
		}
	}
	return loose + len(c.flights)
}

// TestAgainstPlainStore reads random ranges, many at a time, from a store of which some calls fail: each read gives what the
// store has, or an error; afterwards nothing is held, and the limit holds.
func TestAgainstPlainStore(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		store := memstore.New()
		all := objects(t, store)
		names := make([]string, 0, len(all))
		for name := range all {
			names = append(names, name)
		}
		limit := rapid.SampledFrom([]int64{1, 3 * (testBlock + entryBytes), 12 * (testBlock + entryBytes), 1 << 20}).Draw(rt, "limit")
		failing := rapid.SampledFrom([]uint32{0, 5}).Draw(rt, "failing")
		failed := errors.New("failed")
		var fetched atomic.Int64
		plain := fetchFrom(store)
		c := New(Config{Bytes: limit, BlockBytes: testBlock, FetchBytes: 4 * testBlock}, func(ctx context.Context, r Request) (int, error) {
			fetched.Add(1)
			if failing > 0 && rand.Uint32N(failing) == 0 {
				_, _ = plain(ctx, r)
				for _, b := range r.Into { // whatever it wrote does not count
					clear(b)
				}
				return 0, failed
			}
			return plain(ctx, r)
		})
		seeds := rapid.SliceOfN(rapid.Uint64(), 1, 8).Draw(rt, "readers")
		var group sync.WaitGroup
		for _, seed := range seeds {
			group.Go(func() {
				random := rand.New(rand.NewPCG(seed, 1))
				for range 200 {
					name := names[random.IntN(len(names))]
					data := all[name]
					offset, length := random.Int64N(int64(len(data))+testBlock), random.IntN(6*testBlock)
					if random.IntN(2) == 0 {
						length = random.IntN(testBlock / smallest)
					}
					into := bytes.Repeat([]byte{0xee}, length)
					n, err := c.Read(t.Context(), name, into, offset, random.IntN(2) == 0)
					switch {
					case errors.Is(err, failed):
					case err != nil:
						t.Error(err)
					case !bytes.Equal(into[:n], expected(data, offset, length)):
						t.Errorf("%s from %d, %d bytes: %x, want %x", name, offset, length, into[:n], expected(data, offset, length))
					}
				}
			})
		}
		group.Wait()
		c.Wait()
		if n := c.loose(); n != 0 {
			rt.Errorf("%d blocks or flights are held by nobody", n)
		}
		if kept := c.Kept(); kept > limit {
			rt.Errorf("%d bytes are kept, the limit is %d", kept, limit)
		}
		if failing == 0 && uint64(fetched.Load()) != c.Counts().Fetches.Load() {
			rt.Errorf("%d fetches, it counts %d", fetched.Load(), c.Counts().Fetches.Load())
		}
		c.Clear()
		if kept := c.Kept(); kept != 0 {
			rt.Errorf("%d bytes are kept by an empty cache", kept)
		}
	})
}

// gate holds fetches up until it is opened.
type gate struct {
	fetch  Fetch
	open   chan struct{}
	begun  atomic.Int64
	ended  atomic.Int64
	bytes  atomic.Int64
	refuse atomic.Bool
}

func (g *gate) do(ctx context.Context, r Request) (int, error) {
	g.begun.Add(1)
	defer g.ended.Add(1)
	g.bytes.Add(r.Bytes())
	select {
	case <-g.open:
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if g.refuse.Load() {
		return 0, segments.ErrUnavailable
	}
	return g.fetch(ctx, r)
}

func newGate(t testing.TB) (*gate, []byte) {
	store := memstore.New()
	data := make([]byte, 16*testBlock)
	for i := range data {
		data[i] = byte(i * 7)
	}
	if err := store.Put(t.Context(), "o", segments.NewBody(data)); err != nil {
		t.Fatal(err)
	}
	return &gate{fetch: fetchFrom(store), open: make(chan struct{})}, data
}

func newTestCache(g *gate) *Cache {
	return New(Config{Bytes: 1 << 20, BlockBytes: testBlock, FetchBytes: 4 * testBlock}, g.do)
}

// TestOneFetch has a hundred readers of one range: one fetch, and no more for those who come later.
func TestOneFetch(t *testing.T) {
	for _, length := range []int{2, 3 * testBlock} { // a piece of a block; a range that spans blocks
		synctest.Test(t, func(t *testing.T) {
			g, data := newGate(t)
			c := newTestCache(g)
			read := func() {
				into := make([]byte, length)
				if n, err := c.Read(t.Context(), "o", into, testBlock, false); err != nil || !bytes.Equal(into[:n], data[testBlock:testBlock+length]) {
					t.Errorf("%x, %v", into[:n], err)
				}
			}
			var group sync.WaitGroup
			for range 100 {
				group.Go(read)
			}
			synctest.Wait()
			close(g.open)
			group.Wait()
			read()
			if n, bytes := g.begun.Load(), g.bytes.Load(); n != 1 || bytes != int64(length) {
				t.Errorf("%d fetches of %d bytes", n, bytes)
			}
		})
	}
}

// TestSecondPiece: a small piece is fetched alone, and with the next one of its block comes all of it.
func TestSecondPiece(t *testing.T) {
	g, _ := newGate(t)
	close(g.open)
	c := newTestCache(g)
	for i, want := range []int64{3, 3, 3 + testBlock, 3 + testBlock, 3 + testBlock} {
		into := make([]byte, 3)
		if _, err := c.Read(t.Context(), "o", into, []int64{0, 0, 20, 40, 50}[i], false); err != nil {
			t.Fatal(err)
		}
		if got := g.bytes.Load(); got != want {
			t.Errorf("read %d: %d bytes were fetched, want %d", i, got, want)
		}
	}
}

// TestFetchBound: neighbouring blocks come with one fetch, up to a limit.
func TestFetchBound(t *testing.T) {
	g, _ := newGate(t)
	close(g.open)
	c := newTestCache(g)
	if _, err := c.Read(t.Context(), "o", make([]byte, 10*testBlock), testBlock, false); err != nil {
		t.Fatal(err)
	}
	if n := g.begun.Load(); n != 3 {
		t.Errorf("%d fetches of 10 blocks, 4 at a time", n)
	}
}

// TestLeaving: who leaves does not end the fetch for others; the last one does, and who comes then begins another.
func TestLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, data := newGate(t)
		c := newTestCache(g)
		first, leaveFirst := context.WithCancel(t.Context())
		second, leaveSecond := context.WithCancel(t.Context())
		defer leaveSecond()
		ended := make(chan error, 2)
		for _, ctx := range []context.Context{first, second} {
			go func() {
				_, err := c.Read(ctx, "o", make([]byte, testBlock), 0, false)
				ended <- err
			}()
			synctest.Wait()
		}
		leaveFirst()
		if err := <-ended; !errors.Is(err, context.Canceled) || !errors.Is(err, segments.ErrUnavailable) {
			t.Errorf("who left got %v", err)
		}
		synctest.Wait()
		if n := g.ended.Load(); n != 0 {
			t.Fatal("the fetch ended with the first reader")
		}
		leaveSecond()
		<-ended
		synctest.Wait()
		if n := g.ended.Load(); n != 1 {
			t.Fatal("the fetch goes on although nobody waits")
		}
		close(g.open)
		into := make([]byte, testBlock)
		if n, err := c.Read(t.Context(), "o", into, 0, false); err != nil || !bytes.Equal(into[:n], data[:testBlock]) {
			t.Errorf("%x, %v", into[:n], err)
		}
		if c.loose() != 0 {
			t.Error("something is held by nobody")
		}
	})
}

// TestFailureIsNotKept: all who wait are told, the next one fetches again.
func TestFailureIsNotKept(t *testing.T) {
	g, _ := newGate(t)
	close(g.open)
	c := newTestCache(g)
	g.refuse.Store(true)
	for range 2 {
		if _, err := c.Read(t.Context(), "o", make([]byte, testBlock), 0, false); !errors.Is(err, segments.ErrUnavailable) {
			t.Error(err)
		}
	}
	if _, err := c.Read(t.Context(), "absent", make([]byte, testBlock), 0, false); !errors.Is(err, segments.ErrUnavailable) {
		t.Error(err)
	}
	g.refuse.Store(false)
	if n, err := c.Read(t.Context(), "o", make([]byte, testBlock), 0, false); err != nil || n != testBlock {
		t.Error(n, err)
	}
	if _, err := c.Read(t.Context(), "absent", make([]byte, 1), 0, false); !errors.Is(err, segments.ErrNotFound) {
		t.Error(err)
	}
}

// TestHurry: who hurries and joins a fetch has it hurry.
func TestHurry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := newGate(t)
		close(g.open)
		left := 0
		c := New(Config{Bytes: 1 << 20, BlockBytes: testBlock, Enter: func(ctx context.Context, bytes int64, hurry <-chan struct{}) (func(), error) {
			select {
			case <-hurry:
				return func() { left += int(bytes) }, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}, g.do)
		var group sync.WaitGroup
		for _, hurry := range []bool{false, true} {
			group.Go(func() { _, _ = c.Read(t.Context(), "o", make([]byte, testBlock), 0, hurry) })
			synctest.Wait()
			if got := g.ended.Load() == 1; got != hurry {
				t.Errorf("hurry %v: %v", hurry, got)
			}
		}
		group.Wait()
		c.Wait()
		if left != testBlock {
			t.Errorf("fetches of %d bytes have ended", left)
		}
		ctx, cancel := context.WithCancel(t.Context())
		group.Go(func() {
			if _, err := c.Read(ctx, "o", make([]byte, testBlock), testBlock, false); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		synctest.Wait()
		cancel()
		group.Wait()
		c.Wait()
		if c.loose() != 0 || left != testBlock {
			t.Error("a fetch that could not begin holds something")
		}
	})
}

// TestPrepare: what was prepared is not fetched again.
func TestPrepare(t *testing.T) {
	g, data := newGate(t)
	close(g.open)
	c := newTestCache(g)
	if err := c.Prepare(t.Context(), "o", testBlock/2, 3*testBlock); err != nil {
		t.Fatal(err)
	}
	into := make([]byte, 4*testBlock)
	if n, err := c.Read(t.Context(), "o", into, 0, false); err != nil || !bytes.Equal(into[:n], data[:4*testBlock]) || g.begun.Load() != 1 {
		t.Errorf("%v, %d fetches", err, g.begun.Load())
	}
}

// TestMemoryIsUsedAgain: readers never see another block's bytes while blocks come and go.
func TestMemoryIsUsedAgain(t *testing.T) {
	var group sync.WaitGroup
	c := New(Config{Bytes: 4 * (testBlock + entryBytes), BlockBytes: testBlock}, func(_ context.Context, r Request) (int, error) {
		for i, b := range r.Into {
			for j := range b {
				b[j] = byte(r.Offset/testBlock) + byte(i)
			}
		}
		return int(r.Bytes()), nil
	})
	until := time.Now().Add(200 * time.Millisecond)
	for seed := range uint64(8) {
		group.Go(func() {
			random := rand.New(rand.NewPCG(seed, 2))
			into := make([]byte, testBlock)
			for time.Now().Before(until) {
				block := random.Int64N(32)
				if n, err := c.Read(t.Context(), "o", into, block*testBlock, false); err != nil || n != testBlock || bytes.Count(into, []byte{byte(block)}) != testBlock {
					t.Errorf("block %d: %x, %v", block, into, err)
					return
				}
			}
		})
	}
	group.Wait()
}

// TestForget: what is forgotten is fetched again, whatever it was kept as.
func TestForget(t *testing.T) {
	for _, length := range []int{3, testBlock + 1} {
		g, _ := newGate(t)
		close(g.open)
		c := newTestCache(g)
		for i, want := range []int64{1, 1, 2} {
			if i == 2 {
				c.Forget("o", testBlock-1, length)
			}
			if _, err := c.Read(t.Context(), "o", make([]byte, length), testBlock-1, false); err != nil {
				t.Fatal(err)
			}
			if got := g.begun.Load(); got < want || got > 2*want {
				t.Errorf("%d bytes, read %d: %d fetches", length, i, got)
			}
		}
	}
}

// TestForgottenPlaces: a damaged block that is read, and forgotten, time and again leaves nothing behind.
func TestForgottenPlaces(t *testing.T) {
	g, _ := newGate(t)
	close(g.open)
	c := newTestCache(g)
	for range 100 {
		for block := range int64(3) {
			if _, err := c.Read(t.Context(), "o", make([]byte, testBlock), block*testBlock, false); err != nil {
				t.Fatal(err)
			}
		}
		c.Forget("o", testBlock, 1)
	}
	if list, order := len(c.recent.list), len(c.recent.order); order != list {
		t.Errorf("%d places are remembered of %d blocks", order, list)
	}
}

// TestScan reads a long object once, beside blocks that are read again and again: most of those stay, and what was prepared
// is there when it is read, however little of the whole fits.
func TestScan(t *testing.T) {
	const bytes, often = 256 * (testBlock + entryBytes), 100
	var once, again atomic.Int64
	c := New(Config{Bytes: bytes, BlockBytes: testBlock, FetchBytes: 4 * testBlock}, func(_ context.Context, r Request) (int, error) {
		if r.Object == "once" {
			once.Add(r.Bytes() / testBlock)
		} else {
			again.Add(r.Bytes() / testBlock)
		}
		return int(r.Bytes()), nil
	})
	read := func(object string, block int) {
		// Blocks are read in two parts, as messages do that end within one.
		for _, at := range []int{0, testBlock / 2} {
			if _, err := c.Read(t.Context(), object, make([]byte, testBlock/2), int64(block*testBlock+at), false); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := range 5 * often {
		read("often", n%often)
	}
	again.Store(0)
	const scanned = 5000
	for n := range scanned {
		if n%2 == 0 {
			if err := c.Prepare(t.Context(), "once", int64(n*testBlock), 2*testBlock); err != nil {
				t.Fatal(err)
			}
		}
		read("once", n)
		read("often", n%often)
	}
	if n := once.Load(); n != scanned {
		t.Errorf("%d blocks were fetched for %d", n, scanned)
	}
	if n := again.Load(); n > scanned/20 {
		t.Errorf("blocks that are read often were fetched %d times in %d reads", n, scanned)
	}
}

// TestPopular: when half of what one fetch can bring is there, the next miss brings the rest, up to the object's end.
func TestPopular(t *testing.T) {
	g, _ := newGate(t)
	close(g.open)
	c := newTestCache(g)
	for i, want := range []int64{1, 2, 4, 4, 5, 7, 8} {
		block := []int64{0, 1, 2, 3, 4, 6, 5}[i] // of fetches of four
		if i == 5 {                              // two at once are no reason for a third
			if _, err := c.Read(t.Context(), "o", make([]byte, 2*testBlock), block*testBlock, false); err != nil {
				t.Fatal(err)
			}
		} else if _, err := c.Read(t.Context(), "o", make([]byte, testBlock), block*testBlock, false); err != nil {
			t.Fatal(err)
		}
		if got := g.bytes.Load() / testBlock; got != want {
			t.Errorf("block %d: %d were fetched, want %d", block, got, want)
		}
	}
}

// TestPrepareBeyondEnd: what lies past an object's end is asked for once.
func TestPrepareBeyondEnd(t *testing.T) {
	g, data := newGate(t)
	close(g.open)
	c := newTestCache(g)
	for range 3 {
		if err := c.Prepare(t.Context(), "o", int64(len(data))-2*testBlock, 3*testBlock); err != nil {
			t.Fatal(err)
		}
	}
	if n := g.begun.Load(); n != 2 { // a fetch ends at a multiple of what it may bring
		t.Errorf("%d fetches", n)
	}
	into := make([]byte, 4*testBlock)
	if n, err := c.Read(t.Context(), "o", into, int64(len(data))-2*testBlock, false); err != nil || !bytes.Equal(into[:n], data[len(data)-2*testBlock:]) {
		t.Errorf("%d bytes, %v", n, err)
	}
}
