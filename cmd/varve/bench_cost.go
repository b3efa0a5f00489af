package main

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/dustin/go-humanize"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
)

// costs is what a run took from the gateway, by its own count, and from this process.
type costs struct {
	ServerCPU float64 `json:"server_cpu_seconds"`
	BenchCPU  float64 `json:"bench_cpu_seconds"`
	// A GiB of record batches appended or read; 0 when nothing was.
	ServerCPUPerGiB float64 `json:"server_cpu_seconds_per_gib"`
	BenchCPUPerGiB  float64 `json:"bench_cpu_seconds_per_gib"`
	PutsPerGiB      float64 `json:"object_puts_per_gib"`

	AppendedBytes  uint64 `json:"appended_bytes"` // of batches, with their headers
	ObjectPuts     uint64 `json:"object_puts"`
	ObjectPutBytes uint64 `json:"object_put_bytes"`
	ObjectGets     uint64 `json:"object_gets"`
	ObjectGetBytes uint64 `json:"object_get_bytes"`
	ObjectLists    uint64 `json:"object_lists"`

	TableReads       uint64  `json:"table_reads"`
	TableWrites      uint64  `json:"table_writes"`
	CommitWrites     uint64  `json:"commit_writes"`
	CommitBytes      uint64  `json:"commit_bytes"`
	CommitUnits      uint64  `json:"commit_units"`
	BytesPerSpan     float64 `json:"commit_bytes_per_span"`
	CheckpointWrites uint64  `json:"checkpoint_writes"`
	CheckpointBytes  uint64  `json:"checkpoint_bytes"`
	CheckpointUnits  uint64  `json:"checkpoint_units"`
	BeatWrites       uint64  `json:"beat_writes"`

	Flushes         uint64  `json:"flushes"`
	FlushedSpans    uint64  `json:"flushed_spans"`
	Cycles          uint64  `json:"cycles"`
	RecordsPerFlush float64 `json:"records_per_flush"`

	ResidentBytes     uint64 `json:"server_resident_bytes"`
	PeakResidentBytes uint64 `json:"server_peak_resident_bytes"`
	HeapBytes         uint64 `json:"server_heap_bytes"`

	bytes int64
}

// perGiBFrom is how many bytes it takes for "a GiB of this costs" to mean something to people.
const perGiBFrom = 64 * mib

// meter is where the counts stood when a run began.
type meter struct {
	client *client.Client
	before *varvev1.UsageResponse
	own    time.Duration
}

func startMeter(ctx context.Context, c *client.Client) (*meter, error) {
	u, err := c.Usage(ctx)
	if err != nil {
		return nil, err
	}
	return &meter{client: c, before: u, own: processCPU()}, nil
}

// stop returns what was used since; bytes is the run's bytes of record batches.
func (m *meter) stop(ctx context.Context, bytes int64) (costs, error) {
	own := processCPU() - m.own
	// Also after Ctrl-C: what was measured is printed.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	u, err := m.client.Usage(ctx)
	if err != nil {
		return costs{}, err
	}
	return newCosts(m.before, u, own, bytes), nil
}

func newCosts(b, u *varvev1.UsageResponse, own time.Duration, bytes int64) costs {
	c := costs{
		ServerCPU: u.GetCpuSeconds() - b.GetCpuSeconds(), BenchCPU: own.Seconds(),
		ObjectPuts: u.GetObjectPuts() - b.GetObjectPuts(), ObjectPutBytes: u.GetObjectPutBytes() - b.GetObjectPutBytes(),
		ObjectGets: u.GetObjectGets() - b.GetObjectGets(), ObjectGetBytes: u.GetObjectGetBytes() - b.GetObjectGetBytes(),
		ObjectLists: u.GetObjectLists() - b.GetObjectLists(),
		TableReads:  u.GetTableReads() - b.GetTableReads(), TableWrites: u.GetTableWrites() - b.GetTableWrites(),
		CommitWrites: u.GetCommitWrites() - b.GetCommitWrites(), CommitBytes: u.GetCommitBytes() - b.GetCommitBytes(),
		CheckpointWrites: u.GetCheckpointWrites() - b.GetCheckpointWrites(), CheckpointBytes: u.GetCheckpointBytes() - b.GetCheckpointBytes(),
		CommitUnits: u.GetCommitUnits() - b.GetCommitUnits(), CheckpointUnits: u.GetCheckpointUnits() - b.GetCheckpointUnits(),
		BeatWrites: u.GetBeatWrites() - b.GetBeatWrites(),
		Flushes:    u.GetFlushes() - b.GetFlushes(), FlushedSpans: u.GetFlushedSpans() - b.GetFlushedSpans(),
		Cycles:        u.GetCycles() - b.GetCycles(),
		ResidentBytes: u.GetResidentBytes(), PeakResidentBytes: u.GetPeakResidentBytes(), HeapBytes: u.GetHeapBytes(), bytes: bytes,
	}
	c.AppendedBytes = u.GetAppendedBytes() - b.GetAppendedBytes()
	if bytes > 0 {
		size := float64(bytes) / gib
		c.ServerCPUPerGiB, c.BenchCPUPerGiB, c.PutsPerGiB = c.ServerCPU/size, c.BenchCPU/size, float64(c.ObjectPuts)/size
	}
	if c.FlushedSpans > 0 {
		c.BytesPerSpan = float64(c.CommitBytes) / float64(c.FlushedSpans)
	}
	if c.Flushes > 0 {
		c.RecordsPerFlush = float64(u.GetAppendedRecords()-b.GetAppendedRecords()) / float64(c.Flushes)
	}
	return c
}

// perFlush is how many spans a flush had, and how many commit writes a cycle.
func (c costs) perFlush() (spans, commits float64) {
	if c.Flushes > 0 && c.Cycles > 0 {
		spans = float64(c.FlushedSpans) / float64(c.Flushes)
		commits = float64(c.CommitWrites) / float64(c.Cycles)
	}
	return spans, commits
}

func (c costs) text() string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s "+format+"\n", append([]any{name}, args...)...)
	}
	perGiB := func(format string, v float64) string {
		if c.bytes < perGiBFrom {
			return ""
		}
		return fmt.Sprintf(format, v)
	}
	line("CPU", "server %.2f s%s   bench %.2f s%s", c.ServerCPU, perGiB(" (%.2f s/GiB)", c.ServerCPUPerGiB), c.BenchCPU, perGiB(" (%.2f s/GiB)", c.BenchCPUPerGiB))
	line("objects", "%d PUTs (%s%s)   %d GETs (%s)   %d LISTs", c.ObjectPuts, perGiB("%.0f a GiB, ", c.PutsPerGiB), sizeText(c.ObjectPutBytes),
		c.ObjectGets, sizeText(c.ObjectGetBytes), c.ObjectLists)
	line("table", "%d reads   %d writes: %d commits (%s, %d units, %.0f bytes a span), %d checkpoint rows (%s, %d units), %d beats", c.TableReads, c.TableWrites,
		c.CommitWrites, sizeText(c.CommitBytes), c.CommitUnits, c.BytesPerSpan, c.CheckpointWrites, sizeText(c.CheckpointBytes), c.CheckpointUnits, c.BeatWrites)
	if c.Flushes > 0 {
		line("flushes", "%d, each of %.1f spans and %.1f records; %d cycles", c.Flushes, float64(c.FlushedSpans)/float64(c.Flushes), c.RecordsPerFlush, c.Cycles)
	}
	line("memory", "server %s resident, %s at its peak, %s heap", sizeText(c.ResidentBytes), sizeText(c.PeakResidentBytes), sizeText(c.HeapBytes))
	return b.String()
}

func sizeText(n uint64) string { return humanize.IBytes(n) }

// processCPU is the CPU time of this process, user and system; 0 where the system does not tell.
func processCPU() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return 0
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
