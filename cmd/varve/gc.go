package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/internal/upkeep"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
)

type collectFlags struct {
	client.CollectOptions
	places verifyFlags
	grace  time.Duration
}

func newCollectCommand(a *app) *cobra.Command {
	var f collectFlags
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete objects and rows that nothing names",
		Long: `Deletes what nothing names and nothing ever will: uploads that came to nothing, segments that were merged, trimmed
or belonged to deleted topics, index rows, and what is left of gateways that ended. Gateways do so by themselves, an
hour after something became garbage; this does it now.

An object goes only when its uploader has settled it, and when this process has known for the grace (serve's --gc-grace, 10m) that
nothing names it: readers may still go by an older index. With --wait the command waits for that.

A running gateway is asked, or, with --data, --segments or --metadata, the store itself is worked on: the data folder of a
gateway that is stopped, or a bucket and a table that gateways share. There nobody can be asked what a gateway knows: while one of
them lives, objects of gateways that were closed stay.

No more than a share of the bytes (serve's --gc-share, 0.3) goes at once, but for 100 objects or 1 GiB, unless the partitions
say that they had those objects or it is forced.`,
		Example: `  varve gc --dry-run
  varve gc --wait
  varve gc --data varve-data`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.DryRun, "dry-run", false, "delete nothing, and tell what would go if there were no grace")
	flags.BoolVar(&f.Force, "force", false, "delete more than the share that may go at once")
	flags.BoolVar(&f.Wait, "wait", false, "wait until the grace of the objects and rows that were found is over, and they are gone")
	flags.StringVar(&f.places.dataDir, "data", "", "work on this `FOLDER` of a stopped gateway (its --data)")
	flags.StringVar(&f.places.segmentsPlace, "segments", "", "work on this store: the `URL` that gateways have as --segments")
	flags.StringVar(&f.places.metadataPlace, "metadata", "", "work on this table: the `URL` that gateways have as --metadata")
	flags.DurationVar(&f.grace, "grace", compactor.DefaultGrace, "on a store that is worked on itself, while gateways live: how long readers may go by an older index")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.grace < 0 {
			return usagef("--grace %v: must not be negative", f.grace)
		}
		if cmd.Flags().Changed("grace") && !f.places.local() {
			return usagef("--grace is for a store that is worked on itself; a gateway has its own: varve serve --gc-grace")
		}
		run := a.collectByGateway
		if f.places.local() {
			run = a.collectLocally
		}
		report, err := run(cmd.Context(), f)
		if err != nil {
			return err
		}
		return a.printCollection(report)
	}
	return cmd
}

func (a *app) collectByGateway(ctx context.Context, f collectFlags) (*client.Collection, error) {
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if f.Wait && !f.DryRun {
		now, err := c.Collect(ctx, client.CollectOptions{Force: f.Force})
		if err != nil {
			return nil, err
		}
		if n := now.Kept[string(compactor.KeptForGrace)]; n+now.RowsWaiting > 0 {
			defer a.noteWaiting(fmt.Sprintf("%s and %s wait until the gateway has known for its grace (serve's --gc-grace, 10m) that nothing names them",
				count(n, "object"), count(now.RowsWaiting, "row")))()
		}
		later, err := c.Collect(ctx, f.CollectOptions)
		if err != nil {
			return nil, err
		}
		if n := wentElsewhere(now, later); n > 0 {
			a.notef("%s that waited went meanwhile, and not by the gateway that was asked: another one collects, too", count(n, "object"))
		}
		later.Deleted, later.DeletedBytes = later.Deleted+now.Deleted, later.DeletedBytes+now.DeletedBytes
		later.Rows, later.Gateways = later.Rows+now.Rows, later.Gateways+now.Gateways
		return later, nil
	}
	return c.Collect(ctx, f.CollectOptions)
}

// wentElsewhere is how many objects at least waited for the grace, and neither were deleted by whoever was asked later nor stay.
func wentElsewhere(now, later *client.Collection) int64 {
	left := now.Kept[string(compactor.KeptForGrace)] - later.Deleted
	for _, n := range later.Kept {
		left -= n
	}
	return max(left, 0)
}

// waitingPace spaces the lines that say what is waited for.
const waitingPace = 30 * time.Second

// noteWaiting says what is waited for, now and from time to time until the function that it returns is called.
func (a *app) noteWaiting(what string) (stop func()) {
	a.notef("%s", what)
	ended, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(waitingPace)
		defer tick.Stop()
		for began := time.Now(); ; {
			select {
			case <-ended:
				return
			case <-tick.C:
				a.notef("still waiting, for %s", time.Since(began).Round(time.Second))
			}
		}
	}()
	return func() {
		close(ended)
		<-done
	}
}

func (a *app) collectLocally(ctx context.Context, f collectFlags) (_ *client.Collection, err error) {
	store, table, closer, err := f.places.open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	config := compactor.CollectConfig{Store: segments.Retry(store, segments.DefaultRetry()), Table: metadata.Retry(table, fewPauses),
		Gateways: compactor.NobodyAnswers{}, Grace: f.grace}
	if _, exclusive := table.(*bolttable.Table); exclusive {
		config.Gateways = compactor.NobodyLives{} // its lock is ours
	}
	if config.Grace, err = graceBeside(ctx, config); err != nil {
		return nil, err
	}
	c, err := compactor.NewCollector(config)
	if err != nil {
		return nil, err
	}
	report, err := c.Collect(ctx, compactor.CollectOptions(f.CollectOptions))
	if errors.Is(err, metadata.ErrNotFound) {
		err = errors.New("no gateway has served on this table yet: there is nothing to collect")
	}
	if err != nil {
		return nil, err
	}
	m := upkeep.CollectionMessage(report)
	return &client.Collection{ClusterID: m.GetClusterId(), DryRun: m.GetDryRun(), Objects: m.GetObjects(), ObjectBytes: m.GetObjectBytes(), Named: m.GetNamed(),
		Kept: m.GetKept(), Deleted: m.GetDeleted(), DeletedBytes: m.GetDeletedBytes(), Rows: m.GetRows(), RowsWaiting: m.GetRowsWaiting(),
		Gateways: m.GetGateways(), Unasked: m.GetUnasked(), Unclear: m.GetUnclear(), Refusal: m.GetRefusal()}, nil
}

// graceBeside is the grace that readers need: none where no gateway lives.
func graceBeside(ctx context.Context, c compactor.CollectConfig) (time.Duration, error) {
	rows, err := metadata.ListGateways(ctx, c.Table, metadata.Strong, nil)
	if err != nil {
		return 0, err
	}
	alone := func(g metadata.Gateway) bool {
		_, exclusive := c.Gateways.(compactor.NobodyLives)
		return exclusive || g.State == metadata.GatewaySealed || g.State == metadata.GatewayClosed
	}
	if c.Grace == 0 || !slices.ContainsFunc(rows, func(g metadata.Gateway) bool { return !alone(g) }) {
		return -1, nil
	}
	return c.Grace, nil
}

// keptBecause says for people why objects stay.
var keptBecause = map[string]string{
	string(compactor.KeptUnsettled):  "their gateways have not settled them: they may be on their way to a commit",
	string(compactor.KeptUnheard):    "their gateways are closed, and not every other one has said that it knows",
	string(compactor.KeptUnknown):    "nothing says whether their gateways have ended",
	string(compactor.KeptForGrace):   "readers may still go by an index that names them: they go when the grace is over",
	string(compactor.KeptNamed):      "a partition names them after all",
	string(compactor.KeptUnclear):    "a partition that is in them cannot be read",
	string(compactor.KeptUnreadable): "they have no readable directory",
	string(compactor.KeptTooMany):    "more would go at once than may: see what is about to go, then --force",
	string(compactor.KeptRefused):    "the bucket does not delete them",
}

// printCollection tells what a collection did. What it could not do makes it fail.
func (a *app) printCollection(r *client.Collection) error {
	print := a.printCollectionText
	if a.json() {
		print = a.printCollectionJSON
	}
	if err := print(r); err != nil {
		return err
	}
	if r.Kept[string(compactor.KeptTooMany)]+r.Kept[string(compactor.KeptRefused)] > 0 {
		return errReported
	}
	return nil
}

func (a *app) printCollectionText(r *client.Collection) error {
	verb := "deleted"
	if r.DryRun {
		verb = "would delete"
	}
	text := &strings.Builder{}
	fmt.Fprintf(text, "%s %s of %d bytes, %s, %s\n", verb, count(r.Deleted, "object"), r.DeletedBytes, count(r.Rows, "row"), count(r.Gateways, "gateway"))
	for _, why := range slices.Sorted(maps.Keys(r.Kept)) {
		fmt.Fprintf(text, "kept %s: %s: %s\n", count(r.Kept[why], "object"), why, keptBecause[why])
	}
	if r.RowsWaiting > 0 {
		fmt.Fprintf(text, "kept %s: grace: they go when it is over\n", count(r.RowsWaiting, "row"))
	}
	if _, err := fmt.Fprint(a.stdout, text.String()); err != nil {
		return err
	}
	for _, id := range r.Unasked {
		a.notef("gateway %s did not say what it knows: nothing goes of gateways that were closed since it did last", id)
	}
	for _, id := range r.Unclear {
		a.notef("partition %s cannot be read: objects with records of it stay; see varve verify", id)
	}
	if r.Refusal != "" {
		a.notef("the bucket: %s", r.Refusal)
	}
	a.notef("cluster %s: looked at %s of %d bytes; something names %d of them", r.ClusterID, count(r.Objects, "object"), r.ObjectBytes, r.Named)
	return nil
}

func (a *app) printCollectionJSON(r *client.Collection) error {
	kept := r.Kept
	if kept == nil {
		kept = map[string]int64{}
	}
	list := func(l []string) []string { return append([]string{}, l...) }
	return printJSON(a.stdout, struct {
		ClusterID    string           `json:"cluster_id"`
		DryRun       bool             `json:"dry_run"`
		Objects      int64            `json:"objects"`
		ObjectBytes  int64            `json:"object_bytes"`
		Named        int64            `json:"named"`
		Kept         map[string]int64 `json:"kept"`
		Deleted      int64            `json:"deleted"`
		DeletedBytes int64            `json:"deleted_bytes"`
		Rows         int64            `json:"rows"`
		RowsWaiting  int64            `json:"rows_waiting"`
		Gateways     int64            `json:"gateways"`
		Unasked      []string         `json:"unasked"`
		Unclear      []string         `json:"unclear"`
		Refusal      string           `json:"refusal"`
	}{r.ClusterID, r.DryRun, r.Objects, r.ObjectBytes, r.Named, kept, r.Deleted, r.DeletedBytes, r.Rows, r.RowsWaiting, r.Gateways, list(r.Unasked), list(r.Unclear), r.Refusal})
}

// checkCollect says what is wrong with what a collector is told.
func (o *serveOptions) checkCollect() error {
	var faults []error
	if o.gcInterval < 0 {
		faults = append(faults, fmt.Errorf("--gc-interval %v: must not be negative (0: the default)", o.gcInterval))
	}
	if o.gcGrace < 0 {
		faults = append(faults, fmt.Errorf("--gc-grace %v: must not be negative (0: the default)", o.gcGrace))
	}
	if o.gcShare < 0 || o.gcShare > 1 {
		faults = append(faults, fmt.Errorf("--gc-share %v: want 0 to 1 (0: the default)", o.gcShare))
	}
	return errors.Join(faults...)
}
