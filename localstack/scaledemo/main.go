// Command scaledemo has gateways come and go under a steady load, and says what clients noticed: 1 to 4 to 1, then a
// rolling restart of three. It ends with status 1 if a request failed, a record was lost or is there
// twice, a gateway did not end well, or a new one took its first append later than two seconds after its start.
//
//	producers ──┐                       ┌─ varve serve ─┐
//	            ├─ HTTP ─ balancer ─────┼─ varve serve ─┼─ MinIO, dynalite
//	a follower ─┘   (a request a turn,  └─ …            ┘
//	                 those that are ready)
//
// Clients know one address, as they do behind a Service or a load balancer: who stands behind it is the
// balancer's business, which asks each gateway for /readyz. All of it runs here, as processes and on 127.0.0.1.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	binary     string
	phase      time.Duration
	records    int
	size       int
	partitions int
}

func main() {
	var o options
	flag.StringVar(&o.binary, "varve", filepath.Join("bin", "varve"), "path of the `binary`")
	flag.DurationVar(&o.phase, "phase", 10*time.Second, "how long each number of gateways is kept")
	flag.IntVar(&o.records, "records", 400, "records a second, of all producers together")
	flag.IntVar(&o.size, "size", 500, "bytes of a record")
	flag.IntVar(&o.partitions, "partitions", 24, "partitions of the topic")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "scale-demo:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, out, notes io.Writer) (err error) {
	if o.binary, err = filepath.Abs(o.binary); err != nil {
		return err
	}
	if _, err := os.Stat(o.binary); err != nil {
		return fmt.Errorf("%w: run it by 'make scale-demo', which builds it first", err)
	}
	folder, err := os.MkdirTemp("", "varve-scale-demo-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			fmt.Fprintf(notes, "what the processes said is in %s\n", folder)
			return
		}
		err = os.RemoveAll(folder)
	}()
	p, err := prepare(ctx, folder, notes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	d, err := newDemo(o, p, notes)
	if err != nil {
		return err
	}
	defer d.close()
	if err := d.run(ctx); err != nil {
		return err
	}
	return d.report(out)
}
