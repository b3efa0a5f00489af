package main

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
)

// outage stands before a gateway and fails its streams and appends, until somebody who asks why was told. The
// first who asks is not.
func outage(t *testing.T, gateway string) (server string) {
	t.Helper()
	target, err := url.Parse(gateway)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(target)
	var over atomic.Bool
	var asked atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case over.Load():
			forward.ServeHTTP(w, r)
		case r.URL.Path == "/readyz" && asked.Add(1) == 1:
			w.Write([]byte(`{"ready":true}`))
		case r.URL.Path == "/readyz":
			w.WriteHeader(http.StatusServiceUnavailable)
			w.Write([]byte(`{"ready":false,"reason":"the bucket is on holiday"}`))
			over.Store(true)
		case strings.HasSuffix(r.URL.Path, "/Consume"), strings.HasSuffix(r.URL.Path, "/Produce"):
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			forward.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestStallsAreExplained(t *testing.T) {
	s := newShell(t)
	s.quakes()
	gateway := s.url
	for _, c := range []struct {
		stdin, args, stdout string
	}{
		{"", "cat quakes -p 0", "a10\na30\na20\n"},
		{"more\n", "produce quakes -p 0", ""},
	} {
		server := outage(t, gateway)
		r := s.run(c.stdin, append(strings.Fields(c.args), "--server", server, "--timeout", "300ms")...)
		silent := regexp.MustCompile(`varve: nothing from the gateway for [0-9.]+m?s, still trying(.*)\n`).FindAllStringSubmatch(r.stderr, -1)
		if r.status != statusDone || r.stdout != c.stdout || len(silent) != 2 ||
			silent[0][1] != "" || silent[1][1] != ": "+server+" is not ready: the bucket is on holiday" {
			t.Errorf("%s: status %d, %q, %q", c.args, r.status, r.stdout, r.stderr)
		}
	}
}

// Somebody who types, or reads slowly, is no stall.
func TestNobodyIsBlamedForWaiting(t *testing.T) {
	s := newShell(t)
	var looks atomic.Int64
	looked := make(chan struct{})
	a := s.app(strings.NewReader(""), nil, &lockedBuffer{})
	a.timeout = 1
	stop := a.watchStalls(func() (int64, bool) {
		if looks.Add(1) == 5 {
			close(looked)
		}
		return 3, false
	})
	<-looked
	stop()
	if notes := a.stderr.(*lockedBuffer).String(); notes != "" {
		t.Errorf("noted: %q", notes)
	}
}
