package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/client"
)

// lookupOptions are the flags of bench lookup.
type lookupOptions struct {
	lookups, concurrency int
	records              int64
	recordSize           byteSize
	batchRecords         int
	partitions           int32
	keep                 bool
}

func newBenchLookupCommand(a *app) *cobra.Command {
	o := lookupOptions{recordSize: 100}
	cmd := &cobra.Command{
		Use:   "lookup [TOPIC]",
		Short: "Ask for offsets at random times",
		Long: `Ask for the first offset at or after random times over the topic's range, one partition a question, and then
the same questions again. Without TOPIC it makes one, whose records are a second apart, and deletes it
at the end.`,
		Args: atMostOneTopic, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.benchLookup(cmd.Context(), topicArgument(args), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.lookups, "lookups", 2000, "questions a pass")
	f.IntVar(&o.concurrency, "concurrency", 8, "questions at once")
	f.Int64Var(&o.records, "records", 1_000_000, "records of a topic that is made")
	f.Var(&o.recordSize, "record-size", "bytes of their values")
	f.IntVar(&o.batchRecords, "batch-records", 100, "records a batch")
	f.Int32Var(&o.partitions, "partitions", 4, "partitions of a topic that is made")
	f.BoolVar(&o.keep, "keep", false, "keep the topic that was made")
	return cmd
}

// lookupPass is one round of questions.
type lookupPass struct {
	Pass       string    `json:"pass"`
	Seconds    float64   `json:"seconds"`
	Rate       float64   `json:"lookups_per_second"`
	Answer     quantiles `json:"answer"`
	TableReads float64   `json:"table_reads_per_lookup"`
	Gets       float64   `json:"object_gets_per_lookup"`
	GetBytes   float64   `json:"object_get_bytes_per_lookup"`
	ServerCPU  float64   `json:"server_cpu_ms_per_lookup"`
}

// lookupReport is what `varve bench lookup` prints.
type lookupReport struct {
	Bench   string       `json:"bench"`
	Topic   string       `json:"topic"`
	Records int64        `json:"records"`
	Passes  []lookupPass `json:"passes"`
}

func (r *lookupReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "lookup of random times in %s, %d records\n", r.Topic, r.Records)
	for _, p := range r.Passes {
		fmt.Fprintf(&b, "  %-7s %.0f lookups/s   %s\n          each %.3f table reads, %.3f GETs of %s, %.3f ms of the server's CPU\n",
			p.Pass, p.Rate, p.Answer, p.TableReads, p.Gets, sizeText(uint64(p.GetBytes)), p.ServerCPU)
	}
	return b.String()
}

// question is one lookup.
type question struct {
	partition int32
	ms        int64
}

func (a *app) benchLookup(ctx context.Context, name string, o *lookupOptions) (*lookupReport, error) {
	if o.lookups < 1 || o.concurrency < 1 || o.concurrency > maxSenders || o.batchRecords < 1 {
		return nil, usagef("want at least one lookup and one record a batch, and 1 to %d lookups at once", maxSenders)
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
	w := a.newWire(a.servers[0], o.concurrency)
	defer w.close()
	if topic.made {
		if err := w.fillInOrder(ctx, topic, o); err != nil {
			return nil, err
		}
	}
	questions, records, err := ask(ctx, c, topic, o.lookups)
	if err != nil {
		return nil, err
	}
	r := &lookupReport{Bench: "lookup", Topic: topic.name, Records: records}
	for _, name := range []string{"first", "second"} {
		m, err := startMeter(ctx, c)
		if err != nil {
			return nil, err
		}
		pass, asked, err := w.lookUp(ctx, topic, questions, o.concurrency)
		if err != nil {
			return nil, err
		}
		used, err := m.stop(ctx, 0)
		if err != nil {
			return nil, err
		}
		if asked == 0 {
			break
		}
		each := func(n uint64) float64 { return float64(n) / float64(asked) }
		pass.Pass, pass.TableReads, pass.Gets, pass.GetBytes = name, each(used.TableReads), each(used.ObjectGets), each(used.ObjectGetBytes)
		pass.ServerCPU = used.ServerCPU * 1000 / float64(asked)
		r.Passes = append(r.Passes, pass)
	}
	return r, nil
}

// fillInOrder appends small batches of records that are a second apart, each partition's in order of time.
func (w *wire) fillInOrder(ctx context.Context, t benchTopic, o *lookupOptions) error {
	lo := loadOptions{recordSize: o.recordSize, batchRecords: o.batchRecords, producers: int(t.partitions) * 16, inFlight: 1,
		acks: "committed", codec: "none"}
	l, err := lo.load(t)
	if err != nil {
		return err
	}
	l.shape.step = 1000
	var batches atomic.Int64
	const first = 1_000_000_000_000 // September 2001
	l.clock = func() int64 {
		return first + (batches.Add(1)-1)/int64(t.partitions)*int64(o.batchRecords)*l.shape.step
	}
	l.send = w.produce
	if err := l.prepare(ctx); err != nil {
		return err
	}
	_, err = l.run(ctx, limit{records: o.records})
	return err
}

// ask makes questions over the range of each partition that has records.
func ask(ctx context.Context, c *client.Client, t benchTopic, count int) (questions []question, records int64, err error) {
	earliest, err := c.ListOffsets(ctx, t.name, client.EarliestOffset())
	if err != nil {
		return nil, 0, err
	}
	newest, err := c.ListOffsets(ctx, t.name, client.MaxTimestampOffset())
	if err != nil {
		return nil, 0, err
	}
	var full []int
	for i := range newest {
		if newest[i].Found {
			full = append(full, i)
			records += newest[i].EndOffset - newest[i].StartOffset
		}
	}
	if len(full) == 0 {
		return nil, 0, errors.New("the topic holds no records: append some, or leave out TOPIC")
	}
	for range count {
		i := full[rand.IntN(len(full))]
		from, to := earliest[i].Timestamp.UnixMilli(), newest[i].Timestamp.UnixMilli()
		questions = append(questions, question{earliest[i].Partition, from + rand.Int64N(max(1, to-from+1))})
	}
	return questions, records, nil
}

// lookUp asks all questions, or those that it can before ctx ends.
func (w *wire) lookUp(ctx context.Context, t benchTopic, questions []question, concurrency int) (lookupPass, int64, error) {
	times := newLatencies()
	var next, asked atomic.Int64
	group, running := errgroup.WithContext(ctx)
	began := time.Now()
	for range concurrency {
		group.Go(func() error {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(questions)) || running.Err() != nil {
					return nil
				}
				q := questions[i]
				request, err := proto.Marshal(&varvev1.ListOffsetsRequest{Topic: t.name, Partitions: []int32{q.partition},
					Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: q.ms}})
				if err != nil {
					return err
				}
				called := time.Now()
				if _, err := w.call(running, varvev1connect.LogServiceListOffsetsProcedure, request); err != nil {
					if ctx.Err() != nil {
						return nil
					}
					return err
				}
				times.add(time.Since(called))
				asked.Add(1)
			}
		})
	}
	err := group.Wait()
	elapsed := time.Since(began).Seconds()
	return lookupPass{Seconds: elapsed, Rate: float64(asked.Load()) / elapsed, Answer: times.quantiles()}, asked.Load(), err
}
