package sim

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/verify"
)

// liveTime is how long everything may take to work again once nothing is wrong any more.
const liveTime = 2 * time.Minute

// Run makes one run and checks it. Call it in a synctest bubble, and [Result.Decide] outside of it. log may be nil.
func Run(o Options, log *slog.Logger) *Result {
	began := time.Now()
	c := newCluster(o, log)
	w := newWorkload(c)
	if err := w.create(); err != nil {
		w.history.loose(NotLive, "%v", err)
	}
	w.start()
	over := make(chan struct{})
	n := newNemesis(c, over)
	ended := make(chan struct{})
	go func() { n.run(); close(ended) }()
	time.Sleep(o.Length)
	close(over)
	<-ended
	c.ambushes.end()
	w.finish()
	c.heal()
	w.recover()
	w.unfollow()
	w.follows.Wait()
	if took := c.stop(); took > drainTime+time.Second {
		w.history.loose(NotLive, "a gateway took %s to leave", took)
	}
	w.verify()
	return w.result(Check(w.history), time.Since(began))
}

// recover is the liveness phase: appends to each partition through each gateway, followers at the
// end, the same log everywhere.
func (w *workload) recover() {
	c := w.newCaller("healer")
	began := time.Now()
	for _, p := range w.partitions {
		for _, h := range w.present() {
			w.appendUntil(c, h, p, began.Add(liveTime))
		}
	}
	time.Sleep(lateTime)
	w.awaitBuffered(c, began.Add(liveTime))
	w.settle(c, began.Add(liveTime))
	hosts := w.present()
	for _, p := range w.partitions {
		for i, h := range hosts {
			log, err := w.read(c, h, p)
			switch first := w.history.Logs[p]; {
			case err != nil:
				w.history.loose(NotLive, "read %s by %s: %v", p, h.name, err)
			case first == nil:
				w.history.Logs[p] = log
			case first.Start != log.Start || !slices.Equal(first.Records, log.Records):
				w.history.loose(ViewsDiffer, "%s: by %s %d–%d with %d records, by %s %d–%d with %d", p, hosts[0].name, first.Start, first.End, len(first.Records),
					h.name, log.Start, log.End, len(log.Records))
			}
			w.ask(c, hosts[i], p)
		}
	}
	w.checkKeyed(c)
	w.awaitFollowers(began.Add(liveTime))
}

// appendUntil appends until it succeeds.
func (w *workload) appendUntil(c *caller, h *host, p Partition, deadline time.Time) {
	for {
		op := &Op{Kind: Plain, Partition: p}
		w.appendTo(c, h, op)
		if op.Outcome == Done {
			return
		}
		if time.Now().After(deadline) {
			w.history.loose(NotLive, "append by %s still fails: %s", h.name, op)
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// awaitBuffered waits until whatever was acked as buffered, and is not lost, is there. Of a log whose beginning
// is gone followers know what was there.
func (w *workload) awaitBuffered(c *caller, deadline time.Time) {
	for {
		there := w.followed()
		for _, p := range w.partitions {
			if log, err := w.read(c, c.some(), p); err == nil {
				for _, r := range log.Records {
					there[r.Value] = true
				}
			}
		}
		missing := slices.ContainsFunc(w.history.Ops, func(op *Op) bool {
			return op.Kind == Buffered && op.Outcome == Done && op.Topic != churned.Topic && !there[op.Values[0]] && !op.excused() && !op.aside()
		})
		if !missing || time.Now().After(deadline) {
			return // the check says what is lost
		}
		time.Sleep(time.Second)
	}
}

// followed is what followers got.
func (w *workload) followed() map[string]bool {
	got := make(map[string]bool)
	w.history.mu.Lock()
	defer w.history.mu.Unlock()
	for _, f := range w.history.Follows {
		for _, p := range f.Polls {
			for _, r := range p.Records {
				got[r.Value] = true
			}
		}
	}
	return got
}

// settle waits until nothing more arrives: what is not known to clients may land late.
func (w *workload) settle(c *caller, deadline time.Time) {
	const quiet = 5 * time.Second
	ends := make(map[Partition]int64)
	for moved := true; moved && time.Now().Before(deadline); {
		moved = false
		for _, p := range w.partitions {
			log, err := w.read(c, c.some(), p)
			moved = moved || err != nil || log.End != ends[p]
			if err == nil {
				ends[p] = log.End
			}
		}
		time.Sleep(quiet)
	}
}

func (w *workload) awaitFollowers(deadline time.Time) {
	behind := func() bool {
		w.history.mu.Lock()
		defer w.history.mu.Unlock()
		return slices.ContainsFunc(w.history.Follows, func(f *Follow) bool {
			log := w.history.Logs[f.Partition]
			return log != nil && f.next < log.End
		})
	}
	for behind() && time.Now().Before(deadline) {
		time.Sleep(100 * time.Millisecond)
	}
	for _, f := range w.history.Follows {
		f.Complete = true
	}
}

// read reads a whole partition by one gateway.
func (w *workload) read(c *caller, h *host, p Partition) (*Log, error) {
	log := &Log{Partition: p}
	place := &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}}
	for failures := 0; ; {
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		res, err := c.log(h).Fetch(ctx, &varvev1.FetchRequest{Topic: p.Topic, Partition: p.Number, Start: place, Decode: true, Linearizable: true})
		cancel()
		if err != nil {
			if failures++; failures > 20 {
				return nil, err
			}
			time.Sleep(100 * time.Millisecond)
			continue
		}
		if len(log.Records) == 0 {
			log.Start = res.GetLogStartOffset()
		}
		for _, r := range res.GetRecords() {
			log.Records = append(log.Records, Record{r.GetOffset(), r.GetTimestamp(), string(r.GetValue())})
		}
		if res.GetNextOffset() >= res.GetHighWatermark() {
			log.End = res.GetHighWatermark()
			return log, nil
		}
		place = &varvev1.Place{At: &varvev1.Place_Offset{Offset: res.GetNextOffset()}}
	}
}

// ask looks up a few times.
func (w *workload) ask(c *caller, h *host, p Partition) {
	for range 3 {
		at := w.timestamp(c) - int64(c.dice.upTo(int(w.options.Length/time.Millisecond)))
		op := w.history.begin(&Op{Kind: Lookup, Client: c.name, Gateway: h.name, Partition: p, At: at})
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		res, err := c.log(h).ListOffsets(ctx, &varvev1.ListOffsetsRequest{Topic: p.Topic, Partitions: []int32{p.Number},
			Query: &varvev1.ListOffsetsRequest_AtOrAfter{AtOrAfter: at}})
		cancel()
		outcome, info := judge(err)
		if outcome == Done {
			op.Found, op.Base = res.GetOffsets()[0].GetFound(), res.GetOffsets()[0].GetOffset()
		}
		w.history.end(op, outcome, info.GetReason())
	}
}

// verify walks table and bucket.
func (w *workload) verify() {
	_, err := verify.Run(context.Background(), verify.Config{Store: w.Cluster.bucket, Table: w.rows, Deep: true}, func(f verify.Finding) {
		if f.Kind.Break() {
			w.history.loose(BrokenTable, "%s %s/%d %s %s: %s", f.Kind, f.Topic, f.Partition, f.Object, f.Row, f.Message)
		}
	})
	if err != nil {
		w.history.loose(BrokenTable, "verify: %v", err)
	}
}

// Result is what a run did and found.
type Result struct {
	Options   Options
	Simulated time.Duration
	Ops       map[Kind]map[Outcome]int
	Fired     map[Fault]int
	// Reasons of what was refused, or not known.
	Reasons   map[string]int
	Anomalies []Anomaly
	// Starts of gateways, and Ends that nobody had asked for.
	Starts int
	Ends   []string
	// Records there are, Lost those that were acked as buffered and went with a disk.
	Records, Lost int
	// Polls of followers.
	Polls int
	// Decided is how many histories of conditional appends and fences were found to be those of one log,
	// or not; Undecided those of which that could not be said in time.
	Decided, Undecided int
	// Paths that the gateways took.
	Paths map[Path]int
	// History of it all, and what faults of things there were, with their times.
	History  *History
	Episodes []string
}

func (w *workload) result(found []Anomaly, took time.Duration) *Result {
	r := &Result{Options: w.options, Simulated: took, Ops: make(map[Kind]map[Outcome]int), Fired: w.weather.fired, Reasons: make(map[string]int), Anomalies: found, Starts: w.started, Ends: w.ends, History: w.history, Episodes: w.weather.episodes}
	there := make(map[string]bool)
	for _, log := range w.history.Logs {
		r.Records += len(log.Records)
		for _, rec := range log.Records {
			there[rec.Value] = true
		}
	}
	for _, op := range w.history.Ops {
		if r.Ops[op.Kind] == nil {
			r.Ops[op.Kind] = make(map[Outcome]int)
		}
		r.Ops[op.Kind][op.Outcome]++
		if op.Outcome != Done {
			r.Reasons[shorten(op.Reason)]++
		}
		if op.Kind == Buffered && op.Outcome == Done && op.excused() && !there[op.Values[0]] {
			r.Lost++
		}
		if op.Kind == Buffered && op.Outcome == Done && !op.excused() && !there[op.Values[0]] && op.aside() {
			w.paths.count(setAside, 1)
		}
	}
	for _, f := range w.history.Follows {
		r.Polls += len(f.Polls)
	}
	r.Paths = w.paths.sum(w.meters.Deeds())
	return r
}

// Decide has the models judge the history. Each partition's may take so long.
func (r *Result) Decide(patience time.Duration) {
	found, decided, undecided := Models(r.History, patience)
	r.Anomalies, r.Decided, r.Undecided = append(r.Anomalies, found...), decided, undecided
}

// leastAppends is how many appends must succeed for a run to prove something.
const leastAppends = 20

// Idle lists why a run proves nothing: faults that were wanted and did not fire, hardly an append that
// succeeded.
func (r *Result) Idle() []string {
	var why []string
	for _, family := range r.Options.Faults {
		if !slices.ContainsFunc(faultsOf[family], func(f Fault) bool { return r.Fired[f] > 0 }) {
			why = append(why, fmt.Sprintf("no fault of %q fired", family))
		}
	}
	appended := 0
	for _, kind := range []Kind{Plain, Idempotent, Conditional, Fenced, Buffered} {
		appended += r.Ops[kind][Done]
	}
	if appended < leastAppends {
		why = append(why, fmt.Sprintf("only %d appends succeeded", appended))
	}
	return why
}

// faultsOf a family.
var faultsOf = map[Family][]Fault{
	TableCalls: {refused, vanished, lostAnswer, late, slow, ownEcho, stale}, BucketCalls: {refused, vanished, lostAnswer, late, slow, ownEcho},
	NetworkCalls: {refused, vanished, lostAnswer, slow, late, garbage, cutStream}, DiskCalls: {syncError, diskFull},
	Partitions: {severed, severedOne}, Outages: {tableOut, bucketOut, throttled, storm}, Kills: {killed, powerCut, allKilled, killedAtStep},
	Disks: {diskLost, diskMoved}, Pauses: {stopped, stoppedAtStep}, Churn: {drained, scaledOut, scaledIn, cutShort},
}

// shorten leaves of a reason what many have in common.
func shorten(reason string) string {
	for i, r := range reason {
		if r == ':' && i > 20 || i > 60 {
			return reason[:i]
		}
	}
	return reason
}
