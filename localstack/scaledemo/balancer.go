package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// checkEvery is how often a gateway is asked whether it is ready.
const checkEvery = 50 * time.Millisecond

// balancer gives each request to the next of the gateways that are ready, and counts.
type balancer struct {
	url       string
	server    *http.Server
	transport *http.Transport
	checks    sync.WaitGroup
	ctx       context.Context
	cancel    context.CancelFunc

	produces  atomic.Int64 // requests to append
	refusals  atomic.Int64 // of these, how many a client had to repeat
	overtaken atomic.Int64 // of these, how many came before an earlier batch, over another connection or gateway

	mu       sync.Mutex
	backends []*backend
	turn     int
}

// backend is a gateway's process, for the balancer.
type backend struct {
	url    *url.URL
	ready  bool
	cancel context.CancelFunc
	// acked is closed when the first append through it succeeded.
	acked chan struct{}
	once  sync.Once
}

func newBalancer() (*balancer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	b := &balancer{url: "http://" + listener.Addr().String(), transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	b.server = &http.Server{Handler: b, ReadHeaderTimeout: 10 * time.Second}
	go b.server.Serve(listener) // until close
	return b, nil
}

func (b *balancer) close() {
	b.cancel()
	b.checks.Wait()
	b.server.Close()
	b.transport.CloseIdleConnections()
}

// add has a gateway get requests from when it is ready until it no longer is.
func (b *balancer) add(address string) *backend {
	ctx, cancel := context.WithCancel(b.ctx)
	e := &backend{url: &url.URL{Scheme: "http", Host: address}, cancel: cancel, acked: make(chan struct{})}
	b.mu.Lock()
	b.backends = append(b.backends, e)
	b.mu.Unlock()
	b.checks.Go(func() { b.check(ctx, e) })
	return e
}

// remove forgets a gateway that has ended.
func (b *balancer) remove(e *backend) {
	e.cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, other := range b.backends {
		if other == e {
			b.backends = append(b.backends[:i:i], b.backends[i+1:]...)
			return
		}
	}
}

// check asks a gateway again and again.
func (b *balancer) check(ctx context.Context, e *backend) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		ready := b.isReady(ctx, e)
		b.mu.Lock()
		e.ready = ready
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (b *balancer) isReady(ctx context.Context, e *backend) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url.String()+"/readyz", nil)
	if err != nil {
		return false
	}
	response, err := b.transport.RoundTrip(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// next is whose turn it is, or nil.
func (b *balancer) next() *backend {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range b.backends {
		b.turn++
		if e := b.backends[b.turn%len(b.backends)]; e.ready {
			return e
		}
	}
	return nil
}

// ServeHTTP passes a request on. Streams pass as they come.
func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	produce := strings.HasSuffix(r.URL.Path, "/Produce")
	if produce {
		b.produces.Add(1)
	}
	e := b.next()
	if e == nil {
		b.refuse(w, produce, http.StatusServiceUnavailable)
		return
	}
	proxy := httputil.ReverseProxy{
		Transport: b.transport, FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(e.url) },
		ModifyResponse: func(response *http.Response) error {
			switch {
			case produce && response.StatusCode == http.StatusOK:
				e.once.Do(func() { close(e.acked) })
			case produce:
				b.refusals.Add(1)
				if response.StatusCode == http.StatusConflict { // Connect's "aborted"
					b.overtaken.Add(1)
				}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { b.refuse(w, produce, http.StatusBadGateway) },
	}
	proxy.ServeHTTP(w, r)
}

// refuse answers as balancers do that have nobody to ask.
func (b *balancer) refuse(w http.ResponseWriter, produce bool, status int) {
	if produce {
		b.refusals.Add(1)
	}
	w.WriteHeader(status)
}
