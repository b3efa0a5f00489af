package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// floorProcess is a floor server that runs.
type floorProcess struct {
	child *child
	dir   string
	wire  *wire
}

// startFloor runs a floor server with its files in a folder within dir.
func (a *app) startFloor(dir string, connections int) (*floorProcess, error) {
	own, err := os.MkdirTemp(dir, "varve-floor-")
	if err != nil {
		return nil, err
	}
	f := &floorProcess{dir: own}
	if f.child, err = startChild("bench", "floor-server", "--dir", own); err != nil {
		return nil, errors.Join(err, os.RemoveAll(own))
	}
	address, err := f.child.stdout.ReadString('\n')
	if err != nil {
		return nil, errors.Join(f.child.failed(), os.RemoveAll(own))
	}
	f.wire = a.newWire(strings.TrimSpace(address), connections)
	return f, nil
}

func (f *floorProcess) stop() error {
	f.wire.close()
	return errors.Join(f.child.stop(), os.RemoveAll(f.dir))
}

// cpu is what the server used since its start.
func (f *floorProcess) cpu(ctx context.Context) (time.Duration, error) {
	response, err := f.get(ctx, "/usage")
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var u floorUsage
	err = json.NewDecoder(response.Body).Decode(&u)
	return time.Duration(u.CPUSeconds * float64(time.Second)), err
}

func (f *floorProcess) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.wire.base+path, nil)
	if err != nil {
		return nil, err
	}
	response, err := f.wire.http.Do(req)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		response.Body.Close()
		return nil, fmt.Errorf("the floor server answered GET %s with %s", path, response.Status)
	}
	return response, nil
}

// measured is what moving bytes took, floor or gateway.
type measured struct {
	Bytes     int64   `json:"bytes"`
	Seconds   float64 `json:"seconds"`
	MiB       float64 `json:"mib_per_second"`
	ServerCPU float64 `json:"server_cpu_seconds_per_gib"`
	BenchCPU  float64 `json:"bench_cpu_seconds_per_gib"`
}

func newMeasured(bytes int64, elapsed, server, own time.Duration) measured {
	if bytes == 0 {
		return measured{Seconds: elapsed.Seconds()}
	}
	size := float64(bytes) / gib
	return measured{bytes, elapsed.Seconds(), float64(bytes) / mib / elapsed.Seconds(), server.Seconds() / size, own.Seconds() / size}
}

// measure runs work between two looks at the CPU time of server and bench.
func (f *floorProcess) measure(ctx context.Context, work func() (bytes int64, err error)) (measured, error) {
	before, err := f.cpu(ctx)
	if err != nil {
		return measured{}, err
	}
	began, own := time.Now(), processCPU()
	bytes, err := work()
	elapsed, used := time.Since(began), processCPU()-own
	if err != nil {
		return measured{}, err
	}
	after, err := f.cpu(context.WithoutCancel(ctx))
	return newMeasured(bytes, elapsed, after-before, used), err
}

// produce runs a load against the floor server.
func (f *floorProcess) produce(ctx context.Context, l *load, end limit) (measured, error) {
	return f.measure(ctx, func() (int64, error) {
		r, err := l.run(ctx, end)
		return r.Bytes, err
	})
}

// floorLoad is a load whose batches go to the floor server.
func (f *floorProcess) load(ctx context.Context, o *loadOptions, path string) (*load, error) {
	l, err := o.load(benchTopic{name: "floor", partitions: o.partitions})
	if err != nil {
		return nil, err
	}
	l.send = func(ctx context.Context, request []byte) error {
		_, err := f.wire.call(ctx, path, request)
		return err
	}
	return l, l.prepare(ctx)
}

// consume reads the range file over and over by so many readers, for a while.
func (f *floorProcess) consume(ctx context.Context, path string, readers int, size int64, duration time.Duration) (measured, error) {
	return f.measure(ctx, func() (int64, error) {
		end := time.Now().Add(duration)
		var group errgroup.Group
		totals := make([]int64, readers)
		for i := range readers {
			group.Go(func() error {
				buffer := make([]byte, floorPiece)
				for time.Now().Before(end) && ctx.Err() == nil {
					n, err := f.readRange(ctx, fmt.Sprintf("%s?bytes=%d", path, size), buffer)
					totals[i] += n
					if err != nil && ctx.Err() == nil {
						return err
					}
				}
				return nil
			})
		}
		err := group.Wait()
		var total int64
		for _, n := range totals {
			total += n
		}
		return total, err
	})
}

func (f *floorProcess) readRange(ctx context.Context, path string, buffer []byte) (int64, error) {
	response, err := f.get(ctx, path)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	var total int64
	for {
		n, err := io.ReadFull(response.Body, buffer)
		total += int64(n)
		if err == io.EOF || err == io.ErrUnexpectedEOF && total == response.ContentLength {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// fill makes the file of ranges.
func (f *floorProcess) fill(ctx context.Context, shape batchShape, size int64) error {
	data, err := newReadyRequest(shape, newRandom())
	if err != nil {
		return err
	}
	return f.post(ctx, "/fill", &repeated{data: data.batch, left: size})
}

// reset has the server remove what it wrote.
func (f *floorProcess) reset(ctx context.Context) error { return f.post(ctx, "/reset", nil) }

func (f *floorProcess) post(ctx context.Context, path string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.wire.base+path, body)
	if err != nil {
		return err
	}
	response, err := f.wire.http.Do(req)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("the floor server answered POST %s with %s", path, response.Status)
	}
	return nil
}

// repeated reads the same bytes over and over.
type repeated struct {
	data []byte
	at   int
	left int64
}

func (r *repeated) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), r.left)], r.data[r.at:])
	r.at = (r.at + n) % len(r.data)
	r.left -= int64(n)
	return n, nil
}

// floorReport is what `varve bench floor` prints.
type floorReport struct {
	Bench    string          `json:"bench"`
	Produce  measured        `json:"produce"`
	Synced   measured        `json:"produce_fsync,omitzero"` // of compare, on files
	Pread    measured        `json:"consume_pread"`
	Sendfile measured        `json:"consume_sendfile"`
	Objects  []objectsResult `json:"objects,omitempty"`
}

func (r *floorReport) text() string {
	var b strings.Builder
	b.WriteString("floor: bare servers with the same bodies, and bare clients of the bucket\n")
	line := func(name string, m measured) {
		fmt.Fprintf(&b, "  %-28s %8.1f MiB/s   server %.2f s/GiB   bench %.2f s/GiB\n", name, m.MiB, m.ServerCPU, m.BenchCPU)
	}
	line("produce: read, CRC, write", r.Produce)
	line("consume: pread, write", r.Pread)
	line("consume: sendfile", r.Sendfile)
	for _, o := range r.Objects {
		b.WriteString(o.text())
	}
	return b.String()
}

func (o objectsResult) text() string {
	return fmt.Sprintf("  %-28s %8.1f MiB/s   client %.2f s/GiB\n", fmt.Sprintf("%s 8 MiB: %s, %d callers", o.Op, o.SDK, o.Callers), o.MiB, o.CPU)
}

// floorOptions are the flags of floor and compare.
type floorOptions struct {
	loadOptions
	readers            int
	readBytes          byteSize
	duration           time.Duration
	dir                string
	segments, metadata string
	cacheBytes         int64 // of compare's gateway; negative: its default
}

func (o *floorOptions) register(cmd *cobra.Command, duration time.Duration) {
	f := cmd.Flags()
	o.readBytes, o.recordSize, o.batchSize = 256*mib, kib, mib
	o.acks, o.codec = "committed", "none"
	f.Int32Var(&o.partitions, "partitions", 8, "partitions that the batches go to")
	f.Var(&o.recordSize, "record-size", "bytes of a record's value, random")
	f.Var(&o.batchSize, "batch-size", "bytes of a batch")
	f.IntVar(&o.producers, "producers", 8, "producers at once")
	f.IntVar(&o.inFlight, "in-flight", 4, "requests that each producer has open")
	f.IntVar(&o.readers, "consumers", 2, "readers at once")
	f.Var(&o.readBytes, "read-bytes", "bytes that one reader gets in one pass of the floor")
	f.DurationVar(&o.duration, "duration", duration, "how long each measurement takes")
	f.StringVar(&o.dir, "dir", "", "folder for temporary data (default: the system's)")
	f.StringVar(&o.segments, "segments", "", "a bucket, s3://… or minio://…: measure bare clients of it too")
}

func newBenchFloorCommand(a *app) *cobra.Command {
	var o floorOptions
	cmd := &cobra.Command{
		Use:   "floor",
		Short: "Measure the least that the same work costs on this machine",
		Long: `Measure bare servers, as processes of their own, so that their CPU time is told from the bench's:
one takes the bodies that 'varve bench produce' sends, checks the CRC of the batch in each and writes
it to a file; one sends ranges of a file. With --segments, bare S3 clients put and get objects of 8 MiB.`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.benchFloor(cmd.Context(), &o)
			if err != nil {
				return err
			}
			return a.print(r)
		},
	}
	o.register(cmd, 4*time.Second)
	return cmd
}

func (a *app) benchFloor(ctx context.Context, o *floorOptions) (r *floorReport, err error) {
	f, err := a.startFloor(o.dir, o.producers*o.inFlight+o.readers)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.stop()) }()
	r = &floorReport{Bench: "floor"}
	l, err := f.load(ctx, &o.loadOptions, "/produce")
	if err != nil {
		return nil, err
	}
	if err := f.fill(ctx, l.shape, int64(o.readBytes)); err != nil {
		return nil, err
	}
	if _, err := l.run(ctx, limit{duration: o.duration / 4}); err != nil { // connections, memory
		return nil, err
	}
	if r.Produce, err = f.produce(ctx, l, limit{duration: o.duration}); err != nil {
		return nil, err
	}
	if r.Pread, err = f.consume(ctx, "/pread", o.readers, int64(o.readBytes), o.duration); err != nil {
		return nil, err
	}
	if r.Sendfile, err = f.consume(ctx, "/sendfile", o.readers, int64(o.readBytes), o.duration); err != nil {
		return nil, err
	}
	if o.segments != "" && ctx.Err() == nil {
		r.Objects, err = bareClients(ctx, f.dir, o.segments, o.duration)
	}
	return r, err
}

// floorObjects runs a bare client of the bucket as a process.
func floorObjects(ctx context.Context, op, sdk, place string, callers int, duration time.Duration) (r objectsResult, err error) {
	c, err := startChild("bench", "floor-objects", "--op", op, "--sdk", sdk, "--segments", place, "--callers", fmt.Sprint(callers), "--duration", duration.String())
	if err != nil {
		return r, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.stop() })()
	if err := json.NewDecoder(c.stdout).Decode(&r); err != nil {
		return r, c.failed()
	}
	<-c.exited
	return r, nil
}
