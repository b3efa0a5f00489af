package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// newBenchCommand measures a gateway by its API, and what the same work costs at the least.
//
//	produce  ─┐
//	consume   ├─ load on a running gateway ─ what it cost, by the gateway's own count (Usage)
//	lookup   ─┘
//	floor     ── bare servers and bare S3 clients, as processes of their own
//	compare   ── both in turns, with a gateway of its own: ratios
//	catchup   ── the tail with and without readers of old data beside it
//	counts    ── what must not depend on the machine: calls, rows and bytes
//	cluster   ── the same of several gateways: commit writes, bytes between them, takeovers
//	all       ── everything that is promised, in one table
//	soak      ── a steady load for an hour: nothing may grow
func newBenchCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure a gateway, and the floor beneath it",
		Long: `Measure a gateway by its API: throughput, latency, and what the run cost in CPU, objects and
table calls by the gateway's own count. Whatever else uses that gateway meanwhile is counted too.

Every run is bounded and removes what it made; Ctrl-C ends it and prints what was measured so far.
On a shared machine only ratios of one run mean much: 'varve bench compare' prints those.`,
		RunE: needsVerb,
	}
	cmd.AddCommand(
		newBenchProduceCommand(a),
		newBenchConsumeCommand(a),
		newBenchColdCommand(a),
		newBenchCatchupCommand(a),
		newBenchLookupCommand(a),
		newBenchFloorCommand(a),
		newBenchCompareCommand(a),
		newBenchCountsCommand(a),
		newBenchClusterCommand(a),
		newBenchAllCommand(a),
		newBenchSoakCommand(a),
		newFloorServerCommand(),
		newFloorObjectsCommand(),
		newBenchGatewayCommand(),
	)
	return cmd
}

// byteSize is a flag in bytes: 1024, 1KiB, 8MiB, 1GB.
type byteSize int64

func (b *byteSize) String() string { return strings.ReplaceAll(humanize.IBytes(uint64(*b)), " ", "") }

func (b *byteSize) Type() string { return "SIZE" }

// Set implements pflag.Value.
func (b *byteSize) Set(text string) error {
	n, err := humanize.ParseBytes(text)
	if err != nil || n > 1<<50 {
		return fmt.Errorf("%q is no size: give bytes, or for example 512KiB", text)
	}
	*b = byteSize(n)
	return nil
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// report is what a bench found.
type report interface {
	// text is for people, with a newline at its end.
	text() string
}

// print writes a report to standard output.
func (a *app) print(r report) error {
	if !a.json() {
		_, err := fmt.Fprint(a.stdout, r.text())
		return err
	}
	return json.NewEncoder(a.stdout).Encode(r)
}

// benchTopic is a topic that a bench uses, and removes if it made it.
type benchTopic struct {
	name       string
	partitions int32
	made       bool
}

// openTopic finds the topic of that name, or makes one of its own if the name is empty.
func openTopic(ctx context.Context, c *client.Client, name string, partitions int32) (benchTopic, error) {
	if name != "" {
		d, err := c.DescribeTopic(ctx, name)
		if err != nil {
			return benchTopic{}, err
		}
		return benchTopic{name: name, partitions: d.Topic.Partitions}, nil
	}
	name = fmt.Sprintf("bench-%08x", rand.Uint32())
	t, _, err := c.CreateTopic(ctx, name, client.CreateTopicOptions{Partitions: partitions})
	return benchTopic{name: name, partitions: t.Partitions, made: err == nil}, err
}

// removeTimeout bounds the removal of a topic after the run, which may have 10,000 partitions, also when the run was interrupted.
const removeTimeout = time.Minute

// remove deletes the topic if the bench made it and nobody wants to keep it.
func (t benchTopic) remove(ctx context.Context, a *app, c *client.Client, keep bool) {
	if !t.made || keep {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	err := c.DeleteTopic(ctx, t.name, true)
	for slow := new(client.Error); errors.As(err, &slow) && slow.Reason == "TOPIC_DELETING" && ctx.Err() == nil; {
		err = c.DeleteTopic(ctx, t.name, true) // one of very many partitions: it goes on
	}
	if err != nil {
		a.notef("topic %s could not be deleted: %v; delete it with 'varve topic delete %s'", t.name, err, t.name)
	}
}
