package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/varvelog/varve/client"
)

// TestKill kills a gateway under load again and again, at any moment of its life, and starts it
// again on the same folder. In the end all that was acked is there, once, and nothing that was
// refused.
func TestKill(t *testing.T) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			r := newRandom(t)
			lives := &lives{where: b.open(t), address: freeAddress(t)}
			killAgainAndAgain(t, r, lives)
		})
	}
}

func killAgainAndAgain(t *testing.T, r *rand.Rand, lives *lives) {
	began := time.Now()
	p := lives.launch(t).ready(t)
	lives.startTime = p.startTime
	l := newLoad(t, p.url())
	if _, _, err := l.client.CreateTopic(t.Context(), topic, client.CreateTopicOptions{Partitions: allPartitions}); err != nil {
		t.Fatal(err)
	}
	f := follow(t, p.url(), allPartitions)
	l.start(t, r)
	for range *killsFlag {
		lives.killSometime(t, r, p, l)
		p = lives.launch(t)
	}
	p.ready(t)
	// What the last life finds is judged only after one more with all clients.
	time.Sleep(moment(r, 200*time.Millisecond))
	l.finish(t)
	waitRecovered(t, l.client)
	p.stop(t)
	lives.bury(p)

	p = lives.launch(t).ready(t)
	logs := readAll(t, l.client)
	unknownFound := l.check(t, logs)
	streams := f.check(t, logs)
	p.stop(t)
	lives.bury(p)
	lives.report(t, l, logs, unknownFound, streams, time.Since(began))
}

// lives are the processes of one gateway, one after the other.
type lives struct {
	where   place
	address string

	starts, killedServing, killedStarting, killedAtWork int
	recovered, recoveredBefore                          int
	startTime                                           time.Duration // of the newest that came to serve
}

func (s *lives) launch(t *testing.T) *process {
	s.starts++
	return launch(t, s.where, s.address)
}

// killSometime kills the process: one time in four while it starts and recovers, else some time
// after it serves. The moment is what this is about, so it is slept for.
func (s *lives) killSometime(t *testing.T, r *rand.Rand, p *process, l *load) {
	if r.IntN(4) == 0 {
		time.Sleep(time.Duration(r.Float64() * float64(s.startTime)))
	} else {
		p.ready(t)
		s.startTime = p.startTime
		time.Sleep(30*time.Millisecond + moment(r, time.Second))
	}
	atWork := l.requests.Load() > 0
	p.kill()
	switch {
	case !p.isReady():
		s.killedStarting++
	case atWork:
		s.killedAtWork++
		s.killedServing++
	default:
		s.killedServing++
	}
	s.bury(p)
}

// moment is a random time up to limit, short ones more often: a process does most that is special
// when it begins.
func moment(r *rand.Rand, limit time.Duration) time.Duration {
	x := r.Float64()
	return time.Duration(x * x * float64(limit))
}

// bury adds up what a process said.
func (s *lives) bury(p *process) {
	for _, line := range p.said.find("recovered what was acked as buffered") {
		s.recovered += line.Appended
		s.recoveredBefore += line.Before
	}
}

// report prints the account, and fails a run that shows nothing.
func (s *lives) report(t *testing.T, l *load, logs map[int32][]string, unknownFound, streams int, took time.Duration) {
	t.Helper()
	records := 0
	for _, values := range logs {
		records += len(values)
	}
	t.Logf("%d starts, %d kills: %d while serving (%d of them with appends open), %d while starting; %s\n"+
		"operations\n%s  %d unknown outcomes turned out to be there\n"+
		"records at the end: %d in %d partitions; followers opened %d streams\n"+
		"batches acked as buffered that starts recovered: %d, and %d found to be committed already",
		s.starts, s.killedServing+s.killedStarting, s.killedServing, s.killedAtWork, s.killedStarting, took.Round(100*time.Millisecond),
		l.table(), unknownFound, records, len(logs), streams, s.recovered, s.recoveredBefore)
	count := func(k kind, o outcome) int {
		return l.sum(func(op *operation) bool { return op.kind == k && op.outcome == o })
	}
	for _, k := range []kind{plain, idempotent, conditional, buffered} {
		if count(k, confirmed) == 0 {
			t.Errorf("no %s append succeeded: the run shows nothing", k)
		}
	}
	for what, n := range map[string]int{
		"kill hit work": s.killedAtWork, "kill hit a start": s.killedStarting, "outcome was unknown": count(plain, unknown),
		"append was recovered": s.recovered, // whether a repetition is recognised is luck in so few kills
	} {
		// A short run by hand need not see everything.
		if n == 0 && *killsFlag >= 50 {
			t.Errorf("no %s: the run shows nothing", what)
		}
	}
}

// waitRecovered waits until nothing of earlier lives is left to do: they are closed.
func waitRecovered(t *testing.T, c *client.Client) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		_, gateways, err := c.Gateways(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		left := ""
		live := 0
		for _, g := range gateways {
			switch g.State {
			case "closed":
			case "live":
				live++
			default:
				left += fmt.Sprintf(" %s is %s", g.ID, g.State)
			}
		}
		if left == "" && live == 1 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("recovery does not end: %d live gateways,%s", live, left)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// readAll reads the topic to its end: values by partition, in order of offset. Offsets are dense
// from 0.
func readAll(t *testing.T, c *client.Client) map[int32][]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	consumer, err := c.NewConsumer(client.ConsumerConfig{Topic: topic, End: client.Latest()})
	if err != nil {
		t.Fatal(err)
	}
	logs := make(map[int32][]string)
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if next := int64(len(logs[record.Partition])); record.Offset != next {
			t.Fatalf("partition %d: offset %d where %d should be", record.Partition, record.Offset, next)
		}
		logs[record.Partition] = append(logs[record.Partition], string(record.Value))
	}
	return logs
}
