package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
	"google.golang.org/protobuf/proto"
)

// loadOptions are the flags that describe producers.
type loadOptions struct {
	partitions            int32
	recordSize, batchSize byteSize
	batchRecords          int
	producers, inFlight   int
	spread                int32
	rate                  float64
	acks, codec           string
	idempotent            bool
	throughClient         bool
	keep                  bool
}

func (o *loadOptions) register(f *pflag.FlagSet) {
	o.recordSize, o.batchSize = kib, mib
	f.Int32Var(&o.partitions, "partitions", 8, "partitions of the topic that is made when none is given")
	f.Var(&o.recordSize, "record-size", "bytes of a record's value, random")
	f.Var(&o.batchSize, "batch-size", "bytes of a batch before compression")
	f.IntVar(&o.batchRecords, "batch-records", 0, "records of a batch, instead of --batch-size")
	f.IntVar(&o.producers, "producers", 8, "producers at once")
	f.IntVar(&o.inFlight, "in-flight", 1, "requests that each producer has open")
	f.Int32Var(&o.spread, "spread", 0, "send requests of one record for each of so many partitions, instead of batches")
	f.Float64Var(&o.rate, "rate", 0, "records a second over all producers; latency counts from when a batch was due. 0: as fast as it goes")
	f.StringVar(&o.acks, "acks", "committed", "committed or buffered")
	f.StringVarP(&o.codec, "compression", "z", "none", "none, gzip, snappy, lz4 or zstd")
	f.BoolVar(&o.idempotent, "idempotent", false, "give each request in flight a producer id and sequences")
	f.BoolVar(&o.throughClient, "through-client", false, "produce record by record by the Go client, whose work then counts too")
	f.BoolVar(&o.keep, "keep", false, "keep the topic that was made")
}

// load makes the producers for a topic.
func (o *loadOptions) load(t benchTopic) (*load, error) {
	codec, err := client.ParseCodec(o.codec)
	if err != nil {
		return nil, usagef("-z %q: want none, gzip, snappy, lz4 or zstd", o.codec)
	}
	acks, err := client.ParseAcks(o.acks)
	if err != nil {
		return nil, usagef("--acks %q: want committed or buffered", o.acks)
	}
	shape, err := newBatchShape(int64(o.recordSize), int64(o.batchSize), o.batchRecords, codec)
	if err != nil {
		return nil, err
	}
	if o.spread > t.partitions || o.spread < 0 {
		return nil, usagef("--spread %d: the topic has %d partitions", o.spread, t.partitions)
	}
	if o.idempotent && (o.spread > 0 || acks == client.AcksBuffered) {
		return nil, usagef("--idempotent goes with neither --spread nor --acks buffered")
	}
	return &load{topic: t.name, partitions: t.partitions, shape: shape, producers: o.producers, inFlight: o.inFlight,
		acks: acks, spread: o.spread, rate: o.rate}, nil
}

// String says what is sent.
func (o *loadOptions) String() string {
	batches := o.batchSize.String() + " batches"
	if o.batchRecords > 0 {
		batches = fmt.Sprintf("%d records a batch", o.batchRecords)
	}
	if o.spread > 0 {
		batches = fmt.Sprintf("one for each of %d partitions a request", o.spread)
	}
	text := fmt.Sprintf("%s records, %s, %d producers x %d in flight, %s", o.recordSize.String(), batches, o.producers, o.inFlight, o.acks)
	if o.codec != "none" {
		text += ", " + o.codec
	}
	if o.idempotent {
		text += ", idempotent"
	}
	return text
}

// limitOptions are the flags that end a run.
type limitOptions struct {
	duration time.Duration
	records  int64
	bytes    byteSize
}

func (o *limitOptions) register(f *pflag.FlagSet) {
	f.DurationVar(&o.duration, "duration", 0, "how long (default 10s, if neither --records nor --bytes is given)")
	f.Int64Var(&o.records, "records", 0, "end after so many records")
	f.Var(&o.bytes, "bytes", "end after so many bytes")
}

// limit returns the bound of a run; there is always one.
func (o *limitOptions) limit() limit {
	l := limit{o.duration, o.records, int64(o.bytes)}
	if l == (limit{}) {
		l.duration = 10 * time.Second
	}
	return l
}

// produceReport is what `varve bench produce` prints.
type produceReport struct {
	Bench string `json:"bench"`
	Topic string `json:"topic"`
	Load  string `json:"load"`
	loadResult
	Costs costs `json:"costs"`
}

func (r *produceReport) text() string {
	return fmt.Sprintf("produce to %s: %s\n%s%s", r.Topic, r.Load, r.loadResult.text(), r.Costs.text())
}

func newBenchProduceCommand(a *app) *cobra.Command {
	var o loadOptions
	var end limitOptions
	var warmUp time.Duration
	cmd := &cobra.Command{
		Use:   "produce [TOPIC]",
		Short: "Append to a topic, as fast as it goes or at a rate",
		Long: `Append batches that were built before, so that a gateway is measured and not a producer. Without
TOPIC it makes one and deletes it at the end.`,
		Example: `  varve bench produce
  varve bench produce --producers 1000 --record-size 100 --batch-records 1
  varve bench produce --partitions 10000 --spread 10000 --record-size 100 --producers 1`,
		Args:              atMostOneTopic,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.benchProduce(cmd.Context(), topicArgument(args), &o, end.limit(), warmUp)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	o.register(cmd.Flags())
	end.register(cmd.Flags())
	cmd.Flags().DurationVar(&warmUp, "warm-up", 0, "produce for so long first, without counting")
	completeWith(cmd, "acks", "committed", "buffered")
	completeWith(cmd, "compression", "none", "gzip", "snappy", "lz4", "zstd")
	return cmd
}

func atMostOneTopic(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return usagef("want one topic, got %d: %s", len(args), strings.Join(args, " "))
	}
	return nil
}

func topicArgument(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) benchProduce(ctx context.Context, name string, o *loadOptions, end limit, warmUp time.Duration) (*produceReport, error) {
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
	l, err := o.load(topic)
	if err != nil {
		return nil, err
	}
	run := func(ctx context.Context, end limit) (loadResult, error) { return l.throughClient(ctx, c, end) }
	if !o.throughClient {
		w := a.newWire(a.servers[0], o.producers*o.inFlight)
		defer w.close()
		l.send = w.produce
		if o.idempotent {
			l.idempotent = w.initProducer
		}
		if err := l.prepare(ctx); err != nil {
			return nil, err
		}
		run = l.run
	}
	if warmUp > 0 {
		if _, err := run(ctx, limit{duration: warmUp}); err != nil {
			return nil, err
		}
	}
	m, err := startMeter(ctx, c)
	if err != nil {
		return nil, err
	}
	result, err := run(ctx, end)
	if err != nil {
		return nil, err
	}
	used, err := m.stop(ctx, result.Bytes)
	return &produceReport{Bench: "produce", Topic: topic.name, Load: o.String(), loadResult: result, Costs: used}, err
}

// initProducer asks for a producer id.
func (w *wire) initProducer(ctx context.Context) (batch.BuildOptions, error) {
	answer, err := w.call(ctx, varvev1connect.LogServiceInitProducerProcedure, nil)
	if err != nil {
		return batch.NoProducer, err
	}
	var r varvev1.InitProducerResponse
	if err := proto.Unmarshal(answer, &r); err != nil {
		return batch.NoProducer, fmt.Errorf("the answer to InitProducer is malformed: %w", err)
	}
	return batch.BuildOptions{ProducerID: r.GetProducerId(), ProducerEpoch: int16(r.GetProducerEpoch())}, nil
}
