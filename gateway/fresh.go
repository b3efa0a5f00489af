package gateway

import (
	"sync"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// segmentName names a segment object within the cluster.
type segmentName struct {
	gateway metadata.GatewayID
	number  uint64
}

// freshSegments keeps the newest segments of this gateway in memory, so that
// followers and readers of the tail ask the bucket for nothing.
type freshSegments struct {
	limit int64 // bytes

	mu    sync.RWMutex
	list  map[segmentName]*segments.Object
	order []segmentName // oldest first
	bytes int64
}

func newFreshSegments(limit int64) *freshSegments {
	return &freshSegments{limit: limit, list: make(map[segmentName]*segments.Object)}
}

func (f *freshSegments) add(object *segments.Object) {
	name := segmentName{metadata.GatewayID(object.Directory.Gateway), object.Directory.Number}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list[name] != nil || object.Size() > f.limit {
		return
	}
	f.list[name] = object
	f.order = append(f.order, name)
	f.bytes += object.Size()
	for f.bytes > f.limit {
		oldest := f.order[0]
		f.order = f.order[1:]
		f.bytes -= f.list[oldest].Size()
		delete(f.list, oldest)
	}
}

// read copies a range of a segment, if it is there.
func (f *freshSegments) read(name segmentName, into []byte, position int64) bool {
	f.mu.RLock()
	object := f.list[name]
	f.mu.RUnlock()
	if object == nil {
		return false
	}
	_, err := object.ReadAt(into, position)
	return err == nil
}

// has says whether a segment is there.
func (f *freshSegments) has(name segmentName) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.list[name] != nil
}

// clear forgets all of them.
func (f *freshSegments) clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.list)
	f.order, f.bytes = nil, 0
}
