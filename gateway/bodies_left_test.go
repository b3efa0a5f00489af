package gateway

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// heldStore holds up puts of segments.
type heldStore struct {
	*memstore.Store
	open chan struct{}
}

func (s *heldStore) Put(ctx context.Context, key string, body segments.Body) error {
	if strings.HasSuffix(key, segments.Suffix) {
		select {
		case <-s.open:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return s.Store.Put(ctx, key, body)
}

// TestCallersWhoLeave: who gives up does not take the memory along of a batch that was gathered. What is read later is what was sent.
func TestCallersWhoLeave(t *testing.T) {
	for _, protocol := range []string{"connect", "connect h2c"} {
		t.Run(protocol, func(t *testing.T) {
			const calls = 50
			d := memory()
			store := &heldStore{Store: d.Store.(*memstore.Store), open: make(chan struct{})}
			d.Store = store
			g := &served{testGateway: startGateway(t, Config{Exclusive: true, FreshBytes: 128 << 10, SegmentBytes: 64 << 10}, d)}
			g.url = serveHTTP(t, g.Gateway)
			g.create(t, "a", 1, nil)
			log := varvev1connect.NewLogServiceClient(protocols(t, g.url)[protocol])
			in := g.tenure.Load().intake
			partition, sent := int32(0), int64(0)
			value := func(call int) []byte { return bytes.Repeat(fmt.Appendf(nil, "%04d.", call), 1000) }
			for call := range calls {
				data := batchOf(t, value(call))
				sent += int64(len(data))
				ctx, cancel := context.WithCancel(t.Context())
				var left errgroup.Group
				left.Go(func() error {
					defer cancel()
					return await(t.Context(), func() bool { return in.outstanding.Load() == sent }) // it will be gathered
				})
				if _, err := log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &partition, RecordBatch: data}); err == nil {
					t.Error("acked, though no segment was uploaded")
				}
				if err := left.Wait(); err != nil {
					t.Fatal(err)
				}
			}
			close(store.open)
			if err := await(t.Context(), func() bool { return in.outstanding.Load() == 0 }); err != nil {
				t.Fatal(err)
			}
			for next := 0; next < calls; {
				out, err := log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Decode: true, MaxBytes: 1,
					Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: int64(next)}}})
				if err != nil {
					t.Fatal(err)
				}
				if len(out.GetRecords()) == 0 {
					t.Fatalf("the log ends at %d", next)
				}
				for _, r := range out.GetRecords() {
					if !bytes.Equal(r.GetValue(), value(next)) {
						t.Fatalf("%.20q at %d", r.GetValue(), next)
					}
					next++
				}
			}
		})
	}
}

func await(ctx context.Context, done func() bool) error {
	for !done() && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	return ctx.Err()
}
