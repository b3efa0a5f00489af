package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"github.com/cenkalti/backoff/v5"

	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// DefaultServer is used when a Config names none.
const DefaultServer = "http://127.0.0.1:7480"

// Config says how to reach a cluster. The zero value reaches a server on this machine.
type Config struct {
	// Servers are base URLs such as "http://host:7480" of gateways of one cluster. A client draws one of them, and
	// goes on with another when that one cannot be reached, is not ready or leaves; a server that failed is left alone
	// for a second or more. Default: DefaultServer.
	Servers []string
	// HTTPClient replaces the default one: HTTP/1.1 over as many connections as there are requests in
	// flight, kept open. (Bulk costs two thirds of the CPU that one HTTP/2 connection costs.)
	HTTPClient *http.Client
	// Transport replaces HTTP altogether; Servers and HTTPClient are unused then. For tests.
	Transport connect.Transport
	// UserAgent is sent with each request. Default: "varve-go".
	UserAgent string
	// RequestTimeout bounds each call that is not a stream, its retries included; a Producer has a
	// limit of its own, and uses this one for each attempt. Default 30 s.
	RequestTimeout time.Duration
	// MaxMessageBytes is the largest response message accepted, in bytes. Default 64 MiB.
	MaxMessageBytes int
}

func (cfg Config) withDefaults() Config {
	if len(cfg.Servers) == 0 {
		cfg.Servers = []string{DefaultServer}
	}
	if cfg.UserAgent == "" {
		cfg.UserAgent = "varve-go"
	}
	if cfg.RequestTimeout == 0 {
		cfg.RequestTimeout = 30 * time.Second
	}
	if cfg.MaxMessageBytes == 0 {
		cfg.MaxMessageBytes = 64 << 20
	}
	return cfg
}

// Validate lists every fault at once.
func (cfg Config) Validate() error {
	var faults []error
	for _, s := range cfg.Servers {
		u, err := url.Parse(s)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			faults = append(faults, fmt.Errorf("server %q: want http://host:port or https://host:port", s))
		}
	}
	if cfg.RequestTimeout < 0 {
		faults = append(faults, fmt.Errorf("request timeout %v: must not be negative", cfg.RequestTimeout))
	}
	if cfg.MaxMessageBytes < 0 {
		faults = append(faults, fmt.Errorf("max message bytes %d: must not be negative", cfg.MaxMessageBytes))
	}
	if len(faults) > 0 {
		return fmt.Errorf("client configuration: %w", errors.Join(faults...))
	}
	return nil
}

// Client talks to one cluster. It is safe for concurrent use.
type Client struct {
	cfg Config
	// firstPause is what backing off begins with.
	firstPause time.Duration
	servers    servers
	// idle is the HTTP client to close with us, nil when the caller brought one.
	idle *http.Client
	done <-chan struct{}
	end  context.CancelFunc

	appendersMu sync.Mutex
	appenders   map[topicPartition]*appender
}

type topicPartition struct {
	topic     string
	partition int32
}

func (w topicPartition) String() string { return fmt.Sprintf("%s/%d", w.topic, w.partition) }

// New returns a client. It connects at the first call, so that it succeeds without a server.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := newClient(cfg.withDefaults())
	if c.cfg.Transport != nil {
		c.start(newEndpoint("transport", c.cfg.Transport, c.cfg.UserAgent))
		return c, nil
	}
	hc := c.cfg.HTTPClient
	if hc == nil {
		hc = newHTTPClient()
		c.idle = hc
	}
	c.servers.dropIdle = hc.CloseIdleConnections
	var endpoints []*endpoint
	for _, server := range c.cfg.Servers {
		transport := connecthttp.NewTransport(hc, strings.TrimSuffix(server, "/"),
			// Batches carry their own compression.
			connecthttp.WithCompressors(),
			connecthttp.WithReadMaxBytes(c.cfg.MaxMessageBytes),
		)
		endpoints = append(endpoints, newEndpoint(server, transport, c.cfg.UserAgent))
	}
	c.start(endpoints...)
	return c, nil
}

func newClient(cfg Config) *Client {
	ctx, cancel := context.WithCancel(context.Background())
	return &Client{
		cfg:        cfg,
		firstPause: 20 * time.Millisecond,
		servers:    servers{ctx: ctx},
		done:       ctx.Done(),
		end:        cancel,
		appenders:  make(map[topicPartition]*appender),
	}
}

func (c *Client) start(endpoints ...*endpoint) {
	c.servers.all = endpoints
	c.servers.skip = skipPauses * c.firstPause
	c.servers.slow = c.cfg.RequestTimeout / 8
	c.servers.start(time.Now())
}

// skipPauses is for how many first pauses a server that failed is left alone: a second.
const skipPauses = 50

func newHTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		DisableCompression:  true,
		MaxIdleConns:        0,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
	}}
}

func newEndpoint(name string, transport connect.Transport, userAgent string) *endpoint {
	rpc := connect.NewClient(transport, func(next connect.ClientFunc) connect.ClientFunc {
		return func(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
			if info, ok := connect.CallInfoForClientContext(ctx); ok {
				info.RequestHeader().Set("User-Agent", userAgent)
			}
			return next(ctx, spec)
		}
	})
	return &endpoint{
		name:    name,
		log:     varvev1connect.NewLogServiceClient(rpc),
		topics:  varvev1connect.NewTopicServiceClient(rpc),
		cluster: varvev1connect.NewClusterServiceClient(rpc),
	}
}

// Close frees connections and makes later calls fail with ErrClosed. Close producers first: what
// they still hold is lost otherwise.
func (c *Client) Close() error {
	c.end()
	c.servers.wait()
	if c.idle != nil {
		c.idle.CloseIdleConnections()
	}
	return nil
}

var errClientClosed = fmt.Errorf("client: %w", ErrClosed)

func (c *Client) closed() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// retryPolicy says which failures of a call may be tried again.
type retryPolicy uint8

const (
	// anyOutcome: repeating changes nothing.
	anyOutcome retryPolicy = iota
	// onlyDefinite: repeat only what certainly had no effect.
	onlyDefinite
	// untilSettled: repeating changes nothing, but the caller wants to know whether it took effect.
	untilSettled
)

// repeatable is the policy for a call that says what it wants to be, or else what it wants done.
func repeatable(idempotent bool) retryPolicy {
	if idempotent {
		return anyOutcome
	}
	return onlyDefinite
}

func (p retryPolicy) allows(err *Error) bool {
	return err.Retriable && (p != onlyDefinite || !err.UnknownOutcome)
}

// call makes a unary call within the request timeout, with retries.
func call[T any](ctx context.Context, c *Client, policy retryPolicy, do func(context.Context, *endpoint) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	return attempt(ctx, c, policy, do)
}

// callStream opens a stream. The request timeout bounds the retries, not the stream, so that it is
// for do to end when ctx does.
func callStream[T any](ctx context.Context, c *Client, do func(context.Context, *endpoint) (T, error)) (T, error) {
	patience, cancel := context.WithTimeout(ctx, c.cfg.RequestTimeout)
	defer cancel()
	return attempt(patience, c, anyOutcome, func(_ context.Context, e *endpoint) (T, error) { return do(ctx, e) })
}

func attempt[T any](ctx context.Context, c *Client, policy retryPolicy, do func(context.Context, *endpoint) (T, error)) (T, error) {
	t := c.newTries()
	doubtful := false
	for {
		if c.closed() {
			var zero T
			return zero, errClientClosed
		}
		e := t.next()
		res, err := tryOnce(ctx, c, policy, e, do)
		if err == nil {
			c.servers.succeeded(e)
			return res, nil
		}
		failure := errorOf(err)
		t.failed(failure)
		again := policy.allows(failure)
		doubtful = doubtful || failure.UnknownOutcome
		failure.UnknownOutcome = doubtful && policy != anyOutcome
		if !again || !t.pause(ctx, failure) {
			return res, failure
		}
	}
}

// tryOnce makes one attempt. With other servers to ask it takes half of the time that is left at most, if it can
// be repeated then: a server may be stopped without its connections knowing.
func tryOnce[T any](ctx context.Context, c *Client, policy retryPolicy, e *endpoint, do func(context.Context, *endpoint) (T, error)) (T, error) {
	if deadline, ok := ctx.Deadline(); ok && policy != onlyDefinite && len(c.servers.all) > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/2)
		defer cancel()
	}
	return do(ctx, e)
}

// tries is the way of one call through the servers: each once before any pause.
type tries struct {
	c       *Client
	wait    *backoff.ExponentialBackOff
	last    *endpoint
	started time.Time
	// avoid is the last one, if another one may do better.
	avoid    *endpoint
	failures int // in a row
}

func (c *Client) newTries() *tries { return &tries{c: c, wait: c.newBackOff()} }

// next returns the server for the next try.
func (t *tries) next() *endpoint {
	t.last, t.started = t.c.servers.pick(t.avoid), time.Now()
	return t.last
}

// failed takes note of the try's failure.
func (t *tries) failed(err *Error) {
	t.failures++
	t.avoid = nil
	if t.c.servers.failed(t.last, err, t.started); err.elsewhere {
		t.avoid = t.last
	}
}

// reset forgets the failures: something was achieved.
func (t *tries) reset() {
	t.failures, t.avoid = 0, nil
	t.wait.Reset()
}

// delay is how long to wait before the next try.
func (t *tries) delay(err *Error) time.Duration {
	if err.elsewhere && t.failures%len(t.c.servers.all) != 0 {
		return 0
	}
	return t.wait.NextBackOff()
}

// pause waits before the next try. It returns false when there is no time for one.
func (t *tries) pause(ctx context.Context, err *Error) bool {
	return pause(ctx, t.c.done, t.delay(err))
}

// newBackOff starts at 20 ms and doubles to 2 s, with jitter, for ever.
func (c *Client) newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval = c.firstPause
	b.Multiplier = 2
	b.MaxInterval = 100 * c.firstPause
	return b
}

// pause waits, unless ctx or done end before: then, or if ctx would end while waiting, it returns false.
func pause(ctx context.Context, done <-chan struct{}, d time.Duration) bool {
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d || ctx.Err() != nil {
		return false
	}
	if d == 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	case <-done:
		return false
	}
}

// Servers returns the servers that the client knows.
func (c *Client) Servers() []string { return slices.Clone(c.cfg.Servers) }
