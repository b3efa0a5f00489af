package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments/batch"
)

// followers read a topic as it grows, a stream a partition over the bare API, and connect again
// whenever a stream ends.
type followers struct {
	raw    varvev1connect.LogServiceClient
	each   []*follower
	cancel context.CancelFunc
	all    sync.WaitGroup
}

// follower is one of them.
type follower struct {
	partition int32

	mu        sync.Mutex
	values    []string // by offset
	watermark int64
	streams   int
	faults    []string
	lastError error // of the stream that ended last
}

func follow(t *testing.T, url string, partitions int32) *followers {
	ctx, cancel := context.WithCancel(context.Background())
	transport := &http.Transport{}
	f := &followers{raw: rawClient(&http.Client{Transport: transport}, url), cancel: cancel}
	for p := range partitions {
		each := &follower{partition: p}
		f.each = append(f.each, each)
		f.all.Go(func() { each.run(ctx, f.raw) })
	}
	t.Cleanup(func() {
		f.stop()
		transport.CloseIdleConnections()
	})
	return f
}

func (f *followers) stop() {
	f.cancel()
	f.all.Wait()
}

func (f *follower) run(ctx context.Context, raw varvev1connect.LogServiceClient) {
	for ctx.Err() == nil {
		err := f.stream(ctx, raw)
		if ctx.Err() != nil {
			return
		}
		f.mu.Lock()
		f.lastError = err
		f.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(awayPause): // nobody tells when a server is back
		}
	}
}

// stream reads from where it is until the stream ends.
func (f *follower) stream(ctx context.Context, raw varvev1connect.LogServiceClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.mu.Lock()
	next := int64(len(f.values))
	f.mu.Unlock()
	stream, err := raw.Consume(ctx, &varvev1.ConsumeRequest{Topic: topic, Partitions: []*varvev1.PartitionRange{
		{Partition: f.partition, Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: next}}},
	}})
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
		f.take(message, next)
	}
}

// take checks a message of a stream that began at asked against all before it.
func (f *follower) take(m *varvev1.ConsumeResponse, asked int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fault := func(format string, args ...any) {
		f.faults = append(f.faults, fmt.Sprintf("partition %d: %s", f.partition, fmt.Sprintf(format, args...)))
	}
	if m.GetHighWatermark() < f.watermark {
		fault("the high watermark fell from %d to %d", f.watermark, m.GetHighWatermark())
	}
	f.watermark = max(f.watermark, m.GetHighWatermark())
	start := int64(len(f.values))
	if m.GetStartOffset() != asked {
		fault("nonmonotonic poll: asked for offset %d, got %d", asked, m.GetStartOffset())
		return
	}
	for raw, err := range batch.Split(m.GetRecordBatches()) {
		if err != nil {
			fault("%v", err)
			return
		}
		for record, err := range batch.Records(raw, batch.DefaultLimits()) {
			next := int64(len(f.values))
			switch {
			case err != nil:
				fault("%v", err)
				return
			case record.Offset < start:
			case record.Offset != next:
				fault("poll skip: offset %d follows %d", record.Offset, next-1)
				return
			default:
				f.values = append(f.values, string(record.Value))
			}
		}
	}
	if next := int64(len(f.values)); m.GetNextOffset() != next || m.GetHighWatermark() < next {
		fault("the message leads to offset %d of %d, its records to %d", m.GetNextOffset(), m.GetHighWatermark(), next)
	}
}

// state returns what the follower has, and how many streams it took.
func (f *follower) state() (values []string, streams int, lastError error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.values, f.streams, f.lastError
}

// check waits until the followers have as much as the log, and compares. It returns how often
// they connected.
func (f *followers) check(t *testing.T, logs map[int32][]string) (streams int) {
	t.Helper()
	deadline := time.After(patience)
	for _, each := range f.each {
		want := logs[each.partition]
		for {
			values, n, err := each.state()
			if len(values) >= len(want) {
				streams += n
				break
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-deadline:
				f.stop()
				t.Fatalf("the follower of partition %d is at offset %d and the end at %d; its last stream: %v; faults: %q",
					each.partition, len(values), len(want), err, each.faults[:min(3, len(each.faults))])
			}
		}
	}
	f.stop()
	for _, each := range f.each {
		want := logs[each.partition]
		for _, fault := range each.faults {
			t.Error(fault)
		}
		if len(each.values) != len(want) {
			t.Errorf("partition %d: the follower saw %d records, there are %d", each.partition, len(each.values), len(want))
			continue
		}
		for offset := range want {
			if each.values[offset] != want[offset] {
				t.Errorf("partition %d: offset %d was %q and is %q", each.partition, offset, each.values[offset], want[offset])
				break
			}
		}
	}
	return streams
}
