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

// proxy stands between varve and an HTTP server that others use too, and can keep requests back. One that
// has arrived whole goes on and takes effect, even when who sent it is dead by then; of others the server
// never hears.
type proxy struct {
	url     string
	backend string
	client  http.Client

	mu   sync.Mutex
	gate chan struct{} // closed: requests pass
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
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
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
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	<-gate
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
