package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

// measurement is a measurement of `varve bench all`. It has a gateway of its own, and says by figures what came of it.
type measurement struct {
	name, about string
	// bucket: it is left out without --segments and --metadata.
	bucket bool
	run    func(context.Context, *app, *allOptions) (any, []figure, error)
}

// measurements are all of them, in the order in which they run. To add one is to add a line here.
var measurements = []measurement{
	{"files", "produce and consume against the floor, on files", false, partFiles},
	{"bucket", "produce and consume against the floor, and a bare S3 client, on a bucket", true, partBucket},
	{"cold", "reads that come from a bucket, beside the floor and a bare S3 client", true, partCold},
	{"catchup", "the tail alone and beside a reader of old data, on a bucket", true, partCatchup},
	{"small", "requests of 10 records: records a second, allocations a request", false, partSmall},
	{"follow", "from produce to a follower, beside a PUT and a table write", false, partFollow},
	{"times", "time lookups in logs of 10,000 to 100,000,000 records", false, partTimes},
	{"spread", "commit writes and checkpoints at 1, 100 and 10,000 partitions a flush", false, partSpread},
	{"idle", "what a gateway does that nobody needs", false, partIdle},
	{"partitions", "start, memory and calls with a million partitions, of which a thousand are active", false, partPartitions},
	{"memory", "the peak of memory with a slow bucket, fast producers, 1,000 followers and readers of old data", false, partMemory},
}

// allOptions are the flags of bench all.
type allOptions struct {
	dir, segments, metadata string
	only                    []string
	quick                   bool
	results, commit         string
}

// pickSize chooses between the full measure and the quick one.
func pickSize[T any](o *allOptions, full, quick T) T {
	if o.quick {
		return quick
	}
	return full
}

func newBenchAllCommand(a *app) *cobra.Command {
	var o allOptions
	cmd := &cobra.Command{
		Use:   "all",
		Short: "Measure everything that the design promises, and print it beside the promise",
		Long: `Run every measurement, each with a gateway of its own, and print one table: what a figure must be, and what
it was. Figures that depend on the machine are ratios of one run; the load of the machine is printed, since others
that work on it make such figures worse and not better.

` + partsText() + `
Parts that need a bucket are left out without --segments and --metadata. --quick shows that everything works: its
figures mean nothing. A figure that is not as it must be is no error; the table says so.`,
		Example: `  varve bench all
  varve bench all --quick --only small,times
  varve bench all --segments 's3://bucket?region=…' --metadata 'dynamodb://table?region=…' --results bench/results`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.benchAll(cmd.Context(), &o)
			if r != nil {
				err = errors.Join(err, a.print(r))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "folder for temporary data (default: the system's)")
	f.StringVar(&o.segments, "segments", "", "bucket for the parts that need one")
	f.StringVar(&o.metadata, "metadata", "", "table for them")
	f.StringSliceVar(&o.only, "only", nil, "parts to run (default: all)")
	f.BoolVar(&o.quick, "quick", false, "a little of everything, to see that it works")
	f.StringVar(&o.results, "results", "", "folder in which each part leaves <part>.json")
	f.StringVar(&o.commit, "commit", "", "what was measured, for the results (default: the version)")
	return cmd
}

func partsText() string {
	var b strings.Builder
	for _, p := range measurements {
		fmt.Fprintf(&b, "  %-11s %s\n", p.name, p.about)
	}
	return b.String()
}

// figure is one line of the table.
type figure struct {
	Name  string  `json:"figure"`
	Value float64 `json:"value"`
	Unit  string  `json:"unit,omitempty"`
	// AtMost or AtLeast is what it must be; neither: it is told, and must be nothing.
	AtMost  *float64 `json:"at_most,omitempty"`
	AtLeast *float64 `json:"at_least,omitempty"`
	Good    bool     `json:"good"`
}

func atMost(name string, value, bound float64, unit string) figure {
	return figure{Name: name, Value: value, Unit: unit, AtMost: &bound, Good: value <= bound}
}

func atLeast(name string, value, bound float64, unit string) figure {
	return figure{Name: name, Value: value, Unit: unit, AtLeast: &bound, Good: value >= bound}
}

func told(name string, value float64, unit string) figure {
	return figure{Name: name, Value: value, Unit: unit, Good: true}
}

func (f *figure) must() string {
	switch {
	case f.AtMost != nil:
		return "≤ " + number(*f.AtMost)
	case f.AtLeast != nil:
		return "≥ " + number(*f.AtLeast)
	}
	return ""
}

func (f *figure) verdict() string {
	switch {
	case f.must() == "":
		return ""
	case f.Good:
		return "yes"
	}
	return "NO"
}

// number is short: three digits or so.
func number(v float64) string {
	switch {
	case v == float64(int64(v)) || v >= 1000:
		return thousands(int64(v + 0.5))
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return strings.TrimRight(strings.TrimRight(fmt.Sprintf("%.3f", v), "0"), ".")
}

func thousands(n int64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return thousands(n/1000) + fmt.Sprintf(",%03d", n%1000)
}

// partResult is what one part leaves in a file.
type partResult struct {
	Part    string    `json:"part"`
	About   string    `json:"about"`
	Machine machine   `json:"machine"`
	Commit  string    `json:"commit"`
	Command string    `json:"command"`
	Began   time.Time `json:"began"`
	Seconds float64   `json:"seconds"`
	Quick   bool      `json:"quick,omitempty"`
	Figures []figure  `json:"figures"`
	Report  any       `json:"report,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// machine is where it was measured. Load is that of the minute before the part began: whatever else ran.
type machine struct {
	System string  `json:"system"`
	CPU    string  `json:"cpu,omitempty"`
	Cores  int     `json:"cores"`
	Load   float64 `json:"load_average"`
}

func thisMachine() machine {
	m := machine{System: runtime.GOOS + "/" + runtime.GOARCH, Cores: runtime.GOMAXPROCS(0)}
	// These are files of Linux; elsewhere they are not told.
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.System = fmt.Sprintf("Linux %s %s", bytes.TrimSpace(release), runtime.GOARCH)
	}
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(info), "model name"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			m.CPU = strings.TrimLeft(line, " \t:")
		}
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		// What cannot be read stays 0.
		_, _ = fmt.Sscan(string(load), &m.Load)
	}
	return m
}

// allReport is what `varve bench all` prints.
type allReport struct {
	Bench string       `json:"bench"`
	Parts []partResult `json:"parts"`
}

func (r *allReport) text() string {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "part\tfigure\tmust be\twas\t\tas it must be")
	for _, p := range r.Parts {
		if p.Error != "" {
			fmt.Fprintf(t, "%s\tfailed: %s\t\t\t\tNO\n", p.Part, strings.ReplaceAll(p.Error, "\n", " "))
		}
		for _, f := range p.Figures {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", p.Part, f.Name, f.must(), number(f.Value), f.Unit, f.verdict())
		}
	}
	// It writes to memory.
	_ = t.Flush()
	if n := len(r.Parts); n > 0 {
		m := r.Parts[0].Machine
		fmt.Fprintf(&b, "\n%s, %d cores, %s; load %.1f at the beginning, %.1f at the last part; %s, commit %s\n", m.System, m.Cores, m.CPU, m.Load,
			r.Parts[n-1].Machine.Load, r.Parts[0].Began.Format("2 January 2006 15:04"), r.Parts[0].Commit)
		if r.Parts[0].Quick {
			b.WriteString("A quick run: its figures mean nothing.\n")
		}
	}
	return b.String()
}

// benchAll runs the parts. One that fails is told and does not keep the others from running.
func (a *app) benchAll(ctx context.Context, o *allOptions) (*allReport, error) {
	for _, name := range o.only {
		if !slices.ContainsFunc(measurements, func(p measurement) bool { return p.name == name }) {
			return nil, usagef("--only %s: there is no such part; there are\n%s", name, partsText())
		}
	}
	if (o.segments == "") != (o.metadata == "") {
		return nil, usagef("give both --segments and --metadata, or none of them")
	}
	if o.commit == "" {
		o.commit = version
	}
	r := &allReport{Bench: "all"}
	var failed error
	for _, p := range measurements {
		if len(o.only) > 0 && !slices.Contains(o.only, p.name) || ctx.Err() != nil {
			continue
		}
		if p.bucket && o.segments == "" {
			a.notef("%s is left out: it needs --segments and --metadata", p.name)
			continue
		}
		a.notef("%s: %s", p.name, p.about)
		result, err := p.measure(ctx, a, o)
		if err != nil && ctx.Err() == nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
		}
		r.Parts = append(r.Parts, result)
		if err := result.save(o.results); err != nil {
			return r, err
		}
	}
	return r, failed
}

func (p *measurement) measure(ctx context.Context, a *app, o *allOptions) (partResult, error) {
	r := partResult{Part: p.name, About: p.about, Machine: thisMachine(), Commit: o.commit, Began: time.Now().UTC().Truncate(time.Second), Quick: o.quick,
		Command: "varve bench all --only " + p.name}
	if o.quick {
		r.Command += " --quick"
	}
	began := time.Now()
	report, figures, err := p.run(ctx, a, o)
	r.Report, r.Figures, r.Seconds = report, figures, time.Since(began).Seconds()
	if err != nil {
		r.Error = err.Error()
	}
	return r, err
}

func (r *partResult) save(folder string) error {
	if folder == "" {
		return nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(folder, r.Part+".json"), append(data, '\n'), 0o644)
}

// scratch is a folder for one part.
func (o *allOptions) scratch() (dir string, remove func() error, err error) {
	dir, err = os.MkdirTemp(o.dir, "varve-bench-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}
