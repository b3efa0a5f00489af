package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/verify"
)

// verifyProgress is how often a run on the store itself says how far it is.
const verifyProgress = 10 * time.Second

type verifyFlags struct {
	client.VerifyOptions
	dataDir, segmentsPlace, metadataPlace string
}

func newVerifyCommand(a *app) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check bucket and table against the invariants of the log",
		Long: `Checks that the index of every partition names all of its offsets once, that the objects it names are there and agree
with it, that journals, leases and checkpoints fit together, and that bucket and table belong together. Gateways may
work on them meanwhile. With --deep it also reads every batch, its CRC and its records.

A running gateway is asked, or, with --data, --segments or --metadata, the store itself is read: the data folder
of a gateway that is stopped, or a bucket and a table that gateways share.

Standard output has a line for each finding, which begins with its kind. Breaks of an invariant are damage: exit
status 1. Garbage (ORPHAN_OBJECT, ORPHAN_ROW, FOREIGN_OBJECT) takes space and harms nobody: exit status 0 if there
is nothing else. With -o json each finding is an object a line, and the last line is the summary, of kind SUMMARY.

--repair removes garbage of which it is certain that nothing will ever need it: objects of gateways that are closed,
and rows that an index left behind. It never mends damage, and removes no object while there is any. Of all other
garbage the line says why it stays.`,
		Example: `  varve verify
  varve verify --deep -o json
  varve verify --data varve-data --repair
  varve verify --segments 's3://bucket/prefix?region=eu-central-1' --metadata 'dynamodb://table?region=eu-central-1'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.Deep, "deep", false, "read the bytes of every batch too")
	flags.BoolVar(&f.Repair, "repair", false, "remove what is certainly garbage")
	flags.DurationVar(&f.Grace, "grace", verify.DefaultGrace, "objects of gateways that started within this time are no orphans yet")
	flags.StringVar(&f.dataDir, "data", "", "read this `FOLDER` of a stopped gateway (its --data)")
	flags.StringVar(&f.segmentsPlace, "segments", "", "read this store: the `URL` that gateways have as --segments")
	flags.StringVar(&f.metadataPlace, "metadata", "", "read this table: the `URL` that gateways have as --metadata")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if f.Grace <= 0 {
			return usagef("--grace %v: must be more than 0, for example 1h", f.Grace)
		}
		run := a.verifyByGateway
		if f.local() {
			run = a.verifyLocally
		}
		return a.verify(cmd.Context(), f, run)
	}
	return cmd
}

// local says that the store itself is read.
func (f *verifyFlags) local() bool {
	return f.dataDir != "" || f.segmentsPlace != "" || f.metadataPlace != ""
}

// verifier checks, and reports finding by finding.
type verifier func(context.Context, verifyFlags, func(client.VerifyFinding)) (client.VerifySummary, error)

// verify prints what a verifier finds.
func (a *app) verify(ctx context.Context, f verifyFlags, run verifier) error {
	var printing error
	print := a.printFinding
	if a.json() {
		print = a.printFindingJSON
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	summary, err := run(ctx, f, func(found client.VerifyFinding) {
		if printing = errors.Join(printing, print(found)); printing != nil {
			stop()
		}
	})
	if err = errors.Join(printing, err); err != nil {
		return err
	}
	if a.json() {
		if err := printJSON(a.stdout, summaryJSON(summary)); err != nil {
			return err
		}
	}
	a.notef("cluster %s: looked at %s in %s, %s of %d bytes and %s; found %s, and garbage: %d, %d of it removed", summary.ClusterID,
		count(summary.Records, "record"), count(summary.Partitions, "partition"), count(summary.Objects, "object"), summary.ObjectBytes,
		count(summary.Journals, "journal"), count(summary.Breaks, "break"), summary.Garbage, summary.Repaired)
	if summary.Breaks > 0 {
		return errReported
	}
	return nil
}

func (a *app) verifyByGateway(ctx context.Context, f verifyFlags, report func(client.VerifyFinding)) (client.VerifySummary, error) {
	c, err := a.connect()
	if err != nil {
		return client.VerifySummary{}, err
	}
	defer c.Close()
	return c.Verify(ctx, f.VerifyOptions, report)
}

func (a *app) verifyLocally(ctx context.Context, f verifyFlags, report func(client.VerifyFinding)) (s client.VerifySummary, err error) {
	store, table, closer, err := f.open(ctx)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, closer.Close()) }()
	told := a.now()
	var acknowledge func(context.Context, metadata.GatewayID) error // nobody can be asked from here
	if _, exclusive := table.(*bolttable.Table); exclusive {
		acknowledge = compactor.NobodyLives{}.Acknowledge // its lock is ours
	}
	summary, err := verify.Run(ctx, verify.Config{
		Acknowledge: acknowledge,
		Store:       segments.Retry(store, segments.DefaultRetry()), Table: metadata.Retry(table, fewPauses),
		Deep: f.Deep, Repair: f.Repair, Grace: f.Grace, Now: a.now,
		Progress: func(s verify.Summary) {
			if now := a.now(); now.Sub(told) >= verifyProgress {
				told = now
				a.notef("looked at %s in %s so far", count(s.Records, "record"), count(s.Partitions, "partition"))
			}
		},
	}, func(found verify.Finding) {
		report(client.VerifyFinding{Kind: string(found.Kind), Break: found.Kind.Break(), Topic: found.Topic, Partition: found.Partition,
			Object: found.Object, Row: found.Row, Message: found.Message, Repaired: found.Repaired})
	})
	if errors.Is(err, metadata.ErrNotFound) {
		err = errors.New("no gateway has served on this table yet: there is nothing to verify")
	}
	return client.VerifySummary(summary), err
}

// open opens store and table of a cluster whose gateway is stopped, or shares them.
func (f *verifyFlags) open(ctx context.Context) (segments.Store, metadata.Table, io.Closer, error) {
	places, err := f.places()
	if err != nil {
		return nil, nil, nil, err
	}
	store, err := openStore(ctx, places.segments)
	if err != nil {
		return nil, nil, nil, unusable(err, places.segments.scheme+"://"+places.segments.host, storeAdvice(err, places.segments))
	}
	table, closer, err := openTable(ctx, places.metadata)
	if err != nil {
		advice := tableAdvice(err, places.metadata)
		if places.metadata.scheme == schemeBolt && errors.Is(err, metadata.ErrUnavailable) {
			advice = "ask the gateway that runs on it: leave --data, --segments and --metadata away"
		}
		return nil, nil, nil, unusable(err, "the table", advice)
	}
	return store, table, closer, nil
}

// verifyPlaces are store and table of a cluster.
type verifyPlaces struct{ segments, metadata location }

// places are those of --data, but for what --segments and --metadata name. Nothing is made: what is not
// there is an error.
func (f *verifyFlags) places() (p verifyPlaces, err error) {
	if f.dataDir == "" && (f.segmentsPlace == "" || f.metadataPlace == "") {
		return p, usagef("--segments and --metadata go together, or with --data")
	}
	data, err := filepath.Abs(f.dataDir)
	if err != nil {
		return p, err
	}
	p.segments = location{scheme: schemeFile, path: filepath.Join(data, "segments")}
	p.metadata = location{scheme: schemeBolt, path: filepath.Join(data, "metadata.db")}
	if f.segmentsPlace != "" {
		if p.segments, err = parseLocation("--segments", f.segmentsPlace, segmentsKeys); err != nil {
			return p, usagef("%v", err)
		}
	}
	if f.metadataPlace != "" {
		if p.metadata, err = parseLocation("--metadata", f.metadataPlace, metadataKeys); err != nil {
			return p, usagef("%v", err)
		}
	}
	for _, l := range []location{p.segments, p.metadata} {
		if l.scheme == schemeMemory {
			return p, usagef("mem:// is gone with its process: ask the gateway")
		}
		if l.scheme != schemeFile && l.scheme != schemeBolt {
			continue
		}
		if _, err := os.Stat(l.path); errors.Is(err, fs.ErrNotExist) {
			return p, fmt.Errorf("there is no %s: no gateway has served there", l.path)
		} else if err != nil {
			return p, err
		}
	}
	return p, nil
}

// fewPauses are those between the tries of a read.
func fewPauses() backoff.BackOff { return &limitedPauses{metadata.DefaultBackOff(), 5} }

type limitedPauses struct {
	backoff.BackOff
	left int
}

func (l *limitedPauses) NextBackOff() time.Duration {
	if l.left == 0 {
		return backoff.Stop
	}
	l.left--
	return l.BackOff.NextBackOff()
}

func (a *app) printFinding(f client.VerifyFinding) error {
	line := f.Kind
	switch {
	case f.Topic != "" && f.Partition >= 0:
		line += fmt.Sprintf(" %s/%d", f.Topic, f.Partition)
	case f.Topic != "":
		line += " " + f.Topic
	}
	for _, place := range []string{f.Object, f.Row} {
		if place != "" {
			line += " " + place
		}
	}
	line += ": " + f.Message
	if f.Repaired {
		line += " (removed)"
	}
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

func (a *app) printFindingJSON(f client.VerifyFinding) error {
	return printJSON(a.stdout, struct {
		Kind      string `json:"kind"`
		Break     bool   `json:"break"`
		Topic     string `json:"topic"`
		Partition int32  `json:"partition"` // -1: none
		Object    string `json:"object"`
		Row       string `json:"row"`
		Message   string `json:"message"`
		Repaired  bool   `json:"repaired"`
		Stays     string `json:"stays"` // why --repair left it; empty: it did not, or was not asked to
	}{f.Kind, f.Break, f.Topic, f.Partition, f.Object, f.Row, f.Message, f.Repaired, whyStays(f)})
}

// whyStays takes out of a message why garbage stays: the API has no field for it.
func whyStays(f client.VerifyFinding) string {
	if f.Break {
		return ""
	}
	_, why, _ := strings.Cut(f.Message, verify.ItStays)
	return why
}

func summaryJSON(s client.VerifySummary) any {
	return struct {
		Kind        string `json:"kind"`
		ClusterID   string `json:"cluster_id"`
		Topics      int64  `json:"topics"`
		Partitions  int64  `json:"partitions"`
		Entries     int64  `json:"entries"`
		Batches     int64  `json:"batches"`
		Records     int64  `json:"records"`
		Objects     int64  `json:"objects"`
		ObjectBytes int64  `json:"object_bytes"`
		Journals    int64  `json:"journals"`
		Breaks      int64  `json:"breaks"`
		Garbage     int64  `json:"garbage"`
		Repaired    int64  `json:"repaired"`
	}{"SUMMARY", s.ClusterID, s.Topics, s.Partitions, s.Entries, s.Batches, s.Records, s.Objects, s.ObjectBytes, s.Journals, s.Breaks, s.Garbage, s.Repaired}
}
