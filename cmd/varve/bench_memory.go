package main

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// memoryReport is what a gateway needed whose bucket is slower than its producers.
type memoryReport struct {
	Followers int        `json:"followers"`
	PutRate   byteSize   `json:"put_bytes_per_second"`
	Load      loadResult `json:"load"`
	Delivered int64      `json:"delivered_bytes"` // to all followers
	// Readers of old data go through all of it, over and over, by a block cache of CacheBytes, which is less.
	Readers    int      `json:"readers_of_old_data"`
	OldBytes   byteSize `json:"old_bytes"`
	CacheBytes byteSize `json:"cache_bytes"`
	Reread     int64    `json:"reread_bytes"` // that those got
	Costs      costs    `json:"costs"`
}

// partMemory lets producers send as fast as they can to a gateway whose bucket takes 16 MiB a second, while followers
// read each partition and others go through old data, of which more is there than fits the block cache. The runtime is told of a limit of 1 GiB.
func partMemory(ctx context.Context, a *app, o *allOptions) (_ any, _ []figure, err error) {
	dir, remove, err := o.scratch()
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, remove()) }()
	r := &memoryReport{Followers: pickSize(o, 1000, 20), PutRate: 16 * mib, Readers: pickSize(o, 32, 4), OldBytes: pickSize[byteSize](o, 768*mib, 32*mib),
		CacheBytes: pickSize[byteSize](o, 256*mib, 16*mib)}
	old, err := a.oldData(ctx, dir, r.OldBytes)
	if err != nil {
		return nil, nil, err
	}
	child, url, err := startGatewayBy(ctx, []string{"GOMEMLIMIT=1GiB"}, []string{"bench", "gateway"}, "--data", dir, "--put-rate", r.PutRate.String(),
		"--cache-bytes", strconv.FormatInt(int64(r.CacheBytes), 10))
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, child.stop()) }()
	own := *a
	own.servers = []string{url}
	if err := own.press(ctx, r, old, pickSize(o, 30*time.Second, time.Second)); err != nil {
		return nil, nil, err
	}
	return r, []figure{
		atMost("peak resident, slow bucket", float64(r.Costs.PeakResidentBytes)/mib, 1024, "MiB"),
		told("followers", float64(r.Followers), ""),
		told("taken from producers", r.Load.MiB, "MiB/s"),
		told("given to followers", float64(r.Delivered)/mib/r.Load.Seconds, "MiB/s"),
		told("readers of old data", float64(r.Readers), ""),
		told("given to them", float64(r.Reread)/mib/r.Load.Seconds, "MiB/s"),
		told("of it, from the bucket", float64(r.Costs.ObjectGetBytes)/mib/r.Load.Seconds, "MiB/s"),
		told("answers that said later", float64(r.Load.Refused), ""),
	}, nil
}

// oldData fills a topic by a gateway that is gone afterwards, and leaves it in the folder.
func (a *app) oldData(ctx context.Context, dir string, bytes byteSize) (t benchTopic, err error) {
	own, stop, err := a.ownGateway(ctx, dir, "", "")
	if err != nil {
		return t, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	c, err := own.connect()
	if err != nil {
		return t, err
	}
	defer c.Close()
	if t, err = openTopic(ctx, c, "", 8); err != nil {
		return t, err
	}
	return t, own.fill(ctx, t, limit{bytes: int64(bytes)})
}

// press produces for a while with 64 MiB in flight.
func (a *app) press(ctx context.Context, r *memoryReport, old benchTopic, duration time.Duration) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	const partitions = 64
	topic, err := openTopic(ctx, c, "", partitions)
	defer topic.remove(ctx, a, c, false)
	if err != nil {
		return err
	}
	w := a.newWire(a.servers[0], r.Followers+r.Readers+partitions)
	defer w.close()
	lo := loadOptions{recordSize: kib, batchSize: mib, producers: 32, inFlight: 2, acks: "committed", codec: "none"}
	l, err := lo.load(topic)
	if err != nil {
		return err
	}
	l.send = w.produce
	if err := l.prepare(ctx); err != nil {
		return err
	}
	m, err := startMeter(ctx, c)
	if err != nil {
		return err
	}
	following, stop := context.WithCancel(ctx)
	defer stop()
	group, following := errgroup.WithContext(following)
	var delivered atomic.Int64
	for i := range r.Followers {
		group.Go(func() error {
			err := w.swallow(following, topic.name, int32(i)%topic.partitions, &delivered)
			if following.Err() != nil {
				return nil
			}
			return err
		})
	}
	var reread atomic.Int64
	for i := range r.Readers { // each goes through one partition
		group.Go(func() error {
			return w.drainOver(following, wholeTopic(old, i%int(old.partitions), int(old.partitions), mib), &reread)
		})
	}
	if r.Load, err = l.run(ctx, limit{duration: duration}); err != nil {
		return err
	}
	r.Delivered, r.Reread = delivered.Load(), reread.Load()
	if r.Costs, err = m.stop(ctx, r.Load.Bytes); err != nil {
		return err
	}
	stop()
	return group.Wait()
}

// swallow follows a partition until the context ends, and drops what comes.
func (w *wire) swallow(ctx context.Context, topic string, partition int32, got *atomic.Int64) error {
	s, err := w.consume(ctx, &varvev1.ConsumeRequest{Topic: topic, Partitions: []*varvev1.PartitionRange{{Partition: partition,
		Start: &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}}}}})
	if err != nil {
		return err
	}
	defer s.close()
	for {
		n, err := s.skip()
		if err != nil {
			return err
		}
		got.Add(n)
	}
}

// skip drops the next message, and returns its size.
func (s *batchStream) skip() (int64, error) {
	size, last, err := s.header()
	if err != nil {
		return 0, err
	}
	if last {
		data := make([]byte, size)
		if _, err := io.ReadFull(s.response.Body, data); err != nil {
			return 0, err
		}
		return 0, outcome(data)
	}
	return io.CopyN(io.Discard, s.response.Body, int64(size))
}
