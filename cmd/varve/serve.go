package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/internal/upkeep"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

const (
	// localPace and bucketPace space flushes: files cost an fsync, buckets bill requests.
	localPace  = 5 * time.Millisecond
	bucketPace = 250 * time.Millisecond
	// shutdownTime is what answers have to leave after the drain.
	shutdownTime = 5 * time.Second
)

// serveOptions are the flags of varve serve.
type serveOptions struct {
	listen, peerListen, advertise  string
	debugListen                    string
	data, segments, metadata, zone string
	logFormat, logLevel            string
	autoCreate                     int32
	insecure                       bool
	flushInterval                  time.Duration
	segmentBytes                   int64
	bufferBytes                    int64
	uploadBytes                    int64
	drainTimeout, leaseTime        time.Duration
	role                           string
	mergeBytes                     int64
	mergeAge                       time.Duration
	startTimeout                   time.Duration
	gcInterval, gcGrace            time.Duration
	gcShare                        float64
	cacheBytes, readBytes          int64
	coldBytes, coldRate            int64
	// wrap, if set, has its way with what a gateway is made of: for benches.
	wrap func(*gateway.Config, *backends)
}

func newServeCommand() *cobra.Command {
	o := &serveOptions{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run a gateway",
		Long: `Run a gateway: the API, /livez, /readyz and /metrics on one port.

Without flags it needs nothing but a folder. With --segments and --metadata the
records go to a bucket and their order to a table; credentials come from the
environment, a profile or a role.

Ctrl-C and SIGTERM finish what was accepted and exit with 0; a second one, half a
second later or more, exits at once.`,
		Example: `  varve serve
  varve serve --segments 's3://bucket/prefix?region=eu-west-1' --metadata 'dynamodb://table?region=eu-west-1'`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// main ends the context with the first signal, and the process with another one.
			return serve(cmd.Context(), o, cmd.ErrOrStderr(), nil)
		},
	}
	o.register(cmd.Flags())
	return cmd
}

const (
	// cacheBytes is how much of the bucket stays in memory, unless a memory limit is less than cacheShare times that.
	cacheBytes = 256 << 20
	cacheShare = 4
	// coldRate leaves most of a core, and of a network of a few hundred MiB a second, to the tail.
	coldRate = 64 << 20
)

// cache is how many bytes of the bucket stay in memory; negative: none.
func (o *serveOptions) cache(p *plan) int64 {
	switch {
	case o.cacheBytes > 0:
		return o.cacheBytes
	case o.cacheBytes == 0 || p.segments.local():
		return -1
	}
	return min(cacheBytes, debug.SetMemoryLimit(-1)/cacheShare)
}

func (o *serveOptions) register(f *pflag.FlagSet) {
	f.StringVar(&o.listen, "listen", "127.0.0.1:7480", "address of the API; other than loopback needs --insecure")
	f.StringVar(&o.data, "data", "./varve-data", "folder for the buffer, and for segments and table unless they are elsewhere")
	f.StringVar(&o.segments, "segments", "", "where segments go: file:///dir, s3://bucket/prefix?region=&endpoint=&checksum=, minio://host:port/bucket/prefix?tls=&region=&checksum=, mem:// (default file, in --data)")
	f.StringVar(&o.metadata, "metadata", "", "where the table is: bolt:///file, dynamodb://table?region=&endpoint=, mem:// (default bolt, in --data)")
	f.StringVar(&o.zone, "zone", "", "zone that this gateway runs in; gateways of one zone read from the bucket for each other")
	f.StringVar(&o.peerListen, "peer-listen", "", "address where other gateways on the same table reach this one; other than loopback needs --insecure (default: a free port on the host of --listen)")
	f.StringVar(&o.advertise, "advertise", "", "address that other gateways are told (default: that of --peer-listen)")
	f.Int32Var(&o.autoCreate, "auto-create", 1, "partitions of a topic that its first produce makes; 0: none is made")
	f.BoolVar(&o.insecure, "insecure", false, "serve addresses other than loopback although there is neither TLS nor a password")
	f.DurationVar(&o.flushInterval, "flush-interval", 0, fmt.Sprintf("space between flushes (default %s on files, %s on buckets)", localPace, bucketPace))
	f.Int64Var(&o.segmentBytes, "segment-bytes", 8<<20, "size at which a segment is sealed")
	f.Int64Var(&o.bufferBytes, "buffer-bytes", 128<<20, "bytes of appends that may wait for their commit; more are slowed, then refused")
	f.Int64Var(&o.uploadBytes, "upload-bytes", 64<<20, "bytes of segments that may be uploading at once")
	f.Int64Var(&o.cacheBytes, "cache-bytes", -1, "memory for what was read from the bucket, 0: none; -1: 256 MiB, or a quarter of GOMEMLIMIT if that is less, and none on files, which the system caches")
	f.Int64Var(&o.readBytes, "read-bytes", 128<<20, "memory for messages of records that are being sent")
	f.Int64Var(&o.coldBytes, "cold-bytes", 32<<20, "bytes that may be on their way from the bucket for readers of old data")
	f.Int64Var(&o.coldRate, "cold-rate", coldRate, "bytes a second that readers of old data get from the bucket while somebody appends or follows; 0: no limit")
	f.DurationVar(&o.startTimeout, "start-timeout", time.Minute, "how long a start waits for a bucket or table that does not answer; what refuses it ends it at once")
	f.DurationVar(&o.drainTimeout, "drain-timeout", 25*time.Second, "how long a clean shutdown may take")
	f.DurationVar(&o.leaseTime, "lease-time", 5*time.Second, "silence after which a gateway counts as dead")
	f.StringVar(&o.role, "role", roleAll, "all, gateway (others merge small segments) or compactor (merges, and takes no appends)")
	f.Int64Var(&o.mergeBytes, "merge-bytes", compactor.MaxTargetBytes, "size of merged segments")
	f.DurationVar(&o.mergeAge, "merge-age", time.Hour, "age at which small segments are merged although they fill no segment of that size")
	f.DurationVar(&o.gcInterval, "gc-interval", compactor.DefaultInterval, "space between collections of garbage; there are none while nothing becomes garbage")
	f.DurationVar(&o.gcGrace, "gc-grace", compactor.DefaultGrace, "how long readers may go by an index that names an object after nothing names it any more")
	f.Float64Var(&o.gcShare, "gc-share", compactor.DefaultMaxShare, "share of the bucket's bytes that one collection may delete unless it is forced")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.debugListen, "debug-listen", "", "loopback address for /debug/pprof (default: none)")
}

// plan is what the flags come to.
type plan struct {
	segments, metadata location
	data               string // absolute
	config             gateway.Config
	merging            compactor.Config
	log                *slog.Logger
}

// exclusive says that no other process can reach the table.
func (p *plan) exclusive() bool { return p.metadata.local() }

// plan checks the flags; nothing is touched yet.
func (o *serveOptions) plan(logs io.Writer) (*plan, error) {
	var faults []error
	note := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	p := &plan{}
	var err error
	p.data, err = filepath.Abs(o.data)
	note(err)
	p.segments, p.metadata = location{scheme: schemeFile, path: filepath.Join(p.data, "segments")}, location{scheme: schemeBolt, path: filepath.Join(p.data, "metadata.db")}
	if o.segments != "" {
		p.segments, err = parseLocation("--segments", o.segments, segmentsKeys)
		note(err)
	}
	if o.metadata != "" {
		p.metadata, err = parseLocation("--metadata", o.metadata, metadataKeys)
		note(err)
	}
	if p.segments.scheme == schemeMemory && p.metadata.scheme != schemeMemory {
		note(errors.New("--segments mem:// forgets everything at the end, and the table would name objects that are gone: use --metadata mem:// too"))
	}
	if p.metadata.scheme == schemeMemory && p.segments.scheme != schemeMemory {
		note(errors.New("--metadata mem:// forgets everything at the end, and the segments would be of a table that is gone: use --segments mem:// too"))
	}
	note(checkListen("--listen", o.listen, o.insecure))
	note(o.planPeers(p))
	if o.debugListen != "" {
		note(checkListen("--debug-listen", o.debugListen, false))
	}
	p.log, err = newLogger(logs, o.logFormat, o.logLevel)
	note(err)
	p.config = o.config(p)
	note(p.config.Validate())
	p.merging = compactor.Config{TargetBytes: o.mergeBytes, Age: o.mergeAge}
	if err := p.merging.Validate(); err != nil {
		note(fmt.Errorf("--merge-bytes, --merge-age: %w", err))
	}
	note(o.checkCollect())
	if len(faults) > 0 {
		return nil, usagef("%v", errors.Join(faults...))
	}
	return p, nil
}

func (o *serveOptions) config(p *plan) gateway.Config {
	c := gateway.Config{
		Address: o.listen, PeerAddress: o.advertise, Zone: o.zone, Version: version, Role: roleOf(o.role),
		FlushInterval: o.flushInterval, SegmentBytes: o.segmentBytes, BufferBytes: o.bufferBytes, UploadBytes: o.uploadBytes,
		AutoCreate: o.autoCreate, LeaseTime: o.leaseTime, DrainTime: o.drainTimeout, Exclusive: p.exclusive(), CheckAddress: !p.exclusive(),
	}
	c.CacheBytes, c.ReadBytes, c.ColdBytes, c.ColdRate = o.cache(p), o.readBytes, o.coldBytes, o.coldRate
	if c.ColdRate == 0 {
		c.ColdRate = -1
	}
	if p.segments.local() {
		c.HedgeShare = -1 // a disk does not become faster by that
	}
	if c.FlushInterval == 0 {
		c.FlushInterval = bucketPace
		if p.segments.local() {
			c.FlushInterval = localPace
		}
	}
	if c.Exclusive {
		c.CycleInterval = -1 // commits cost nothing but an fsync, which they share
	}
	return c
}

// planPeers checks how gateways are to reach each other. On a table of its own there are none.
func (o *serveOptions) planPeers(p *plan) error {
	if p.exclusive() {
		if o.peerListen != "" || o.advertise != "" {
			return fmt.Errorf("--peer-listen and --advertise are for gateways that share a table, and %s:// is this process's alone: "+
				"give all of them the same --metadata dynamodb://… and --segments", p.metadata.scheme)
		}
		return nil
	}
	if o.peerListen == "" {
		host, _, err := net.SplitHostPort(o.listen)
		if err != nil {
			return nil // said about --listen
		}
		o.peerListen = net.JoinHostPort(host, "0")
	}
	given := o.advertise != ""
	if !given {
		o.advertise = o.peerListen // with the port that it gets
	}
	if err := checkListen("--peer-listen", o.peerListen, o.insecure); err != nil {
		return err
	}
	if !given {
		return nil
	}
	if host, port, err := net.SplitHostPort(o.advertise); err != nil || host == "" || port == "" {
		return fmt.Errorf("--advertise %q: want host:port", o.advertise)
	}
	return nil
}

// advertised is the address that others are told, once it is known where peers are listened to.
func (o *serveOptions) advertised(bound net.Addr) (string, error) {
	if o.advertise != o.peerListen {
		return o.advertise, nil
	}
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsUnspecified() {
		return net.JoinHostPort(host, port), nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("--peer-listen %s is every address of this host: say with --advertise which one other gateways reach (%w)", o.peerListen, err)
	}
	return net.JoinHostPort(name, port), nil
}

// checkListen refuses addresses that others reach, unless that was said to be wanted.
func checkListen(flag, address string, insecure bool) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || port == "" {
		return fmt.Errorf("%s %q: want host:port", flag, address)
	}
	ip := net.ParseIP(host)
	if insecure || host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	if flag == "--debug-listen" {
		return fmt.Errorf("%s %s: only a loopback address will do", flag, address)
	}
	could := "read, write and delete everything"
	if flag == "--peer-listen" {
		could = "put the order of records in disorder"
	}
	return fmt.Errorf("%s %s: whoever reaches this address could %s, for there is no TLS and no password yet; "+
		"listen on 127.0.0.1, or say --insecure if the network keeps others out", flag, address, could)
}

func newLogger(out io.Writer, format, level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: want debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(out, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(out, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q: want text or json", format)
}

// serve runs a gateway until ctx ends and the drain is over. started, if set, is told
// the address once it serves.
func serve(ctx context.Context, o *serveOptions, logs io.Writer, started func(net.Addr)) (err error) {
	p, err := o.plan(logs)
	if err != nil {
		return err
	}
	syscall.Umask(0o077) // whatever is made: 0600 and 0700
	limitMemory(p)
	listener, err := net.Listen("tcp", o.listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	defer listener.Close() // the HTTP server may have closed it
	p.config.Address = listener.Addr().String()
	var peers net.Listener
	if !p.exclusive() {
		if peers, err = net.Listen("tcp", o.peerListen); err != nil {
			return fmt.Errorf("--peer-listen: %w", err)
		}
		defer peers.Close()
		if p.config.PeerAddress, err = o.advertised(peers.Addr()); err != nil {
			return err
		}
	}
	wait := &startWait{until: time.Now().Add(o.startTimeout), log: p.log}
	b, err := openBackends(ctx, p, wait)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if o.wrap != nil {
		o.wrap(&p.config, b)
	}
	if !p.segments.local() || !p.metadata.local() {
		p.config.StartTime = time.Until(wait.until)
	}
	g, err := gateway.New(p.config, gateway.Dependencies{Store: b.store, Table: b.table, Buffers: b.buffers, Log: p.log})
	if err != nil {
		return err
	}
	care, err := upkeep.New(g, o.upkeep(p, g))
	if err != nil {
		return err
	}
	defer care.Stop()
	if o.debugListen != "" {
		stop, err := serveDebug(o.debugListen, p.log)
		if err != nil {
			return err
		}
		defer stop()
	}
	defer context.AfterFunc(ctx, func() { p.log.Info("draining: what was accepted is being finished") })()
	err = run(ctx, g, listener, peers, func() {
		care.Start(ctx)
		p.announce(g, b, listener.Addr())
		if started != nil {
			started(listener.Addr())
		}
	})
	care.Stop()
	if err == nil {
		p.log.Info("stopped; nothing is left undone")
	}
	return err
}

// upkeep says what runs beside the gateway.
func (o *serveOptions) upkeep(p *plan, g *gateway.Gateway) upkeep.Config {
	c := upkeep.Config{Collecting: compactor.CollectConfig{Grace: o.gcGrace, Interval: o.gcInterval, MaxShare: o.gcShare}, Log: p.log, Meters: g.Registry()}
	if p.config.Role != metadata.RoleGateway {
		c.Merging = &p.merging
	}
	return c
}

// roleAll is what --role says of a process that does everything.
const roleAll = "all"

// roleOf is what a gateway's row says.
func roleOf(flag string) string {
	if flag == roleAll {
		return metadata.RoleAll
	}
	return flag
}

// run serves HTTP for as long as the gateway runs, the drain included, and a little longer.
// peers, if there are any, are served on an address of their own.
func run(ctx context.Context, g *gateway.Gateway, listener, peers net.Listener, started func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	servers, listeners := []*http.Server{g.NewHTTPServer()}, []net.Listener{listener}
	if peers != nil {
		servers, listeners = append(servers, g.NewPeerHTTPServer()), append(listeners, peers)
	}
	served := make(chan error, len(servers))
	for i, server := range servers {
		go func() {
			err := server.Serve(listeners[i])
			cancel(err) // without HTTP there is nothing to run for
			served <- err
		}()
	}
	err := g.Run(ctx, started)
	limit, stop := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer stop()
	for _, server := range servers {
		if server.Shutdown(limit) != nil {
			server.Close() // whoever has not left by now is cut off
		}
	}
	for range servers {
		if failed := <-served; !errors.Is(failed, http.ErrServerClosed) {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// announce says what is used.
func (p *plan) announce(g *gateway.Gateway, b *backends, address net.Addr) {
	buffered := "fsync of the buffer"
	if p.metadata.scheme == schemeMemory {
		buffered = "fsync of a buffer that goes with the process"
	}
	p.log.Info("varve serves", "version", version, "listen", address.String(), "cluster", g.ClusterID(), "gateway", string(g.ID()),
		"peers", p.config.PeerAddress, "segments", b.store.String(), "metadata", b.table.String(), "buffer", b.folder, "flush_interval", p.config.FlushInterval.String(),
		"acks_committed", "segments and metadata", "acks_buffered", buffered, "exclusive", p.config.Exclusive)
}

// backends are what a gateway works on, opened and checked.
type backends struct {
	store   segments.Store
	table   metadata.Table
	buffers *segments.BufferDir
	folder  string // of the buffer
	closers []func() error
}

// openBackends opens and checks buffer, table and store. What is in use by another
// process, missing or forbidden is refused with the next step.
func openBackends(ctx context.Context, p *plan, wait *startWait) (b *backends, err error) {
	b = &backends{folder: filepath.Join(p.data, "buffer")}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if p.metadata.scheme == schemeMemory {
		// A table that forgets its topics makes every buffer meaningless.
		if b.folder, err = os.MkdirTemp("", "varve-buffer-"); err != nil {
			return b, err
		}
		b.closers = append(b.closers, func() error { return os.RemoveAll(b.folder) })
	} else if err := os.MkdirAll(p.data, 0o700); err != nil {
		return b, fmt.Errorf("--data: %w", err)
	}
	b.buffers, err = segments.OpenBufferDir(segments.OS(), b.folder, segments.BufferConfig{})
	if errors.Is(err, segments.ErrLocked) {
		return b, folderInUse(p, b.folder)
	}
	if err != nil {
		return b, err
	}
	b.closers = append(b.closers, b.buffers.Close)
	table, closer, err := openTable(ctx, p.metadata)
	if p.metadata.scheme == schemeBolt && errors.Is(err, metadata.ErrUnavailable) {
		return b, fmt.Errorf("the table %s %w: stop that one; %s", p.metadata.path, errInUse, sharedTableAdvice)
	}
	if err != nil {
		return b, err
	}
	b.closers = append(b.closers, closer.Close)
	cluster, err := checkTable(ctx, table, p.metadata, wait)
	if err != nil {
		return b, err
	}
	store, err := openStore(ctx, p.segments)
	if err != nil {
		return b, unusable(err, p.segments.scheme+"://"+p.segments.host, storeAdvice(err, p.segments))
	}
	b.store, b.table = store, table // the gateway tries again by itself, and counts each try
	warning, err := checkStore(ctx, store, cluster, p.segments, p.exclusive(), wait)
	if err != nil {
		return b, err
	}
	if warning != nil {
		p.log.Warn("the object store does not keep its promises; a second gateway must not use it", "error", warning)
	} else {
		p.log.Info("the object store was tried and keeps its promises", "segments", store.String())
	}
	return b, nil
}

// sharedTableAdvice is for whoever starts a second gateway on a table that is one process's. Another folder or
// file would make another cluster, which knows nothing of the first.
const sharedTableAdvice = "several gateways need one table that they share: --metadata dynamodb://… and --segments"

// errInUse is in errors of starts on what another process works on.
var errInUse = errors.New("is in use by another process")

// folderInUse is the error of a start on a data folder that another process works on.
func folderInUse(p *plan, folder string) error {
	if p.exclusive() {
		return fmt.Errorf("--data: %s %w: stop that one; %s", folder, errInUse, sharedTableAdvice)
	}
	return fmt.Errorf("--data: %s %w: stop that one, or give this one a data folder of its own", folder, errInUse)
}

// close closes in reverse.
func (b *backends) close() error {
	var faults []error
	for i := len(b.closers) - 1; i >= 0; i-- {
		faults = append(faults, b.closers[i]())
	}
	return errors.Join(faults...)
}

// limitMemory has the garbage collector work harder before the process grows past what
// its limits add up to, unless GOMEMLIMIT says what to do.
func limitMemory(p *plan) {
	if os.Getenv("GOMEMLIMIT") != "" || debug.SetMemoryLimit(-1) != math.MaxInt64 {
		return
	}
	const base = 128 << 20 // caches, connections, the runtime
	const requests = 128 << 20
	limit := base + requests + p.config.BufferBytes + p.config.UploadBytes + max(p.config.CacheBytes, 0) + p.config.ReadBytes + p.config.ColdBytes
	if p.config.Role != metadata.RoleGateway {
		limit += 2 * p.merging.TargetBytes // the segment that is made, and what is read for it
	}
	debug.SetMemoryLimit(limit)
}

// serveDebug serves pprof on an address of its own.
func serveDebug(address string, log *slog.Logger) (stop func(), err error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("--debug-listen: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("the debug listener ended", "error", err)
		}
	}()
	log.Info("profiles are served", "debug_listen", listener.Addr().String())
	return func() {
		server.Close()
		<-done
	}, nil
}
