package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments/batch"
)

// requestTime is how long clients wait for one answer.
const requestTime = 5 * time.Second

// workload is the clients of a run.
type workload struct {
	*Cluster
	history    *History
	dice       *dice
	partitions []Partition
	serial     atomic.Int64
	// over is closed when nothing new is to be asked for any more.
	over     chan struct{}
	busy     sync.WaitGroup // clients that append and ask
	follows  sync.WaitGroup
	unfollow context.CancelFunc
	keyLog   keyLog
}

func newWorkload(c *Cluster) *workload {
	w := &workload{Cluster: c, history: NewHistory(), dice: newDice(c.options.Seed, "workload"), over: make(chan struct{}), keyLog: keyLog{sent: make(map[string]bool)}}
	for t := range c.options.Topics {
		for n := range c.options.Partitions {
			w.partitions = append(w.partitions, Partition{fmt.Sprintf("t%d", t), int32(n)})
		}
	}
	w.partitions = append(w.partitions, raced)
	return w
}

// raced is the partition in which conditional appends, fences and reads meet; others seldom.
var raced = Partition{"raced", 0}

// somewhere is where an append goes that is not about a partition's state.
func (w *workload) somewhere(c *caller) Partition {
	if c.dice.chance(30) {
		return raced
	}
	return pick(c.dice, w.partitions[:len(w.partitions)-1])
}

// trimmed is the one whose beginning goes away; it takes no part in the other questions.
func (w *workload) trimmed() (Partition, bool) {
	return w.partitions[0], len(w.partitions) > 3
}

// topics are those that stay, with their numbers of partitions.
func (w *workload) topics() map[string]int32 {
	counts := make(map[string]int32)
	for _, p := range w.partitions {
		counts[p.Topic]++
	}
	return counts
}

// create makes the topics, and returns once they are there.
func (w *workload) create() error {
	c := w.newCaller("admin")
	for topic, partitions := range w.topics() {
		for tries := 0; ; tries++ {
			ctx, cancel := context.WithTimeout(context.Background(), requestTime)
			request := &varvev1.CreateTopicRequest{Name: topic, Partitions: partitions, IfNotExists: true}
			if topic == raced.Topic { // by the gateways' wall clocks, which disagree
				request.Config = map[string]string{"timestamp.type": "append"}
			}
			if topic == w.partitions[0].Topic && w.options.KeepBytes > 0 {
				request.Config = map[string]string{"retention.bytes": fmt.Sprint(w.options.KeepBytes)}
			}
			_, err := c.topics(c.some()).CreateTopic(ctx, request)
			cancel()
			if err == nil {
				break
			}
			if tries > 1000 {
				return fmt.Errorf("create topic: %w", err)
			}
			time.Sleep(200 * time.Millisecond)
		}
	}
	return nil
}

// start runs all clients.
func (w *workload) start() {
	run := func(kind string, count int, do func(*caller)) {
		for i := range count {
			c := w.newCaller(fmt.Sprintf("%s%d", kind, i))
			w.busy.Go(func() { do(c) })
		}
	}
	run("idempotent", 2, w.idempotent)
	run("plain", 2, w.plain)
	run("buffered", 2, w.buffered)
	run("racer", 3, w.race)
	run("fencer", 1, w.fence)
	run("tail", 2, w.tail)
	run("fetch", 2, w.fetch)
	run("churner", 1, w.churn)
	run("keyer", 1, w.key)
	if _, yes := w.trimmed(); yes {
		run("trimmer", 1, w.trim)
	}
	var ctx context.Context
	ctx, w.unfollow = context.WithCancel(context.Background())
	for _, h := range w.present() {
		for topic, partitions := range w.topics() {
			c := w.newCaller(fmt.Sprintf("follower of %s by %s", topic, h.name))
			w.follows.Go(func() { w.follow(ctx, c, h, topic, partitions) })
		}
	}
}

// finish ends what clients ask for, and waits for their last answers.
func (w *workload) finish() {
	close(w.over)
	w.busy.Wait()
}

// think pauses between two requests. It returns false when the phase is over. In an outage of hours
// clients have become patient.
func (w *workload) think(c *caller, most time.Duration) bool {
	if time.Since(w.history.began) > time.Minute {
		most = 10 * time.Minute
	}
	t := time.NewTimer(c.dice.between(most/10, most))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.over:
		return false
	}
}

// slow is how long clients think that change something.
func (w *workload) slow(most time.Duration) time.Duration {
	return time.Duration(w.options.Slow) * most
}

// values makes up records that are like no others.
func (w *workload) values(c *caller) []string {
	var list []string
	for range 1 + c.dice.upTo(3) {
		list = append(list, fmt.Sprintf("%s-%d", c.name, w.serial.Add(1)))
	}
	return list
}

// timestamp is in no particular order.
func (w *workload) timestamp(c *caller) int64 {
	return time.Now().UnixMilli() - int64(c.dice.upTo(5000))
}

// records encodes values as a batch.
func (w *workload) records(c *caller, values []string) []byte {
	b := batch.NewBuilder(batch.None)
	for _, v := range values {
		if err := b.Append(batch.Record{Timestamp: w.timestamp(c), Value: []byte(v)}); err != nil {
			panic(err) // they are short
		}
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		panic(err)
	}
	return data
}

// append sends one batch once, to any gateway.
func (w *workload) append(c *caller, op *Op) { w.appendTo(c, c.some(), op) }

func (w *workload) appendTo(c *caller, h *host, op *Op) {
	op.Client, op.Gateway, op.Values = c.name, h.name, w.values(c)
	req := &varvev1.ProduceRequest{Topic: op.Topic, Partition: &op.Number, RecordBatch: w.records(c, op.Values), ExpectedOffset: op.Expected, FencingToken: op.Token}
	if op.Kind == Buffered {
		req.Acks = varvev1.Acks_ACKS_BUFFERED
		op.Disks = append(op.Disks, w.diskOf(h))
	}
	w.history.begin(op)
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	res, err := c.log(h).Produce(ctx, req)
	if op.Kind == Buffered {
		op.Disks = append(op.Disks, w.diskOf(h))
	}
	outcome, info := judge(err)
	if outcome == Done && op.Kind != Buffered {
		op.Base = res.GetResults()[0].GetBaseOffset()
	}
	w.history.end(op, outcome, info.GetReason())
	if info.GetReason() == offsetMismatch && info.ActualOffset != nil {
		op.Next = info.GetActualOffset()
	}
}

func (w *workload) plain(c *caller) {
	for w.think(c, w.slow(300*time.Millisecond)) {
		w.append(c, &Op{Kind: Plain, Partition: w.somewhere(c)})
	}
}

func (w *workload) buffered(c *caller) {
	for w.think(c, w.slow(300*time.Millisecond)) {
		w.append(c, &Op{Kind: Buffered, Partition: w.somewhere(c)})
	}
}

// race appends where it believes the end to be, as do others.
func (w *workload) race(c *caller) {
	expected := int64(0)
	for w.think(c, w.slow(800*time.Millisecond)) {
		op := &Op{Kind: Conditional, Partition: raced, Expected: new(int64)}
		*op.Expected = expected
		w.append(c, op)
		switch {
		case op.Outcome == Done:
			expected = op.Base + int64(len(op.Values))
		case op.Reason == offsetMismatch:
			expected = op.Next
		}
	}
}

// fence sets tokens and appends with them, and with those of before.
func (w *workload) fence(c *caller) {
	token := ""
	for round := 0; w.think(c, w.slow(time.Second)); round++ {
		if c.dice.chance(3) {
			h := c.some()
			next := fmt.Sprintf("%s-%d", c.name, round)
			op := &Op{Kind: Fence, Client: c.name, Gateway: h.name, Partition: raced, Token: &next}
			if c.dice.chance(2) {
				current := token
				op.Current = &current
			}
			w.history.begin(op)
			ctx, cancel := context.WithTimeout(context.Background(), requestTime)
			res, err := c.log(h).Fence(ctx, &varvev1.FenceRequest{Topic: op.Topic, Partition: op.Number, Token: next, CurrentToken: op.Current})
			cancel()
			outcome, info := judge(err)
			op.Next = res.GetNextOffset()
			w.history.end(op, outcome, info.GetReason())
			if outcome != No {
				token = next
			}
			continue
		}
		named := token
		w.append(c, &Op{Kind: Fenced, Partition: raced, Token: &named})
	}
}

// tail asks for ends, as of now.
func (w *workload) tail(c *caller) {
	for w.think(c, 800*time.Millisecond) {
		h := c.some()
		p := raced
		if c.dice.chance(2) {
			p = pick(c.dice, w.partitions)
		}
		op := w.history.begin(&Op{Kind: Tail, Client: c.name, Gateway: h.name, Partition: p})
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		res, err := c.log(h).ListOffsets(ctx, &varvev1.ListOffsetsRequest{Topic: op.Topic, Partitions: []int32{op.Number}, Linearizable: true,
			Query: &varvev1.ListOffsetsRequest_Latest{Latest: true}})
		cancel()
		outcome, info := judge(err)
		if outcome == Done {
			op.Next = res.GetOffsets()[0].GetEndOffset()
		}
		w.history.end(op, outcome, info.GetReason())
	}
}

// fetch reads once, now here and now there, and tells what it was told before.
func (w *workload) fetch(c *caller) {
	seen := make(map[Partition]int64)
	for w.think(c, 500*time.Millisecond) {
		h, p := c.some(), pick(c.dice, w.partitions)
		op := w.history.begin(&Op{Kind: Read, Client: c.name, Gateway: h.name, Partition: p, Watermark: seen[p]})
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		res, err := c.log(h).Fetch(ctx, &varvev1.FetchRequest{Topic: op.Topic, Partition: op.Number, SeenHighWatermark: seen[p],
			Start: &varvev1.Place{At: &varvev1.Place_BeforeEnd{BeforeEnd: int64(c.dice.upTo(20))}}})
		cancel()
		outcome, info := judge(err)
		op.Next = res.GetHighWatermark()
		w.history.end(op, outcome, info.GetReason())
		seen[p] = max(seen[p], op.Next)
	}
}

// idempotent sends one batch after the other through the Go client, which repeats them.
func (w *workload) idempotent(c *caller) {
	cl := c.client(c.some())
	defer cl.Close()
	// One sender: two that ask for their first producer id at once would wait on a mutex.
	producer, err := cl.NewProducer(client.ProducerConfig{Linger: client.NoLinger, DeliveryTimeout: 30 * time.Second, Partitioning: client.PartitionAsGiven, MaxInFlight: 1})
	if err != nil {
		panic(err)
	}
	defer producer.Close(context.Background())
	var answers sync.WaitGroup
	for order := 0; w.think(c, w.slow(250*time.Millisecond)); order++ {
		p := w.somewhere(c)
		for burst := range 1 + c.dice.upTo(3) {
			op := &Op{Kind: Idempotent, Client: c.name, Partition: p, Order: 10*order + burst,
				Values: []string{fmt.Sprintf("%s-%d", c.name, w.serial.Add(1))}}
			w.history.begin(op)
			answers.Add(1)
			rec := client.Record{Topic: p.Topic, Partition: p.Number, Value: []byte(op.Values[0]), Timestamp: time.UnixMilli(w.timestamp(c))}
			ctx, cancel := context.WithTimeout(context.Background(), requestTime)
			err := producer.Produce(ctx, rec, func(ack client.Ack, err error) {
				defer answers.Done()
				w.answered(op, ack, err)
			})
			cancel()
			if err != nil {
				w.history.end(op, No, err.Error())
				answers.Done()
			}
		}
		answers.Wait()
	}
}

func (w *workload) answered(op *Op, ack client.Ack, err error) {
	var failed *client.Error
	switch {
	case err == nil:
		op.Base = ack.BaseOffset
		w.history.end(op, Done, "")
	case errors.As(err, &failed) && !failed.UnknownOutcome:
		w.history.end(op, No, failed.Error())
	default:
		w.history.end(op, Unknown, err.Error())
	}
}

// trim moves a log's start up.
func (w *workload) trim(c *caller) {
	p, _ := w.trimmed()
	for w.think(c, 8*time.Second) {
		h := c.some()
		op := w.history.begin(&Op{Kind: Trim, Client: c.name, Gateway: h.name, Partition: p})
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		_, err := c.topics(h).TrimTopic(ctx, &varvev1.TrimTopicRequest{Name: p.Topic, Partitions: []int32{p.Number},
			To: &varvev1.TrimPlace{At: &varvev1.TrimPlace_BeforeEnd{BeforeEnd: int64(c.dice.upTo(40))}}})
		cancel()
		outcome, info := judge(err)
		w.history.end(op, outcome, info.GetReason())
	}
}

// churned is the partition of the topic that is deleted time and again.
var churned = Partition{"churned", 0}

// churn makes and deletes a topic of its own, time and again. What was answered before a topic was deleted
// must not be in the next one of its name.
func (w *workload) churn(c *caller) {
	p := churned
	var sent []*Op
	for w.think(c, 2*time.Second) {
		if !w.manage(c, Create, p) {
			continue
		}
		// A request whose sender has given up may be under way still: it names the topic that is there when
		// it arrives.
		sent = slices.DeleteFunc(sent, func(op *Op) bool { return op.Outcome != Unknown })
		for range 1 + c.dice.upTo(3) {
			op := &Op{Kind: Plain, Partition: p}
			w.append(c, op)
			sent = append(sent, op)
		}
		w.inspect(c, p, sent)
		for !w.manage(c, Delete, p) {
			if !w.think(c, 2*time.Second) {
				return
			}
		}
	}
}

func (w *workload) manage(c *caller, kind Kind, p Partition) bool {
	h := c.some()
	op := w.history.begin(&Op{Kind: kind, Client: c.name, Gateway: h.name, Partition: p})
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	var err error
	if kind == Create {
		_, err = c.topics(h).CreateTopic(ctx, &varvev1.CreateTopicRequest{Name: p.Topic, Partitions: 1, IfNotExists: true})
	} else {
		_, err = c.topics(h).DeleteTopic(ctx, &varvev1.DeleteTopicRequest{Name: p.Topic, IfExists: true})
	}
	outcome, info := judge(err)
	w.history.end(op, outcome, info.GetReason())
	return outcome == Done
}

// inspect reads a young topic: acked records are there, others were sent to this one.
func (w *workload) inspect(c *caller, p Partition, sent []*Op) {
	h := c.some()
	ctx, cancel := context.WithTimeout(context.Background(), requestTime)
	defer cancel()
	res, err := c.log(h).Fetch(ctx, &varvev1.FetchRequest{Topic: p.Topic, Partition: p.Number, Decode: true, Linearizable: true})
	if err != nil || res.GetNextOffset() != res.GetHighWatermark() { // it may end before what cannot be read now
		return
	}
	known := make(map[string]bool)
	for _, op := range sent {
		for _, v := range op.Values {
			known[v] = true
		}
	}
	found := make(map[string]int64)
	for _, r := range res.GetRecords() {
		v := string(r.GetValue())
		found[v] = r.GetOffset()
		if !known[v] {
			w.history.loose(UnheardOf, "%q of a deleted topic is in the next one of its name, at %d", v, r.GetOffset())
		}
	}
	for _, op := range sent {
		if at, ok := found[op.Values[0]]; op.Outcome == Done && (!ok || at != op.Base) {
			w.history.loose(LostWrite, "a linearizable read of a young topic has %v: %s", found, op)
		}
	}
}
