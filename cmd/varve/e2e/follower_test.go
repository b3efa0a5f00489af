package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/segments/batch"
)

// followers read a topic as it grows, each over a stream of its own over the bare API, and connect again
// whenever a stream ends.
type followers struct {
	each   []*follower
	seen   *sightings
	cancel context.CancelFunc
	all    sync.WaitGroup
	// transport is theirs alone.
	transport *http.Transport
}

// newFollowers returns none yet; they end with the test at the latest.
func newFollowers(t *testing.T) *followers {
	f := &followers{seen: newSightings(), transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	t.Cleanup(f.stop)
	return f
}

// follow has one follower for each partition.
func follow(t *testing.T, url string, partitions int32) *followers {
	f := newFollowers(t)
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	for p := range partitions {
		f.add(ctx, &follower{name: fmt.Sprintf("partition %d", p), partitions: []int32{p}, url: func() string { return url }, pause: awayPause})
	}
	return f
}

// add starts a follower.
func (f *followers) add(ctx context.Context, each *follower) {
	each.seen, each.http = f.seen, &http.Client{Transport: f.transport}
	each.next, each.watermarks = make(map[int32]int64), make(map[int32]int64)
	f.each = append(f.each, each)
	f.all.Go(func() { each.run(ctx) })
}

func (f *followers) stop() {
	if f.cancel != nil {
		f.cancel()
	}
	f.all.Wait()
	f.transport.CloseIdleConnections()
}

// sightings are what followers saw, all together: whoever sees an offset first says what is there.
type sightings struct {
	found *anomalies

	mu     sync.Mutex
	values map[int32][]string // by partition and offset
}

func newSightings() *sightings {
	return &sightings{found: newAnomalies(), values: make(map[int32][]string)}
}

// take notes that somebody saw a value. Everybody sees all offsets from 0 on, so that none is beyond the first
// one that nobody has seen.
func (s *sightings) take(partition int32, offset int64, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := s.values[partition]
	switch {
	case offset == int64(len(known)):
		s.values[partition] = append(known, value)
	case known[offset] != value:
		s.found.note(inconsistent, "offset %d/%d was seen as %q, and as %q", partition, offset, known[offset], value)
	}
}

// compare notes what is not in the log as it was seen.
func (s *sightings) compare(logs map[int32][]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for partition, values := range s.values {
		for offset, value := range values {
			switch {
			case offset >= len(logs[partition]):
				s.found.note(precommitted, "offset %d/%d was seen as %q, and the log ends at %d", partition, offset, value, len(logs[partition]))
			case logs[partition][offset] != value:
				s.found.note(inconsistent, "offset %d/%d was seen as %q and is %q", partition, offset, value, logs[partition][offset])
			}
		}
	}
}

// follower is one of them.
type follower struct {
	name       string
	partitions []int32
	url        func() string // the gateway for the next stream
	pause      time.Duration // before it connects again
	http       *http.Client
	seen       *sightings

	mu         sync.Mutex
	next       map[int32]int64
	watermarks map[int32]int64
	streams    int
	lastError  error // of the stream that ended last
}

func (f *follower) run(ctx context.Context) {
	for ctx.Err() == nil {
		err := f.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		if reasonOf(err) == "DATA_LOSS" {
			f.seen.found.note(lostWrite, "the follower of %s: %v", f.name, err)
		}
		f.mu.Lock()
		f.lastError = err
		f.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(f.pause): // nobody tells when a server is back
		}
	}
}

// stream reads from where it is until the stream ends.
func (f *follower) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request, asked := f.request()
	stream, err := rawClient(f.http, f.url()).Consume(ctx, request)
	if err != nil {
		return err
	}
	defer stream.Close()
	f.mu.Lock()
	f.streams++
	f.mu.Unlock()
	for {
		message, err := stream.Receive()
		var failed *connect.Error
		if errors.Is(err, io.EOF) && !errors.As(err, &failed) {
			return errors.New("the stream ended without an error")
		}
		if err != nil {
			return err
		}
		f.take(message, asked)
	}
}

// request asks for what comes next, by partition.
func (f *follower) request() (request *varvev1.ConsumeRequest, asked map[int32]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	request = &varvev1.ConsumeRequest{Topic: topic}
	for _, p := range f.partitions {
		request.Partitions = append(request.Partitions, &varvev1.PartitionRange{
			Partition: p, Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: f.next[p]}}, SeenHighWatermark: f.watermarks[p],
		})
	}
	return request, maps.Clone(f.next)
}

// take checks a message of a stream that began where asked says against all before it.
func (f *follower) take(m *varvev1.ConsumeResponse, asked map[int32]int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	partition := m.GetPartition()
	note := func(name, format string, args ...any) {
		f.seen.found.note(name, "the follower of %s, in partition %d: %s", f.name, partition, fmt.Sprintf(format, args...))
	}
	if !slices.Contains(f.partitions, partition) {
		note(mistold, "it did not ask for it")
		return
	}
	if m.GetHighWatermark() < f.watermarks[partition] {
		note(fallenWatermark, "from %d to %d", f.watermarks[partition], m.GetHighWatermark())
	}
	f.watermarks[partition] = max(f.watermarks[partition], m.GetHighWatermark())
	start := f.next[partition]
	if m.GetStartOffset() != asked[partition] {
		note(nonmonotonicPoll, "asked for offset %d, got %d", asked[partition], m.GetStartOffset())
		return
	}
	for raw, err := range batch.Split(m.GetRecordBatches()) {
		if err != nil {
			note(mistold, "%v", err)
			return
		}
		for record, err := range batch.Records(raw, batch.DefaultLimits()) {
			next := f.next[partition]
			switch {
			case err != nil:
				note(mistold, "%v", err)
				return
			case record.Offset < start:
			case record.Offset < next:
				note(nonmonotonicPoll, "offset %d follows %d", record.Offset, next-1)
				return
			case record.Offset > next:
				note(pollSkip, "offset %d follows %d", record.Offset, next-1)
				return
			default:
				f.seen.take(partition, next, string(record.Value))
				f.next[partition] = next + 1
			}
		}
	}
	if next := f.next[partition]; m.GetNextOffset() != next || m.GetHighWatermark() < next {
		note(mistold, "the message leads to offset %d of %d, its records to %d", m.GetNextOffset(), m.GetHighWatermark(), next)
	}
}

// state returns how often the follower connected, and how its last stream ended.
func (f *follower) state() (streams int, lastError error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.streams, f.lastError
}

// behind lists where the follower has not come to the end.
func (f *follower) behind(logs map[int32][]string) (where []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.partitions {
		if end := int64(len(logs[p])); f.next[p] < end {
			where = append(where, fmt.Sprintf("%d of %d in partition %d", f.next[p], end, p))
		}
	}
	return where
}

// check waits until the followers have as much as the log, and compares. It returns how often
// they connected.
func (f *followers) check(t *testing.T, logs map[int32][]string) (streams int) {
	t.Helper()
	streams = f.judge(logs)
	f.seen.found.report(t)
	return streams
}

// judge does the same and notes what is wrong.
func (f *followers) judge(logs map[int32][]string) (streams int) {
	deadline := time.After(patience)
	late := false
	for _, each := range f.each {
		for !late && len(each.behind(logs)) > 0 {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-deadline:
				late = true
			}
		}
		n, err := each.state()
		streams += n
		if where := each.behind(logs); len(where) > 0 {
			f.seen.found.note(unseen, "the follower of %s is at offset %s; its last stream: %v", each.name, strings.Join(where, ", "), err)
		}
	}
	f.stop()
	f.seen.compare(logs)
	return streams
}
