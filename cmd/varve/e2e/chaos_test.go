package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/cmd/varve/e2e/chaosproxy"
)

// TestChaos has several gateways on one bucket and one table, between which and them faulty proxies stand, kills
// them, stops them, takes their disks away and has them come and go, while clients append and follow through all of
// them. In the end all that was acked is there, once. It runs alone, for it takes the whole machine.
func TestChaos(t *testing.T) {
	r := newRandom(t)
	began := time.Now()
	// Posts that stand empty at first, for those that join; and one for a process that only merges.
	spare, compactors := 0, 0
	if *fleetFlag > 1 {
		spare, compactors = 2, 1
	}
	f := newFleet(t, r, *fleetFlag+spare, compactors, append([]string{"--lease-time", chaosLease.String(), "--flush-interval", "100ms",
		"--drain-timeout", chaosDrain.String()}, upkeepPaces...)...)
	s := newSupervisor(t, fork(r), f, *fleetFlag+compactors)
	for _, p := range slices.Concat(f.posts[:*fleetFlag], f.posts[*fleetFlag+spare:]) {
		s.start(p)
	}
	s.until("gateways that serve", chaosDrain, func() bool { return f.inState(serving) == s.wanted })

	found := newAnomalies()
	l := newStorm(t, f, found)
	c := l.client(t, 0)
	makeTopic(t, c, topic, chaosPartitions)
	followers := followFleet(t, f, found, fork(r))
	l.start(t, r)
	going := l.startGoing(t, c, fork(r))
	f.setFaults(true)
	s.run(*chaosFlag)
	disturbed := time.Now()
	s.heal()
	// A while of peace with all clients: what was broken for good shows.
	s.until("appends after the disturbances", givenUp, func() bool { return l.livelySince(disturbed) })
	l.finish(t)
	s.recover()
	s.startAll()
	log := readLog(t, c)
	unknownFound, lost := l.judge(log.values, found)
	l.judgeFences(log.values[fencedPartition])
	lookups := l.judgeTimes(t, fork(r), c, log.times)
	streams := followers.judge(log.values)
	l.judgeGoing(t, going, c, fork(r))
	leaks := f.judgeLeaks(t, c, found)
	verified := verify(t, f.reader(r))
	s.drainAll()
	lastLook(t, s, log)
	found.report(t)

	report := &chaosReport{supervisor: s, storm: l, log: log, took: time.Since(began), unknownFound: unknownFound, lost: lost,
		lookups: lookups, streams: streams, verified: verified, going: going, leaks: leaks}
	t.Log(report.text())
	report.judge(t)
}

// followFleet has a follower on every gateway, and one that moves from one to the next.
func followFleet(t *testing.T, f *fleet, found *anomalies, r interface{ IntN(int) int }) *followers {
	all := newFollowers(t)
	all.seen.found = found
	ctx, cancel := context.WithCancel(context.Background())
	all.cancel = cancel
	var partitions []int32
	for p := range int32(chaosPartitions) {
		partitions = append(partitions, p)
	}
	for _, p := range f.posts {
		all.add(ctx, &follower{name: fmt.Sprintf("gateway %d", p.number), partitions: partitions, url: p.url, pause: afterFailure})
	}
	all.add(ctx, &follower{name: "any gateway", partitions: partitions, pause: afterFailure, url: func() string {
		return f.posts[r.IntN(len(f.posts))].url()
	}})
	return all
}

// wholeLog is a topic, by partition and offset.
type wholeLog struct {
	values map[int32][]string
	times  map[int32][]int64 // ms
	took   time.Duration     // to read it
}

func (l *wholeLog) records() (n int) {
	for _, values := range l.values {
		n += len(values)
	}
	return n
}

// readLog reads the topic to its end. Offsets are dense from 0.
func readLog(t *testing.T, c *client.Client) *wholeLog {
	t.Helper()
	// The records lie in many small spans, which are read one by one.
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience+*chaosFlag)
	defer cancel()
	began := time.Now()
	consumer, err := c.NewConsumer(client.ConsumerConfig{Topic: topic, End: client.Latest()})
	if err != nil {
		t.Fatal(err)
	}
	log := &wholeLog{values: make(map[int32][]string), times: make(map[int32][]int64)}
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			t.Fatalf("after %d records: %v", log.records(), err)
		}
		p := record.Partition
		if next := int64(len(log.values[p])); record.Offset != next {
			t.Fatalf("partition %d: offset %d where %d should be", p, record.Offset, next)
		}
		log.values[p], log.times[p] = append(log.values[p], string(record.Value)), append(log.times[p], record.Timestamp.UnixMilli())
	}
	log.took = time.Since(began)
	return log
}

// lastLook reads all of it again through a gateway that has nothing of its own, when all others are gone.
func lastLook(t *testing.T, s *supervisor, before *wholeLog) {
	t.Helper()
	p := s.any(down)
	p.insert(s.fleet.newDisk())
	s.start(p)
	s.until("a gateway on a fresh disk", chaosDrain, s.settled)
	c, err := client.New(client.Config{Servers: []string{p.url()}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if now := readLog(t, c); !maps.EqualFunc(before.values, now.values, slices.Equal) {
		t.Errorf("a fresh gateway reads %d records, before that there were %d, or they differ", now.records(), before.records())
	}
	s.drainAll()
}

// verify runs varve verify through a gateway, and returns its summary.
func verify(t *testing.T, p *post) string {
	t.Helper()
	out, said, status := runWithin(t, 2*patience+*chaosFlag, p.env, "verify", "--deep", "-o", "json", "--server", p.url())
	if status != 0 {
		t.Errorf("varve verify: exit status %d\n%s%s", status, out, said)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

// livelySince says whether every partition took appends after a moment.
func (s *storm) livelySince(moment time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range int32(chaosPartitions) {
		if !s.commits[p].After(moment) {
			return false
		}
	}
	return true
}

// chaosReport is the account of a run.
type chaosReport struct {
	*supervisor
	storm              *storm
	log                *wholeLog
	took               time.Duration
	unknownFound, lost int
	lookups, streams   int
	verified, leaks    string
	going              *going
}

func (c *chaosReport) text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%d processes and %d addresses, disturbed for %s; %s in all; lease time %s", c.wanted, len(c.fleet.posts), *chaosFlag, c.took.Round(time.Second), chaosLease)
	b.WriteString("operations\n" + c.storm.table())
	line("  %d unknown outcomes turned out to be there; %d acked as buffered are gone with their disks, as they may; %d set a fencing token",
		c.unknownFound, c.lost, len(c.storm.fences))
	line("  %d records in %d partitions, read in %s; followers opened %d streams; %d reads of what was just acked, %d lookups by time", c.log.records(), len(c.log.values), c.log.took.Round(time.Millisecond),
		c.streams, c.storm.checks, c.lookups)
	var silences []string
	for _, p := range slices.Sorted(maps.Keys(c.storm.silences)) {
		silences = append(silences, c.storm.silences[p].Round(10*time.Millisecond).String())
	}
	line("  longest time without a committed append, by partition: %s", strings.Join(silences, ", "))
	line("topics whose records go: %s", c.going.text())
	line("beside that, by themselves: %s", inOrder(c.done()))
	line("bucket: %s", c.leaks)
	line("disturbances: %s", inOrder(c.fired))
	requests, counts := c.fleet.faults()
	for _, p := range []chaosproxy.Protocol{chaosproxy.S3, chaosproxy.DynamoDB} {
		line("%s: %d requests; faults: %s", p, requests[p], counts[p].Text(p))
	}
	line("slowest start %s, slowest drain %s", c.slowestStart.Round(time.Millisecond), c.slowestDrain.Round(time.Millisecond))
	line("what appends were told when they failed: %s", c.storm.told())
	line("what gateways warned of: %s", inOrder(c.warnings()))
	line("verify: %s", c.verified)
	return b.String()
}

// warnings counts the lines of gateways above INFO.
func (s *supervisor) warnings() map[string]int {
	counts := make(map[string]int)
	for _, p := range s.launched {
		for _, said := range p.said.list() {
			if said.Level == "WARN" || said.Level == "ERROR" {
				counts[said.Level+" "+said.Message]++
			}
		}
	}
	return counts
}

// alarms are what no gateway may ever say, whatever happens to it: of damage where there is none, of errors that nobody foresaw.
var alarms = []string{"internal error", "data is damaged or gone", "a span is damaged", "a partition names an object that counted as garbage"}

// alarming lists what gateways said of that.
func (s *supervisor) alarming() (list []string) {
	for _, p := range s.launched {
		for _, said := range p.said.list() {
			if slices.ContainsFunc(alarms, func(alarm string) bool { return strings.HasPrefix(said.Message, alarm) }) {
				list = append(list, said.Text)
			}
		}
	}
	return list
}

// done adds up what gateways say that they did to the log.
func (s *supervisor) done() map[string]int {
	counts := make(map[string]int)
	for _, p := range s.launched {
		for _, said := range p.said.list() {
			switch said.Message {
			case "garbage collected":
				counts["objects collected"] += said.Objects
				counts["rows collected"] += said.Rows
				counts["gateways collected"] += said.Gateways
			case "compacted a partition by key":
				counts["passes by key"]++
				counts["records taken out by key"] += said.Dropped
			case "the rows of a removed topic are gone":
				counts["topics removed"]++
			}
		}
	}
	return counts
}

// judge fails a run that shows nothing.
func (c *chaosReport) judge(t *testing.T) {
	t.Helper()
	count := func(match func(*operation) bool) int { return c.storm.sum(match) }
	for k := range kinds {
		all := count(func(op *operation) bool { return op.kind == k })
		done := count(func(op *operation) bool { return op.kind == k && (op.outcome == confirmed || op.beaten) })
		if acked := count(func(op *operation) bool { return op.kind == k && op.outcome == confirmed }); acked == 0 || 2*done < all {
			t.Errorf("of %d %s appends %d succeeded and %d were answered as they should: the run shows nothing", all, k, acked, done)
		}
	}
	for i, said := range c.alarming() {
		if i < examplesOfEach {
			t.Errorf("a gateway said: %s", said)
		}
	}
	if *chaosFlag < time.Minute {
		return // a short run by hand need not see everything
	}
	for _, d := range disturbances {
		if c.fired[d.name] == 0 && (*fleetFlag > 1 || d.name != "leave" && d.name != "join") {
			t.Errorf("no %s: the run shows nothing", d.name)
		}
	}
	_, counts := c.fleet.faults()
	for p, n := range counts {
		for _, f := range n.Missing(p, chaosproxy.DefaultRates(p)) {
			t.Errorf("%s: the fault %q never happened: the run shows nothing", p, f)
		}
	}
	done := c.done()
	for what, n := range map[string]int{
		"object was collected": done["objects collected"], "record was taken out by key": done["records taken out by key"], "topic came and went": int(c.going.passing),
		"partition was merged when somebody asked": int(c.going.merged), "outcome was unknown": count(func(op *operation) bool { return op.outcome == unknown }), "repetition was recognised": c.storm.repeats,
		"read of what was just acked": c.storm.checks, "lookup by time during the run": len(c.storm.samples), "fencing token was set": len(c.storm.fences),
	} {
		if n == 0 {
			t.Errorf("no %s: the run shows nothing", what)
		}
	}
}
