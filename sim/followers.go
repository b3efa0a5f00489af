package sim

import (
	"context"
	"errors"
	"time"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

// follow reads a topic from its beginning on, by the gateway of a host while that works, until ctx ends.
func (w *workload) follow(ctx context.Context, c *caller, h *host, topic string, partitions int32) {
	cl := c.client(h)
	defer cl.Close()
	for n := range partitions {
		f := w.history.follow(c.name, Partition{topic, n})
		w.follows.Go(func() { w.followOne(ctx, cl, f) })
	}
	<-ctx.Done()
}

func (w *workload) followOne(ctx context.Context, cl *client.Client, f *Follow) {
	at, restarted := client.Earliest(), false
	next := int64(0)
	for ctx.Err() == nil {
		k, err := cl.NewConsumer(client.ConsumerConfig{Topic: f.Topic, Partitions: []int32{f.Number}, Start: at})
		if err != nil {
			panic(err)
		}
		for m, err := range k.Batches(ctx) {
			if err != nil {
				var told *client.Error
				if errors.Is(err, client.ErrOutOfRange) && errors.As(err, &told) && told.LogStart > next {
					at, restarted = client.At(told.LogStart), true
				} else if errors.Is(err, client.ErrOutOfRange) {
					// It got everything below, so that the log reaches there.
					w.history.loose(StaleRead, "at %s %s of %s got everything below %d, and then: %v", time.Since(w.history.began), f.Follower, f.Partition, next, err)
				} else if next > 0 {
					at = client.At(next)
				}
				if errors.Is(err, client.ErrDataLoss) {
					w.history.loose(LostWrite, "%s of %s at %d: %v", f.Follower, f.Partition, next, err)
				}
				break
			}
			p := Poll{At: time.Since(w.history.began), Restarted: restarted, Watermark: m.HighWatermark, Records: w.decode(f, m)}
			restarted = restarted && len(p.Records) == 0
			next = m.NextOffset
			w.history.mu.Lock()
			f.Polls = append(f.Polls, p)
			f.next = next
			w.history.mu.Unlock()
		}
		_ = rest(ctx, 500*time.Millisecond)
	}
}

// decode takes the records out of a message.
func (w *workload) decode(f *Follow, m client.Batches) []Record {
	var list []Record
	for raw, err := range batch.Split(m.Data) {
		if err != nil {
			w.history.loose(PrecommittedRead, "%s of %s got damaged batches: %v", f.Follower, f.Partition, err)
			return list
		}
		for r, err := range batch.Records(raw, batch.DefaultLimits()) {
			if err != nil {
				w.history.loose(PrecommittedRead, "%s of %s got a damaged batch: %v", f.Follower, f.Partition, err)
				return list
			}
			if r.Offset >= m.StartOffset {
				list = append(list, Record{r.Offset, r.Timestamp, string(r.Value)})
			}
		}
	}
	return list
}
