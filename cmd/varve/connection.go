package main

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/varvelog/varve/client"
)

// connect returns a client of the gateways that --server names. It tells at once when none of them can be
// reached, and goes on trying for as long as the call allows.
func (a *app) connect() (*client.Client, error) {
	return a.connectWithin(a.timeout, a.notef)
}

func (a *app) connectWithin(timeout time.Duration, notef func(string, ...any)) (*client.Client, error) {
	a.dials = newDialNotes(notef)
	cfg := client.Config{
		Servers: a.servers, UserAgent: "varve/" + buildVersion(), RequestTimeout: timeout,
		HTTPClient: newHTTPClient(a.dials),
	}
	if err := cfg.Validate(); err != nil {
		return nil, usagef("--server: %s", strings.TrimPrefix(err.Error(), "client configuration: "))
	}
	return client.New(cfg)
}

// newHTTPClient is for bulk over HTTP/1.1, as the client's own one.
func newHTTPClient(notes *dialNotes) *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         notes.dial,
		TLSHandshakeTimeout: 5 * time.Second,
		DisableCompression:  true,
		MaxIdleConnsPerHost: 64,
		IdleConnTimeout:     90 * time.Second,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
	}}
}

// dialNotes tells once that an address cannot be reached, and again only after it could be.
type dialNotes struct {
	dialer net.Dialer
	notef  func(string, ...any)
	mu     sync.Mutex
	// down has why an address could not be reached, until it can.
	down map[string]error
}

func newDialNotes(notef func(string, ...any)) *dialNotes {
	return &dialNotes{
		dialer: net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second},
		notef:  notef, down: make(map[string]error),
	}
}

func (d *dialNotes) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.dialer.DialContext(ctx, network, address)
	if ctx.Err() != nil {
		return conn, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil && d.down[address] == nil:
		d.notef("no answer from %s (%v), trying again", address, err)
	case err == nil && d.down[address] != nil:
		d.notef("%s answers again", address)
	}
	d.down[address] = err
	return conn, err
}

// unreached returns why no gateway can be reached, or nil if one of them was. What ends a call is often its time
// limit, which would not tell.
func (d *dialNotes) unreached() error {
	if d == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var last error
	for _, err := range d.down {
		if err == nil {
			return nil
		}
		last = err
	}
	return last
}
