package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/varvelog/varve/client"
)

type compactFlags struct {
	client.CompactOptions
	dataDir, segmentsPlace, metadataPlace string
}

func newCompactCommand(a *app) *cobra.Command {
	var f compactFlags
	cmd := &cobra.Command{
		Use:   "compact [TOPIC]",
		Short: "Merge small segments now",
		Long: `Has all gateways that merge small segments into large ones make a pass now, over a topic or over all: each does its share,
and the age of segments does not count. Topics whose cleanup.policy says compact are compacted by key in the same pass: what that
would take out --dry-run does not tell. Gateways do all of it by themselves; see docs/compaction.md.

Without --wait it returns once they have begun. With --wait, or --dry-run, which says what would be merged, a line a gateway
tells what became of it. Spans that are damaged are not merged; they are named, and the exit status is 1.

With --data, or --segments and --metadata, a gateway is started on that store for as long as the pass takes, and ended in good order: on the
data folder of one that is stopped, or on a bucket and a table that gateways share, whose others do their share then.`,
		Example: `  varve compact --dry-run
  varve compact hello-world --wait
  varve compact --wait --data varve-data`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeTopic(cobra.ShellCompDirectiveNoFileComp),
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.Wait, "wait", false, "wait for the passes to end, and say what became of them")
	flags.BoolVar(&f.DryRun, "dry-run", false, "say what would be merged; nothing is")
	flags.StringVar(&f.dataDir, "data", "", "work on this `FOLDER` of a stopped gateway (its --data)")
	flags.StringVar(&f.segmentsPlace, "segments", "", "work on this store: the `URL` that gateways have as --segments")
	flags.StringVar(&f.metadataPlace, "metadata", "", "work on this table: the `URL` that gateways have as --metadata")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			f.Topic = args[0]
		}
		if f.DryRun {
			f.Wait = true
		}
		if f.dataDir == "" && f.segmentsPlace == "" && f.metadataPlace == "" {
			c, err := a.connect()
			if err != nil {
				return err
			}
			defer c.Close()
			return a.compact(cmd.Context(), c, f)
		}
		f.Wait = true // it ends with its gateway
		return a.compactLocally(cmd.Context(), f)
	}
	return cmd
}

// compactLocally asks a gateway that it starts for this.
func (a *app) compactLocally(ctx context.Context, f compactFlags) (err error) {
	places := verifyFlags{dataDir: f.dataDir, segmentsPlace: f.segmentsPlace, metadataPlace: f.metadataPlace}
	if _, err := places.places(); err != nil {
		return err
	}
	o := &serveOptions{}
	o.register(pflag.NewFlagSet("", pflag.ContinueOnError)) // the defaults
	o.listen, o.data, o.segments, o.metadata, o.logLevel = "127.0.0.1:0", f.dataDir, f.segmentsPlace, f.metadataPlace, "error"
	if o.data == "" {
		if o.data, err = os.MkdirTemp("", "varve-compact-"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.data)) }()
	}
	serving, stop := context.WithCancel(ctx)
	defer stop()
	asked := make(chan error, 1)
	asked <- nil // should it not come to that
	err = serve(serving, o, a.stderr, func(address net.Addr) {
		<-asked
		go func() {
			defer stop()
			c, err := client.New(client.Config{Servers: []string{"http://" + address.String()}})
			if err == nil {
				err = errors.Join(a.compact(serving, c, f), c.Close())
			}
			asked <- err
		}()
	})
	if errors.Is(err, errInUse) {
		return fmt.Errorf("--data: %s %w: leave --data away, and the gateway that runs on it makes the pass", f.dataDir, errInUse)
	}
	return errors.Join(<-asked, err)
}

// compact asks gateways to merge, and prints what they say.
func (a *app) compact(ctx context.Context, c *client.Client, f compactFlags) error {
	var printing error
	var sum client.Compacted
	gateways, failed := 0, false
	err := c.Compact(ctx, f.CompactOptions, func(r client.Compacted) {
		gateways++
		failed = failed || r.Error != "" || r.Failed > 0 || len(r.SetAside) > 0
		sum.Segments, sum.Bytes, sum.Entries, sum.Into = sum.Segments+r.Segments, sum.Bytes+r.Bytes, sum.Entries+r.Entries, sum.Into+r.Into
		if a.json() {
			printing = errors.Join(printing, printJSON(a.stdout, compactedJSON(r, f)))
		} else if f.Wait || r.Error != "" {
			printing = errors.Join(printing, printCompacted(a.stdout, r, f.DryRun))
		}
	})
	if err = errors.Join(printing, err); err != nil {
		return err
	}
	switch {
	case f.DryRun:
		a.notef("%d index entries would become %d, in %s of %d bytes", sum.Entries, sum.Into, count(sum.Segments, "new segment"), sum.Bytes)
	case f.Wait:
		a.notef("%d index entries became %d, in %s of %d bytes", sum.Entries, sum.Into, count(sum.Segments, "new segment"), sum.Bytes)
	default:
		a.notef("%s asked to merge; --wait says what becomes of it", count(int64(gateways), "gateway"))
	}
	if failed {
		return errReported
	}
	return nil
}

func printCompacted(out io.Writer, r client.Compacted, dryRun bool) error {
	if r.Error != "" {
		_, err := fmt.Fprintf(out, "%s: failed: %s\n", r.GatewayID, r.Error)
		return err
	}
	became := "became"
	if dryRun {
		became = "would become"
	}
	_, err := fmt.Fprintf(out, "%s: looked at %s; in %d of them %d index entries %s %d, in %s of %d bytes\n", r.GatewayID, count(r.Partitions, "partition"), r.Merged,
		r.Entries, became, r.Into, count(r.Segments, "new segment"), r.Bytes)
	if r.Dropped > 0 {
		_, dropped := fmt.Fprintf(out, "%s: compaction by key took out %s\n", r.GatewayID, count(r.Dropped, "record"))
		err = errors.Join(err, dropped)
	}
	if r.Moved > 0 {
		_, moved := fmt.Fprintf(out, "%s: %d index entries changed meanwhile and stay until the next pass\n", r.GatewayID, r.Moved)
		err = errors.Join(err, moved)
	}
	if r.Failed > 0 {
		_, failed := fmt.Fprintf(out, "%s: %s could not be merged; its log says why, and it tries again\n", r.GatewayID, count(r.Failed, "partition"))
		err = errors.Join(err, failed)
	}
	for _, s := range r.SetAside {
		_, aside := fmt.Fprintf(out, "DAMAGED %s/%d %s: offsets %d to %d: %s; it stays as it is\n", s.Topic, s.Partition, s.Object, s.First, s.End-1, s.Problem)
		err = errors.Join(err, aside)
	}
	return err
}

func compactedJSON(r client.Compacted, f compactFlags) any {
	type damaged struct {
		Topic     string `json:"topic"`
		Partition int32  `json:"partition"`
		First     int64  `json:"first_offset"`
		End       int64  `json:"end_offset"`
		Object    string `json:"object"`
		Problem   string `json:"problem"`
	}
	list := make([]damaged, 0, len(r.SetAside))
	for _, s := range r.SetAside {
		list = append(list, damaged(s))
	}
	return struct {
		GatewayID  string    `json:"gateway_id"`
		DryRun     bool      `json:"dry_run"`
		Waited     bool      `json:"waited"`
		Error      string    `json:"error"`
		Partitions int64     `json:"partitions"`
		Merged     int64     `json:"merged"`
		Segments   int64     `json:"segments"`
		Bytes      int64     `json:"bytes"`
		Entries    int64     `json:"entries"`
		Into       int64     `json:"into"`
		Moved      int64     `json:"moved"`
		Failed     int64     `json:"failed"`
		SetAside   []damaged `json:"set_aside"`
		Dropped    int64     `json:"dropped"`
	}{r.GatewayID, f.DryRun, f.Wait, r.Error, r.Partitions, r.Merged, r.Segments, r.Bytes, r.Entries, r.Into, r.Moved, r.Failed, list, r.Dropped}
}
