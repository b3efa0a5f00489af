package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/blockcache"
)

const (
	// mateTime is how long a gateway of the same zone has for a block, before it is read from the bucket after all.
	mateTime = 250 * time.Millisecond
	// matePause is for how long one that had no block in that time is not asked again.
	matePause = 2 * time.Second
	// mateBytes bounds the blocks that are being sent to others of the zone.
	mateBytes = 32 << 20
	// fetchBytes is the most that one GET brings, and what one gateway of a zone reads for all of it: a segment, which is sealed at 8 MiB
	// and has a batch more by then.
	fetchBytes = 10 << 20
)

// blocks is where the bytes of segments come from that are not fresh:
//
//	cache ─miss─> limit of cold reads ─> the gateway of the zone that it hashes to, or the bucket
//
// Without a cache (on files, which the system caches) each range is read from the store as it is asked for.
type blocks struct {
	g       *Gateway
	cache   *blockcache.Cache // nil: none
	cold    *coldLimit
	lending *semaphore.Weighted // bytes that are on their way to others of the zone

	mu     sync.Mutex
	paused map[metadata.GatewayID]time.Time // until when others of the zone are not asked
}

func newBlocks(g *Gateway) *blocks {
	b := &blocks{g: g, cold: newColdLimit(g.config), lending: semaphore.NewWeighted(mateBytes), paused: make(map[metadata.GatewayID]time.Time)}
	if g.config.CacheBytes > 0 {
		block := g.config.CacheBlockBytes
		b.cache = blockcache.New(blockcache.Config{Bytes: g.config.CacheBytes, BlockBytes: block, FetchBytes: max(fetchBytes/block, 1) * block,
			Enter: b.enter, Counts: &g.meters.blocks}, b.fetch)
	}
	return b
}

// read fills into with bytes of a segment. It returns how many there were: fewer only at the object's end. One that does
// not hurry is held up by the limits of cold reads.
func (b *blocks) read(ctx context.Context, key string, into []byte, offset int64, hurry bool) (int, error) {
	if b.cache != nil {
		return b.cache.Read(ctx, key, into, offset, hurry)
	}
	r := blockcache.Request{Object: key, Offset: offset, Into: [][]byte{into}}
	if hurry {
		return b.fromBucket(ctx, r)
	}
	leave, err := b.cold.enter(ctx, r.Bytes(), nil)
	if err != nil {
		return 0, err
	}
	defer leave()
	return b.fromBucket(ctx, r)
}

// again reads a range that turned out to be damaged from the bucket itself: whatever went wrong on its way, or in memory,
// is no damage of the log.
func (b *blocks) again(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	if b.cache != nil {
		b.cache.Forget(key, offset, len(into))
	}
	return b.fromBucket(ctx, blockcache.Request{Object: key, Offset: offset, Into: [][]byte{into}})
}

// enter is what the cache waits for before it fetches.
func (b *blocks) enter(ctx context.Context, bytes int64, hurry <-chan struct{}) (leave func(), err error) {
	if ctx.Value(lent{}) != nil { // its reader waits for it, and has limits of its own
		return func() {}, nil
	}
	return b.cold.enter(ctx, bytes, hurry)
}

// fetch is what the cache reads by.
func (b *blocks) fetch(ctx context.Context, r blockcache.Request) (int, error) {
	if ctx.Value(lent{}) != nil {
		return b.fromBucket(ctx, r)
	}
	if mate := b.mate(r); mate != "" {
		n, err := b.fromMate(ctx, mate, r)
		if err == nil || ctx.Err() != nil {
			return n, err
		}
	}
	return b.fromBucket(ctx, r)
}

func (b *blocks) fromBucket(ctx context.Context, r blockcache.Request) (int, error) {
	return segments.GetScattered(ctx, b.g.store, r.Object, r.Into, r.Offset)
}

// lent marks the context of a read for another gateway of the zone: it is not passed on once more, should two not agree
// on who lives.
type lent struct{}

// mate is the other gateway of the zone that is to read a range for all of it; "" when this one is.
func (b *blocks) mate(r blockcache.Request) metadata.GatewayID {
	mates := b.g.members.zone()
	if len(mates) < 2 {
		return ""
	}
	mate := metadata.RendezvousText(fmt.Sprintf("%s/%d", r.Object, r.Offset/fetchBytes), mates)
	if mate == b.g.ID() {
		return ""
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Now().Before(b.paused[mate]) {
		return ""
	}
	return mate
}

// fromMate reads a range by another gateway of the zone, which has little time for it.
func (b *blocks) fromMate(ctx context.Context, mate metadata.GatewayID, r blockcache.Request) (int, error) {
	_, uploader, number, err := segments.ParseObjectKey(r.Object)
	if err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, mateTime)
	defer cancel()
	data, err := b.g.peers.readBlock(limited, mate, segmentName{metadata.GatewayID(uploader), number}, r.Offset, int(r.Bytes()))
	if err != nil {
		if ctx.Err() == nil {
			b.g.meters.blocksLate.Add(1)
			b.pause(mate)
		}
		return 0, err
	}
	b.g.meters.blocksBorrowed.Add(1)
	b.g.meters.blockBytesBorrowed.Add(uint64(len(data)))
	return segments.Scatter(r.Into, data), nil
}

func (b *blocks) pause(mate metadata.GatewayID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	for id, until := range b.paused { // those that left are not asked again
		if until.Before(now) {
			delete(b.paused, id)
		}
	}
	b.paused[mate] = now.Add(matePause)
}

// errLending refuses a block to another gateway, which reads it from the bucket then.
var errLending = errors.New("gateway: not now: enough is being sent to others")

// lend reads a range for another gateway of the zone.
func (b *blocks) lend(ctx context.Context, name segmentName, offset int64, length int) ([]byte, error) {
	if b.cache == nil || !b.lending.TryAcquire(int64(length)) {
		return nil, errLending
	}
	defer b.lending.Release(int64(length))
	into := make([]byte, length)
	if b.g.reader.fresh.read(name, into, offset) {
		return into, nil
	}
	key := segments.ObjectKey(segments.ClusterID(b.g.ClusterID()), segments.GatewayID(name.gateway), name.number)
	n, err := b.cache.Read(context.WithValue(ctx, lent{}, true), key, into, offset, true)
	return into[:n], err
}

// clear lets go of what is kept.
func (b *blocks) clear() {
	if b.cache != nil {
		b.cache.Clear()
	}
}
