package blockcache

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
)

const (
	// DefaultBlockBytes is the size of a block.
	DefaultBlockBytes = 2 << 20
	// smallest is the part of a block, one in so many, from which on the whole of it is fetched at once.
	smallest = 8
	// touchedBlocks is of how many blocks it is remembered that a piece of them was wanted.
	touchedBlocks = 4096
	// entryBytes is about what an entry takes beside its block.
	entryBytes = 256
	// recentShare is the part of the cache, one in so many, that has whatever was fetched last.
	recentShare = 4
)

// Request is a read of an object that a [Cache] needs done.
type Request struct {
	Object string
	Offset int64
	// Into is filled, one slice after the other.
	Into [][]byte
}

// Bytes is how many bytes are asked for.
func (r *Request) Bytes() int64 {
	n := int64(0)
	for _, b := range r.Into {
		n += int64(len(b))
	}
	return n
}

// Fetch does a read, and returns how many bytes there were: fewer than asked for only at the object's end. It writes
// nothing to r.Into once it has returned.
type Fetch func(ctx context.Context, r Request) (int, error)

// Config of a [Cache]. The zero value of a field means its default.
type Config struct {
	Bytes      int64 // of blocks that are kept, from 1
	BlockBytes int   // default 2 MiB
	// FetchBytes is the most that one fetch brings of neighbouring blocks (default 8 MiB). None crosses a multiple of it.
	FetchBytes int
	// Enter, if set, returns when a fetch of so many bytes may begin, at once when hurry is closed: somebody waits for it then who
	// must not be held up by limits. Until then the fetch has no memory. leave says that it has ended.
	Enter func(ctx context.Context, bytes int64, hurry <-chan struct{}) (leave func(), err error)
	// Counts is what the cache counts in; nil: counts of its own.
	Counts *Counts
}

// Counts is what a cache did so far. A read counts once for each block that it touches.
type Counts struct {
	Hits    atomic.Uint64 // found in memory
	Misses  atomic.Uint64 // not found in memory
	Joined  atomic.Uint64 // those of them that were being fetched for another reader
	Fetches atomic.Uint64
	Bytes   atomic.Uint64 // that those brought
}

// Cache keeps blocks of objects. All methods may be called at once.
type Cache struct {
	config  Config
	fetch   Fetch
	recent  recent
	kept    *otter.Cache[place, *block]
	touched *otter.Cache[place, struct{}]
	ends    *otter.Cache[string, int64] // where objects end at the latest, of those that a fetch came to the end of
	buffers *buffers

	counts *Counts

	mu      sync.Mutex
	flights map[place]*flight
	flying  sync.WaitGroup
}

// place is a block, or a piece of one, which has another length.
type place struct {
	object string
	offset int64
	length int
}

// New returns an empty cache of what fetch reads.
func New(config Config, fetch Fetch) *Cache {
	if config.BlockBytes == 0 {
		config.BlockBytes = DefaultBlockBytes
	}
	if config.FetchBytes == 0 {
		config.FetchBytes = 4 * DefaultBlockBytes
	}
	if config.Enter == nil {
		config.Enter = func(context.Context, int64, <-chan struct{}) (func(), error) { return func() {}, nil }
	}
	if config.Counts == nil {
		config.Counts = new(Counts)
	}
	c := &Cache{config: config, fetch: fetch, counts: config.Counts, buffers: &buffers{size: config.BlockBytes}, flights: make(map[place]*flight)}
	here := func(f func()) { f() } // what is evicted is gone when the call that brought something new returns
	c.kept = otter.Must(&otter.Options[place, *block]{
		MaximumWeight:    uint64(max(config.Bytes-config.Bytes/recentShare, 1)),
		Weigher:          func(_ place, b *block) uint32 { return uint32(b.weight()) },
		OnAtomicDeletion: func(e otter.DeletionEvent[place, *block]) { e.Value.release() },
		Executor:         here,
	})
	c.recent = recent{limit: config.Bytes / recentShare, list: make(map[place]*block), leave: func(p place, b *block) { c.kept.Set(p, b) }}
	c.touched = otter.Must(&otter.Options[place, struct{}]{MaximumSize: touchedBlocks, Executor: here})
	c.ends = otter.Must(&otter.Options[string, int64]{MaximumSize: touchedBlocks, Executor: here})
	return c
}

// Counts are where the cache counts what it does.
func (c *Cache) Counts() *Counts { return c.counts }

// Kept is how many bytes are kept now.
func (c *Cache) Kept() int64 { return int64(c.kept.WeightedSize()) + c.recent.weight() }

// Recent is how many bytes of what was fetched last are kept whatever else is: so much can be prepared.
func (c *Cache) Recent() int64 { return c.recent.limit }

// Forget lets go of a range that turned out to be damaged, with the blocks in which it lies.
func (c *Cache) Forget(object string, offset int64, length int) {
	size := int64(c.config.BlockBytes)
	for base := offset / size * size; base < offset+int64(length); base += size {
		c.forgetPlace(place{object, base, c.config.BlockBytes})
	}
	c.forgetPlace(place{object, offset, length})
}

func (c *Cache) forgetPlace(p place) {
	c.recent.remove(p)
	c.kept.Invalidate(p)
}

// Clear lets go of everything that is kept.
func (c *Cache) Clear() {
	c.recent.clear()
	c.kept.InvalidateAll()
	c.buffers.clear()
}

// Wait returns when no fetch is under way any more, also of those that nobody waits for. Nobody may read meanwhile.
func (c *Cache) Wait() { c.flying.Wait() }

// want is the part of one block that a read is about.
type want struct {
	into   []byte // nil: it need not be copied
	length int
	base   int64 // where the block begins
	at     int   // where the part begins in it
	got    int   // how much of it there is
	flight *flight
	skip   int // from where its flight begins to where the part begins
}

// Read fills into with an object's bytes from offset (0 or more) on, and returns how many there were: fewer than asked for
// only at the object's end. With an error into holds anything. Limits hold up a read that does not hurry.
func (c *Cache) Read(ctx context.Context, object string, into []byte, offset int64, hurry bool) (int, error) {
	return c.read(ctx, object, into, offset, len(into), hurry)
}

// Prepare has a range kept, should there be room, as one that is read soon. It returns when that is done.
func (c *Cache) Prepare(ctx context.Context, object string, offset int64, length int) error {
	_, err := c.read(ctx, object, nil, offset, length, false)
	return err
}

func (c *Cache) read(ctx context.Context, object string, into []byte, offset int64, length int, hurry bool) (int, error) {
	if into == nil { // nothing lies past the end, and it need not be asked for again
		if end, ok := c.ends.GetIfPresent(object); ok {
			length = int(max(0, min(int64(length), end-offset)))
		}
	}
	var few [4]want
	wants, missing := few[:0], false
	for done := 0; done < length; {
		size := int64(c.config.BlockBytes)
		w := want{base: (offset + int64(done)) / size * size}
		w.at = int(offset + int64(done) - w.base)
		w.length = min(length-done, int(size)-w.at)
		if into != nil {
			w.into = into[done : done+w.length]
		}
		if !c.hit(object, &w) {
			missing = true
			w.got = -1
		}
		wants = append(wants, w)
		done += w.length
	}
	if missing {
		if err := c.gather(ctx, object, wants, hurry); err != nil {
			return 0, err
		}
	}
	n := 0
	for i := range wants {
		n += wants[i].got
		if wants[i].got < wants[i].length {
			break
		}
	}
	return n, nil
}

// whole is where a part's block is kept, piece where the part alone is.
func (c *Cache) whole(object string, w *want) place {
	return place{object, w.base, c.config.BlockBytes}
}

func (w *want) piece(object string) place { return place{object, w.base + int64(w.at), w.length} }

// hit copies a part from what is kept.
func (c *Cache) hit(object string, w *want) bool {
	if c.take(c.whole(object, w), w, w.at) || c.isSmall(w) && c.take(w.piece(object), w, 0) {
		c.counts.Hits.Add(1)
		return true
	}
	return false
}

func (c *Cache) take(p place, w *want, at int) bool {
	b := c.recent.acquire(p)
	if b == nil {
		var ok bool
		if b, ok = c.kept.GetIfPresent(p); !ok || !b.acquire() {
			return false
		}
	}
	w.copy(b, at)
	b.release()
	return true
}

// copy takes a part from a block.
func (w *want) copy(b *block, at int) {
	if w.into == nil {
		w.got = max(0, min(w.length, len(b.data)-at))
		return
	}
	w.got = b.copyTo(w.into, at)
}

// isSmall says that a part is little of its block.
func (c *Cache) isSmall(w *want) bool { return w.length*smallest < c.config.BlockBytes }

// alone says whether a small part is to be fetched without its block: nothing else of it was wanted lately.
func (c *Cache) alone(object string, w *want) bool {
	if !c.isSmall(w) {
		return false
	}
	_, first := c.touched.SetIfAbsent(c.whole(object, w), struct{}{})
	return first
}
