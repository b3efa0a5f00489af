package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/varvelog/varve/client"
)

// demo is a run.
type demo struct {
	options  options
	backends *backends
	balancer *balancer
	notes    io.Writer
	ledger   *ledger
	load     *load
	gateways []*gateway // in the order of their starts
	started  int
	// firstAcks are from the start of each process until its first acked append, under load.
	firstAcks  []time.Duration
	drains     []time.Duration
	epochs     uint64 // sum over all partitions, which each move raises by one
	statistics *client.Client
}

func newDemo(o options, b *backends, notes io.Writer) (*demo, error) {
	balancer, err := newBalancer()
	if err != nil {
		return nil, err
	}
	c, err := client.New(client.Config{Servers: []string{balancer.url}})
	if err != nil {
		return nil, err
	}
	return &demo{options: o, backends: b, balancer: balancer, notes: notes, ledger: newLedger(), statistics: c}, nil
}

// close ends what still runs.
func (d *demo) close() {
	for len(d.gateways) > 0 {
		if err := d.stopGateway(d.gateways[0]); err != nil {
			fmt.Fprintln(d.notes, err)
		}
	}
	d.statistics.Close()
	d.balancer.close()
}

func (d *demo) run(ctx context.Context) error {
	if err := d.open(ctx); err != nil {
		return err
	}
	for _, s := range []struct {
		name, gateways string
		do             func(context.Context) error
	}{
		{"one gateway", "1", d.begin},
		{"three join", "1 → 4", func(ctx context.Context) error { return d.scale(ctx, 4) }},
		{"four gateways", "4", d.keep},
		{"three leave", "4 → 1", func(ctx context.Context) error { return d.scale(ctx, 1) }},
		{"one gateway again", "1", d.keep},
		{"two join", "1 → 3", func(ctx context.Context) error { return d.scale(ctx, 3) }},
		{"rolling restart", "3, one at a time", d.roll},
		{"three gateways", "3", d.keep},
	} {
		if err := d.phase(ctx, s.name, s.gateways, s.do); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := d.load.halt(); err != nil {
		return err
	}
	if err := d.ledger.count(ctx, d.balancer.url); err != nil {
		return err
	}
	d.ledger.settle()
	return d.scale(ctx, 0)
}

// open starts the first gateway and makes the topic.
func (d *demo) open(ctx context.Context) error {
	// There is no load yet: somebody has to make the first append that a start waits for.
	opened := make(chan error, 1)
	go func() { opened <- d.firstAppend(ctx) }()
	_, _, err := d.startGateway(ctx, 1, "")
	d.started = 1
	return errors.Join(err, <-opened)
}

// begin starts the load, and keeps it.
func (d *demo) begin(ctx context.Context) (err error) {
	if d.load, err = startLoad(d.balancer.url, d.options, d.ledger); err != nil {
		return err
	}
	if err := d.load.follow(d.balancer.url); err != nil {
		return err
	}
	return d.keep(ctx)
}

// firstAppend makes the topics and appends to one of them. Both may be repeated while nobody is ready.
func (d *demo) firstAppend(ctx context.Context) error {
	const opening = "opening"
	for name, partitions := range map[string]int{topic: d.options.partitions, opening: 1} {
		if _, _, err := d.statistics.CreateTopic(ctx, name, client.CreateTopicOptions{Partitions: int32(partitions), IfNotExists: true}); err != nil {
			return err
		}
	}
	_, err := d.statistics.Append(ctx, opening, 0, []client.Record{{Value: []byte("first")}}, client.AppendOptions{})
	return err
}

// phase does something, and enters what it cost.
func (d *demo) phase(ctx context.Context, name, gateways string, do func(context.Context) error) error {
	fmt.Fprintf(d.notes, "%s: %s\n", time.Now().Format(time.TimeOnly), name)
	p := d.ledger.begin(name, gateways)
	requests, repeats := d.balancer.produces.Load(), d.balancer.refusals.Load()
	if err := do(ctx); err != nil {
		return err
	}
	p.requests, p.repeats = d.balancer.produces.Load()-requests, d.balancer.refusals.Load()-repeats
	epochs, err := d.sumEpochs(ctx)
	if err != nil {
		return err
	}
	// The first time each partition is taken is no move.
	if d.epochs > 0 {
		p.moves = epochs - d.epochs
	}
	d.epochs = epochs
	_, err = d.load.state()
	return err
}

// sumEpochs adds up the leases' epochs.
func (d *demo) sumEpochs(ctx context.Context) (sum uint64, err error) {
	description, err := d.statistics.DescribeTopic(ctx, topic)
	if err != nil {
		return 0, err
	}
	for _, p := range description.PartitionInfo {
		sum += p.Epoch
	}
	return sum, nil
}

// keep lets time pass, which is what is shown.
func (d *demo) keep(ctx context.Context) error {
	select {
	case <-time.After(d.options.phase):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// scale starts gateways, or stops the oldest ones, one after the other.
func (d *demo) scale(ctx context.Context, want int) error {
	for len(d.gateways) < want {
		d.started++
		if err := d.start(ctx, d.started, ""); err != nil {
			return err
		}
	}
	for len(d.gateways) > want {
		if err := d.stop(d.gateways[0]); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) start(ctx context.Context, number int, address string) error {
	_, took, err := d.startGateway(ctx, number, address)
	if err != nil {
		return err
	}
	d.firstAcks = append(d.firstAcks, took)
	fmt.Fprintf(d.notes, "  gateway %d had its first append acked %s after its start\n", number, inMilliseconds(took))
	return nil
}

func (d *demo) stop(g *gateway) error {
	began := time.Now()
	err := d.stopGateway(g)
	d.drains = append(d.drains, time.Since(began))
	fmt.Fprintf(d.notes, "  gateway %d ended %s after SIGTERM\n", g.number, inMilliseconds(time.Since(began)))
	return err
}

// roll restarts each gateway on its address and folder.
func (d *demo) roll(ctx context.Context) error {
	for range len(d.gateways) {
		g := d.gateways[0]
		if err := errors.Join(d.stop(g), d.start(ctx, g.number, g.address)); err != nil {
			return err
		}
	}
	return nil
}

// report prints the account, and returns an error if anything is not as it should be.
func (d *demo) report(out io.Writer) error {
	failed, lost, duplicated := d.ledger.table(out)
	var first, drain time.Duration
	for _, took := range d.firstAcks {
		first = max(first, took)
	}
	for _, took := range d.drains {
		drain = max(drain, took)
	}
	fmt.Fprintf(out, "\n%d producers, %d records a second of %d bytes in all, %d partitions. A follower read along and saw each record once, in order.\n",
		producers, d.options.records, d.options.size, d.options.partitions)
	fmt.Fprintf(out, "First acked append through a new gateway, from the start of its process: at most %s in %d starts (limit %s). Drains: %d, all with status 0, %s at most.\n",
		inMilliseconds(first), len(d.firstAcks), startLimit, len(d.drains), inMilliseconds(drain))
	fmt.Fprintf(out, "Of %d requests that the client repeated %d had overtaken an earlier batch, over another connection or gateway: the balancer spreads requests. The rest met a gateway that was leaving, or none.\n",
		d.balancer.refusals.Load(), d.balancer.overtaken.Load())
	var faults []error
	if failed > 0 || lost > 0 || duplicated > 0 {
		faults = append(faults, fmt.Errorf("%d requests failed, %d records were lost, %d duplicated: want none", failed, lost, duplicated))
	}
	if first > startLimit {
		faults = append(faults, fmt.Errorf("a new gateway had its first append acked after %s, want at most %s", first.Round(time.Millisecond), startLimit))
	}
	return errors.Join(faults...)
}
