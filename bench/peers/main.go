// Command peers gives the same work to Varve and to other servers that hold logs, one after the other on this machine,
// and says what each one's acknowledgement means.
//
//	workers ── batches of 1,000 records of 1 KiB, each acknowledged as durable ──> 8 logs of a server
//	readers <── all of it, from the start ──────────────────────────────────────── of a server
//
// Run it by make bench-peers. Each server is a process of its own with its default settings, but for those that make an
// acknowledgement durable. What is not installed is left out, and said so. It is a module of its own, so that whoever
// imports Varve gets nothing of the others.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
)

// options are the flags.
type options struct {
	varve, segments, metadata string
	only, commit, results     string
	duration                  time.Duration
	records, size             int // of a batch; bytes of a record
	workers, logs             int
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == "nats-server" {
		if err := serveNATS(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "nats-server:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.varve, "varve", filepath.Join("bin", "varve"), "`path` of the binary")
	flag.StringVar(&o.segments, "segments", "", "bucket of Varve; without it Varve is measured on files only")
	flag.StringVar(&o.metadata, "metadata", "", "table of Varve")
	flag.StringVar(&o.only, "only", "", "servers to measure: `names` with commas between them (default: all)")
	flag.StringVar(&o.commit, "commit", "", "what is measured, for the results")
	flag.StringVar(&o.results, "results", "", "`folder` in which to leave peers.json")
	flag.DurationVar(&o.duration, "duration", 5*time.Second, "how long each server is produced to")
	flag.IntVar(&o.records, "records", 1000, "records of a batch")
	flag.IntVar(&o.size, "size", 1024, "bytes of a record")
	flag.IntVar(&o.workers, "workers", 32, "batches in flight")
	flag.IntVar(&o.logs, "logs", 8, "partitions, streams or tables")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, &o); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		stop()
		os.Exit(1)
	}
}

// peer is a kind of server.
type peer struct {
	name string
	// ack says what has happened when a batch is acknowledged.
	ack   string
	start func(ctx context.Context, dir string, o *options) (server, error)
}

// server is one that runs. All methods may be called at once.
type server interface {
	// produce appends a batch to a log, and returns once it is acknowledged.
	produce(ctx context.Context, log int, records [][]byte) error
	// consume reads so many records of a log from its start, and returns their bytes.
	consume(ctx context.Context, log int, records int64) (int64, error)
	// cpu is the time of the server's processes since their start.
	cpu() (time.Duration, error)
	close() error
}

// errAbsent says that a server is not installed.
var errAbsent = errors.New("not installed here")

var peers = []peer{
	{"varve-files", "segment and commit fsynced on one disk", startVarveFiles},
	{"varve-bucket", "segment in the bucket, commit in the table (MinIO and dynalite on the same disk here; their CPU is not counted)", startVarveBucket},
	{"nats-records", "each record a message, published asynchronously; JetStream, one replica, sync_interval always: fsynced on one disk", startNATSRecords},
	{"nats-batches", "a batch published atomically; else as nats-records", startNATSBatches},
	{"redis", "a batch of XADD in one pipeline; appendfsync always: fsynced on one disk, in memory too", startRedis},
	{"postgres", "a transaction of one COPY; synchronous_commit and fsync on: write-ahead log fsynced on one disk", startPostgres},
}

// measured is what one server did.
type measured struct {
	Server     string  `json:"server"`
	Version    string  `json:"version,omitempty"`
	Ack        string  `json:"acknowledgement"`
	Records    int64   `json:"records"`
	Produce    float64 `json:"produce_mib_per_second"`
	Rate       float64 `json:"produce_records_per_second"`
	AckP50     float64 `json:"ack_p50_ms"`
	AckP99     float64 `json:"ack_p99_ms"`
	ProduceCPU float64 `json:"produce_server_cpu_seconds_per_gib"`
	Consume    float64 `json:"consume_mib_per_second"`
	ConsumeCPU float64 `json:"consume_server_cpu_seconds_per_gib"`
	Absent     string  `json:"absent,omitempty"`
}

type report struct {
	Began   time.Time  `json:"began"`
	Commit  string     `json:"commit"`
	Command string     `json:"command"`
	System  string     `json:"system"`
	Cores   int        `json:"cores"`
	Load    float64    `json:"load_average"`
	Work    string     `json:"work"`
	Servers []measured `json:"servers"`
}

func run(ctx context.Context, o *options) error {
	r := &report{Began: time.Now().UTC().Truncate(time.Second), Commit: o.commit, Command: "make bench-peers", Cores: runtime.GOMAXPROCS(0), System: runtime.GOOS + "/" + runtime.GOARCH,
		Work: fmt.Sprintf("%d workers, each with one batch of %d records of %d bytes in flight, to %d logs, for %s; then all of it read from the start by 2 readers", o.workers, o.records, o.size, o.logs, o.duration)}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		// What cannot be read stays 0.
		_, _ = fmt.Sscan(string(load), &r.Load)
	}
	for _, p := range peers {
		if o.only != "" && !slices.Contains(strings.Split(o.only, ","), p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "peers: %s\n", p.name)
		m, err := p.measure(ctx, o)
		if errors.Is(err, errAbsent) {
			m.Absent, err = err.Error(), nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		r.Servers = append(r.Servers, m)
	}
	r.print()
	if o.results == "" {
		return nil
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(o.results, "peers.json"), append(data, '\n'), 0o644)
}

func (r *report) print() {
	fmt.Printf("%s; %d cores, load %.1f\n", r.Work, r.Cores, r.Load)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "server\tproduce MiB/s\tack p50, p99 ms\tserver CPU s/GiB\tconsume MiB/s\tserver CPU s/GiB\tan ack means")
	for _, m := range r.Servers {
		if m.Absent != "" {
			fmt.Fprintf(t, "%s\t%s\n", m.Server, m.Absent)
			continue
		}
		fmt.Fprintf(t, "%s\t%.1f\t%.1f, %.1f\t%.2f\t%.0f\t%.2f\t%s\n", m.Server, m.Produce, m.AckP50, m.AckP99, m.ProduceCPU, m.Consume, m.ConsumeCPU, m.Ack)
	}
	// It writes to standard output.
	_ = t.Flush()
}

func (p *peer) measure(ctx context.Context, o *options) (m measured, err error) {
	m = measured{Server: p.name, Ack: p.ack}
	dir, err := os.MkdirTemp("", "varve-peers-")
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s, err := p.start(ctx, dir, o)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if v, ok := s.(interface{ version() string }); ok {
		m.Version = v.version()
	}
	counts, err := produce(ctx, s, o, &m)
	if err != nil {
		return m, err
	}
	return m, consume(ctx, s, counts, &m)
}

// produce has workers append for a while. It returns how many records each log has.
func produce(ctx context.Context, s server, o *options, m *measured) ([]int64, error) {
	batches := make([][][]byte, o.workers)
	for i := range batches {
		batches[i] = randomBatch(o.records, o.size)
	}
	for log := range o.logs { // first appends, connections
		if err := s.produce(ctx, log, batches[0][:1]); err != nil {
			return nil, err
		}
	}
	counts := make([]atomic.Int64, o.logs)
	var mu sync.Mutex
	var acks []time.Duration
	before, err := s.cpu()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	group, running := errgroup.WithContext(ctx)
	for i := range o.workers {
		group.Go(func() error {
			for time.Since(began) < o.duration {
				called := time.Now()
				if err := s.produce(running, i%o.logs, batches[i]); err != nil {
					return err
				}
				took := time.Since(called)
				counts[i%o.logs].Add(int64(o.records))
				mu.Lock()
				acks = append(acks, took)
				mu.Unlock()
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	seconds := time.Since(began).Seconds()
	after, err := s.cpu()
	if err != nil {
		return nil, err
	}
	all := make([]int64, o.logs)
	for i := range counts {
		m.Records += counts[i].Load()
		all[i] = counts[i].Load() + 1
	}
	bytes := float64(m.Records) * float64(o.size)
	m.Rate, m.Produce = float64(m.Records)/seconds, bytes/(1<<20)/seconds
	m.ProduceCPU = (after - before).Seconds() / (bytes / (1 << 30))
	slices.Sort(acks)
	at := func(q float64) float64 {
		return float64(acks[int(q*float64(len(acks)-1))]) / float64(time.Millisecond)
	}
	m.AckP50, m.AckP99 = at(0.5), at(0.99)
	return all, nil
}

func randomBatch(records, size int) [][]byte {
	random := rand.NewChaCha8([32]byte{1})
	batch := make([][]byte, records)
	for i := range batch {
		batch[i] = make([]byte, size)
		// It never fails.
		_, _ = random.Read(batch[i])
	}
	return batch
}

// consume has two readers read all logs.
func consume(ctx context.Context, s server, counts []int64, m *measured) error {
	before, err := s.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	var bytes atomic.Int64
	group, running := errgroup.WithContext(ctx)
	const readers = 2
	for r := range readers {
		group.Go(func() error {
			for log := r; log < len(counts); log += readers {
				n, err := s.consume(running, log, counts[log])
				if err != nil {
					return err
				}
				bytes.Add(n)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	seconds := time.Since(began).Seconds()
	after, err := s.cpu()
	m.Consume = float64(bytes.Load()) / (1 << 20) / seconds
	m.ConsumeCPU = (after - before).Seconds() / (float64(bytes.Load()) / (1 << 30))
	return err
}
