package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// standIn answers as a gateway does that is ready or not.
type standIn struct {
	*httptest.Server
	ready    atomic.Bool
	produces atomic.Int64
}

func newStandIn(t *testing.T) *standIn {
	s := &standIn{}
	s.ready.Store(true)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/readyz" && !s.ready.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
		case strings.HasSuffix(r.URL.Path, "/Produce"):
			s.produces.Add(1)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *standIn) address() string { return strings.TrimPrefix(s.URL, "http://") }

func produce(t *testing.T, b *balancer) (status int) {
	t.Helper()
	response, err := http.Post(b.url+"/varve.v1.LogService/Produce", "application/proto", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("no sign of %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// TestBalancer: requests go by turns to who is ready, and to nobody else.
func TestBalancer(t *testing.T) {
	b, err := newBalancer()
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	if status := produce(t, b); status != http.StatusServiceUnavailable {
		t.Errorf("status %d without any gateway", status)
	}
	one, two := newStandIn(t), newStandIn(t)
	first, second := b.add(one.address()), b.add(two.address())
	waitFor(t, "requests to both", func() bool {
		produce(t, b)
		return one.produces.Load() > 0 && two.produces.Load() > 0
	})
	for _, e := range []*backend{first, second} {
		select {
		case <-e.acked:
		default:
			t.Error("an append went through a gateway, and that is not known")
		}
	}
	before := one.produces.Load() + two.produces.Load()
	for range 10 {
		produce(t, b)
	}
	if n := one.produces.Load() + two.produces.Load() - before; n != 10 {
		t.Errorf("%d of 10 requests arrived", n)
	}

	two.ready.Store(false)
	waitFor(t, "the end of requests to the second", func() bool {
		at := two.produces.Load()
		produce(t, b)
		produce(t, b)
		return two.produces.Load() == at
	})
	b.remove(first)
	if status := produce(t, b); status != http.StatusServiceUnavailable {
		t.Errorf("status %d without a gateway that is ready", status)
	}
	if b.refusals.Load() < 2 || b.produces.Load() < b.refusals.Load() {
		t.Errorf("%d requests, %d refusals", b.produces.Load(), b.refusals.Load())
	}
}
