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
	"sync/atomic"
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
	// Servers are base URLs such as "http://host:7480", tried in turn when one cannot be reached or is
	// not ready. Default: DefaultServer.
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
	endpoints  []*endpoint
	// current counts moves from one server to the next; the server in use is current modulo their number.
	current atomic.Uint64
	// idle is the HTTP client to close with us, nil when the caller brought one.
	idle *http.Client
	done chan struct{}
	once sync.Once

	appendersMu sync.Mutex
	appenders   map[topicPartition]*appender
}

type topicPartition struct {
	topic     string
	partition int32
}

// endpoint is one server.
type endpoint struct {
	name    string
	log     varvev1connect.LogServiceClient
	topics  varvev1connect.TopicServiceClient
	cluster varvev1connect.ClusterServiceClient
}

// New returns a client. It connects at the first call, so that it succeeds without a server.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Client{
		cfg:        cfg.withDefaults(),
		firstPause: 20 * time.Millisecond,
		done:       make(chan struct{}),
		appenders:  make(map[topicPartition]*appender),
	}
	if c.cfg.Transport != nil {
		c.endpoints = []*endpoint{newEndpoint("transport", c.cfg.Transport, c.cfg.UserAgent)}
		return c, nil
	}
	hc := c.cfg.HTTPClient
	if hc == nil {
		hc = newHTTPClient()
		c.idle = hc
	}
	for _, server := range c.cfg.Servers {
		transport := connecthttp.NewTransport(hc, strings.TrimSuffix(server, "/"),
			// Batches carry their own compression.
			connecthttp.WithCompressors(),
			connecthttp.WithReadMaxBytes(c.cfg.MaxMessageBytes),
		)
		c.endpoints = append(c.endpoints, newEndpoint(server, transport, c.cfg.UserAgent))
	}
	return c, nil
}

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
	c.once.Do(func() {
		close(c.done)
		if c.idle != nil {
			c.idle.CloseIdleConnections()
		}
	})
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

// endpoint returns the server in use, with the number to give to advance.
func (c *Client) endpoint() (*endpoint, uint64) {
	n := c.current.Load()
	return c.endpoints[n%uint64(len(c.endpoints))], n
}

// advance moves on from a server that could not be reached, once for all who found out together.
func (c *Client) advance(from uint64, err *Error) {
	if len(c.endpoints) > 1 && (err.Code == connect.CodeUnavailable || !err.informed && err.Retriable) {
		c.current.CompareAndSwap(from, from+1)
	}
}

// retryPolicy says which failures of a call may be tried again.
type retryPolicy uint8

const (
	// anyOutcome: repeating changes nothing.
	anyOutcome retryPolicy = iota
	// onlyDefinite: repeat only what certainly had no effect.
	onlyDefinite
)

// repeatable is the policy for a call that says what it wants to be, or else what it wants done.
func repeatable(idempotent bool) retryPolicy {
	if idempotent {
		return anyOutcome
	}
	return onlyDefinite
}

func (p retryPolicy) allows(err *Error) bool {
	return err.Retriable && (p == anyOutcome || !err.UnknownOutcome)
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
	wait := c.newBackOff()
	for failures := 1; ; failures++ {
		if c.closed() {
			var zero T
			return zero, errClientClosed
		}
		e, n := c.endpoint()
		res, err := do(ctx, e)
		if err == nil {
			return res, nil
		}
		failure := errorOf(err)
		c.advance(n, failure)
		if policy == anyOutcome {
			failure.UnknownOutcome = false // Nobody has to care.
		}
		if !policy.allows(failure) {
			return res, failure
		}
		if failures%len(c.endpoints) != 0 {
			continue // Each server once before any pause.
		}
		if !pause(ctx, c.done, wait.NextBackOff()) {
			return res, failure
		}
	}
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
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= d {
		return false
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

// Servers returns the servers in the order in which they are tried.
func (c *Client) Servers() []string { return slices.Clone(c.cfg.Servers) }
