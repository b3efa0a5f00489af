package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

// The phases of `varve bench consume`.
const (
	phaseCold = "cold"
	phaseWarm = "warm"
	phaseTail = "tail"
)

// consumeOptions are the flags of bench consume.
type consumeOptions struct {
	phases       []string
	consumers    int
	messageBytes byteSize
	decode       bool
	bytes        byteSize
	partitions   int32
	keep         bool

	followers, producers int
	rate                 float64
	recordSize           byteSize
	acks                 string
	duration             time.Duration
}

func newBenchConsumeCommand(a *app) *cobra.Command {
	o := consumeOptions{messageBytes: mib, bytes: 512 * mib, recordSize: 100}
	cmd := &cobra.Command{
		Use:   "consume [TOPIC]",
		Short: "Read a topic from its start, twice, and follow one",
		Long: `Read a topic from its start over fresh connections (cold), once more (warm), and follow it while records
arrive at a rate (tail): the time from the call of produce to the arrival at each follower.

Cold is as cold as the gateway is: what it still has in memory is not read from the bucket, and the
report says how much was. Without TOPIC it makes and fills one, and deletes it at the end; with
TOPIC, tail is left out unless --phases names it, since it appends.`,
		Args: atMostOneTopic, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && !cmd.Flags().Changed("phases") {
				o.phases = []string{phaseCold, phaseWarm}
			}
			r, err := a.benchConsume(cmd.Context(), topicArgument(args), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.phases, "phases", []string{phaseCold, phaseWarm, phaseTail}, "cold, warm and tail, or some of them")
	f.IntVar(&o.consumers, "consumers", 1, "consumers that share the partitions")
	f.Var(&o.messageBytes, "message-bytes", "size of message asked for")
	f.BoolVar(&o.decode, "decode", false, "decode each record, which is the consumer's work, not the gateway's")
	f.Var(&o.bytes, "bytes", "how much to fill into a topic that is made")
	f.Int32Var(&o.partitions, "partitions", 8, "partitions of a topic that is made")
	f.BoolVar(&o.keep, "keep", false, "keep the topic that was made")
	f.IntVar(&o.followers, "followers", 4, "tail: followers of all partitions")
	f.IntVar(&o.producers, "producers", 8, "tail: producers at once")
	f.Float64Var(&o.rate, "rate", 200, "tail: records a second, each a request of its own")
	f.Var(&o.recordSize, "record-size", "tail: bytes of a record's value, at least 8")
	f.StringVar(&o.acks, "acks", "committed", "tail: committed or buffered")
	f.DurationVar(&o.duration, "duration", 5*time.Second, "tail: how long")
	completeWith(cmd, "phases", phaseCold, phaseWarm, phaseTail)
	return cmd
}

// passReport is one reading of a topic.
type passReport struct {
	Phase string `json:"phase"`
	measured
	Records int64 `json:"records"`
	// FromBucket is the share of the bytes that the gateway read from the bucket, more than 1 if it read ahead.
	FromBucket float64 `json:"from_bucket"`
	Costs      costs   `json:"costs"`
}

// consumeReport is what `varve bench consume` prints.
type consumeReport struct {
	Bench  string       `json:"bench"`
	Topic  string       `json:"topic"`
	Passes []passReport `json:"passes,omitempty"`
	Tail   *tailReport  `json:"tail,omitempty"`
}

func (r *consumeReport) text() string {
	var b strings.Builder
	for _, p := range r.Passes {
		fmt.Fprintf(&b, "consume %s from the start, %s\n  %-11s %.1f MiB/s   %.0f records/s   (%d records, %s, in %.2f s; %.0f %% from the bucket)\n%s",
			r.Topic, p.Phase, "throughput", p.MiB, float64(p.Records)/p.Seconds, p.Records, sizeText(uint64(p.Bytes)), p.Seconds, p.FromBucket*100, p.Costs.text())
	}
	if r.Tail != nil {
		b.WriteString(r.Tail.text())
	}
	return b.String()
}

func (o *consumeOptions) check() error {
	for _, p := range o.phases {
		if !slices.Contains([]string{phaseCold, phaseWarm, phaseTail}, p) {
			return usagef("--phases %s: want cold, warm and tail, or some of them", p)
		}
	}
	if o.consumers < 1 || o.followers < 1 || o.producers < 1 || o.consumers > maxSenders || o.followers > maxSenders || o.producers > maxSenders {
		return usagef("want 1 to %d consumers, followers and producers", maxSenders)
	}
	if o.rate <= 0 || o.recordSize < stampSize {
		return usagef("want a --rate above 0 and a --record-size of at least %d", stampSize)
	}
	return nil
}

func (a *app) benchConsume(ctx context.Context, name string, o *consumeOptions) (*consumeReport, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	topic, err := openTopic(ctx, c, name, o.partitions)
	defer topic.remove(ctx, a, c, o.keep)
	if err != nil {
		return nil, err
	}
	r := &consumeReport{Bench: "consume", Topic: topic.name}
	passes := slices.DeleteFunc(slices.Clone(o.phases), func(p string) bool { return p == phaseTail })
	if topic.made && len(passes) > 0 {
		if err := a.fill(ctx, topic, limit{bytes: int64(o.bytes)}); err != nil {
			return nil, err
		}
	}
	for _, phase := range passes {
		p, err := a.readThrough(ctx, c, topic, o)
		if err != nil {
			return nil, err
		}
		p.Phase = phase
		r.Passes = append(r.Passes, p)
	}
	if slices.Contains(o.phases, phaseTail) && ctx.Err() == nil {
		r.Tail, err = a.benchTail(ctx, c, topic, o)
	}
	return r, err
}

// fill appends large batches to a topic.
func (a *app) fill(ctx context.Context, t benchTopic, end limit) error {
	o := loadOptions{recordSize: kib, batchSize: mib, producers: 8, inFlight: 2, acks: "committed", codec: "none"}
	l, err := o.load(t)
	if err != nil {
		return err
	}
	w := a.newWire(a.servers[0], o.producers*o.inFlight)
	defer w.close()
	l.send = w.produce
	if err := l.prepare(ctx); err != nil {
		return err
	}
	_, err = l.run(ctx, end)
	return err
}

// readThrough reads all of a topic once, over fresh connections.
func (a *app) readThrough(ctx context.Context, c *client.Client, t benchTopic, o *consumeOptions) (passReport, error) {
	w := a.newWire(a.servers[0], o.consumers)
	defer w.close()
	m, err := startMeter(ctx, c)
	if err != nil {
		return passReport{}, err
	}
	began, own := time.Now(), processCPU()
	var bytes, records atomic.Int64
	group, reading := errgroup.WithContext(ctx)
	for i := range o.consumers {
		request := wholeTopic(t, i, o.consumers, int(o.messageBytes))
		if len(request.GetPartitions()) == 0 {
			continue
		}
		group.Go(func() error { return w.drain(reading, request, o.decode, &bytes, &records) })
	}
	if err := group.Wait(); err != nil && ctx.Err() == nil {
		return passReport{}, err
	}
	elapsed, used := time.Since(began), processCPU()-own
	p := passReport{Records: records.Load()}
	p.Costs, err = m.stop(ctx, bytes.Load())
	server := time.Duration(p.Costs.ServerCPU * float64(time.Second))
	p.measured = newMeasured(bytes.Load(), elapsed, server, used)
	if p.Bytes > 0 {
		p.FromBucket = float64(p.Costs.ObjectGetBytes) / float64(p.Bytes)
	}
	return p, err
}

// readOver has readers that share the partitions read a topic from its start, over and over, for a while.
func (a *app) readOver(ctx context.Context, c *client.Client, t benchTopic, readers int, duration time.Duration) (r measured, used costs, err error) {
	w := a.newWire(a.servers[0], readers)
	defer w.close()
	m, err := startMeter(ctx, c)
	if err != nil {
		return r, used, err
	}
	began := time.Now()
	var bytes, records atomic.Int64
	for time.Since(began) < duration {
		group, reading := errgroup.WithContext(ctx)
		for i := range readers {
			if request := wholeTopic(t, i, readers, mib); len(request.GetPartitions()) > 0 {
				group.Go(func() error { return w.drain(reading, request, false, &bytes, &records) })
			}
		}
		if err := group.Wait(); err != nil {
			return r, used, err
		}
	}
	elapsed := time.Since(began)
	used, err = m.stop(ctx, bytes.Load())
	return newMeasured(bytes.Load(), elapsed, seconds(used.ServerCPU), seconds(used.BenchCPU)), used, err
}

// drainOver reads what a request asks for, over and over, until the context ends, which is no error.
func (w *wire) drainOver(ctx context.Context, request *varvev1.ConsumeRequest, bytes *atomic.Int64) error {
	var records atomic.Int64
	for ctx.Err() == nil {
		if err := w.drain(ctx, request, false, bytes, &records); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// wholeTopic asks for every count-th partition, from the start to where it ends now.
func wholeTopic(t benchTopic, first, count, messageBytes int) *varvev1.ConsumeRequest {
	request := &varvev1.ConsumeRequest{Topic: t.name, MaxMessageBytes: int32(messageBytes)}
	for n := int32(first); n < t.partitions; n += int32(count) {
		request.Partitions = append(request.Partitions, &varvev1.PartitionRange{
			Partition: n,
			Start:     &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}},
			End:       &varvev1.Place{At: &varvev1.Place_Latest{Latest: true}},
		})
	}
	return request
}

// drain reads a stream to its end.
func (w *wire) drain(ctx context.Context, request *varvev1.ConsumeRequest, decode bool, bytes, records *atomic.Int64) error {
	s, err := w.consume(ctx, request)
	if err != nil {
		return err
	}
	defer s.close()
	for {
		m, err := s.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		bytes.Add(int64(len(m.batches)))
		n, err := countRecords(m.batches, decode)
		if err != nil {
			return err
		}
		records.Add(n)
	}
}

// countRecords counts by headers, or by decoding every record.
func countRecords(batches []byte, decode bool) (n int64, err error) {
	for data, err := range batch.Split(batches) {
		if err != nil {
			return n, err
		}
		if !decode {
			h, err := batch.ParseHeader(data)
			if err != nil {
				return n, err
			}
			n += int64(h.Count)
			continue
		}
		for _, err := range batch.Records(data, batch.Limits{}) {
			if err != nil {
				return n, err
			}
			n++
		}
	}
	return n, nil
}
