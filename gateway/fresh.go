package gateway

import (
	"sync"
	"sync/atomic"

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
	list  map[segmentName]*freshSegment
	order []segmentName // oldest first
	bytes int64
}

// freshSegment is a segment and the memory that it lies in.
type freshSegment struct {
	*segments.Object
	bodies []*body
	users  atomic.Int32 // readers, and one for the list
}

func (s *freshSegment) release() {
	if s.users.Add(-1) == 0 {
		releaseAll(s.bodies)
	}
}

func newFreshSegments(limit int64) *freshSegments {
	return &freshSegments{limit: limit, list: make(map[segmentName]*freshSegment)}
}

// add keeps a segment. The memory it lies in is released when it is no longer kept or read; of what is not in bodies the
// collector takes care.
func (f *freshSegments) add(object *segments.Object, bodies []*body) {
	name := segmentName{metadata.GatewayID(object.Directory.Gateway), object.Directory.Number}
	segment := &freshSegment{Object: object, bodies: bodies}
	segment.users.Store(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.list[name] != nil || object.Size() > f.limit {
		segment.release()
		return
	}
	f.list[name] = segment
	f.order = append(f.order, name)
	f.bytes += object.Size()
	for f.bytes > f.limit {
		oldest := f.order[0]
		f.order = f.order[1:]
		f.bytes -= f.list[oldest].Size()
		f.list[oldest].release()
		delete(f.list, oldest)
	}
}

// read copies a range of a segment, if it is there.
func (f *freshSegments) read(name segmentName, into []byte, position int64) bool {
	segment := f.hold(name)
	if segment == nil {
		return false
	}
	defer segment.release()
	_, err := segment.ReadAt(into, position)
	return err == nil
}

// hold returns a segment that its caller must release, or nil.
func (f *freshSegments) hold(name segmentName) *freshSegment {
	f.mu.RLock()
	defer f.mu.RUnlock()
	segment := f.list[name]
	if segment != nil {
		segment.users.Add(1) // not the first: the list has it
	}
	return segment
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
	for _, segment := range f.list {
		segment.release()
	}
	clear(f.list)
	f.order, f.bytes = nil, 0
}
