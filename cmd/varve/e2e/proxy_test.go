package e2e

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// proxy stands between varve and an HTTP server that others use too, and can keep requests back, or refuse them. One that
// has arrived whole goes on and takes effect, even when who sent it is dead by then; of others the server
// never hears.
type proxy struct {
	url     string
	backend string
	client  http.Client

	mu      sync.Mutex
	gate    chan struct{}            // closed: requests pass
	which   func(*http.Request) bool // waits at the gate; nil: all
	waiting int                      // requests at the gate
	refuses map[string]bucketRefusal // by method
}

// bucketRefusal is what a bucket says when it does not do what was asked.
type bucketRefusal struct {
	status int
	code   string
}

func newProxy(t *testing.T, backend string) *proxy {
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true}
	p := &proxy{backend: strings.TrimPrefix(backend, "http://"), client: http.Client{Transport: transport}, gate: make(chan struct{})}
	close(p.gate)
	server := httptest.NewServer(p)
	p.url = server.URL
	t.Cleanup(func() {
		p.release()
		server.Close()
		transport.CloseIdleConnections()
	})
	return p
}

// hold keeps requests back until release.
func (p *proxy) hold() { p.holdOnly(nil) }

// holdOnly keeps some back.
func (p *proxy) holdOnly(which func(*http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate, p.which = make(chan struct{}), which
}

// holds says how many requests are kept back now.
func (p *proxy) holds() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting
}

// refuse has the server refuse all requests of a method; the zero refusal ends that.
func (p *proxy) refuse(method string, with bucketRefusal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuses = map[string]bucketRefusal{method: with}
}

// pass returns how a request is refused, if it is, once it need not wait any more.
func (p *proxy) pass(r *http.Request) bucketRefusal {
	p.mu.Lock()
	defer p.mu.Unlock()
	if gate := p.gate; p.which == nil || p.which(r) {
		p.waiting++
		p.mu.Unlock()
		<-gate
		p.mu.Lock()
		p.waiting--
	}
	return p.refuses[r.Method]
}

func (p *proxy) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever sent it is gone
	}
	if no := p.pass(r); no.status != 0 {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(no.status)
		io.WriteString(w, "<Error><Code>"+no.code+"</Code><Message>as told</Message></Error>")
		return
	}
	out := r.Clone(context.WithoutCancel(r.Context()))
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", p.backend
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	response, err := p.client.Do(out)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer response.Body.Close()
	for name, values := range response.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(response.StatusCode)
	io.Copy(w, response.Body) // fails when whoever asked is gone
}
