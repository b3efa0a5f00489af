package chaosproxy

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// behind is a server that counts what reaches it, and a proxy in which one fault always happens.
func behind(t *testing.T, protocol Protocol, fault Fault) (p *Proxy, reached *atomic.Int64) {
	t.Helper()
	reached = new(atomic.Int64)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		reached.Add(1)
		w.Header().Set("Seen-Host", r.Host)
		io.WriteString(w, "an answer of some bytes")
	}))
	t.Cleanup(server.Close)
	p, err := New(server.URL, protocol, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	var rates Rates
	if fault != none && fault != CutOff {
		rates[fault] = 1
	}
	p.SetRates(rates)
	p.SetCut(fault == CutOff)
	return p, reached
}

// send makes a conditional PUT and returns what came of it.
func send(ctx context.Context, url string) (status int, body string, header http.Header, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPut, url+"/key", strings.NewReader("content"))
	if err != nil {
		return 0, "", nil, err
	}
	request.Header.Set("If-None-Match", "*")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", nil, err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), response.Header, err
}

// TestFaults: what the sender sees of each fault, and whether the server heard of the request.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		fault    Fault
		protocol Protocol
		status   int // 0: an error
		contains string
		effect   int64 // requests that reached the server; -1: either
	}{
		{LostRequest, S3, 0, "", 0},
		{LostAnswer, S3, 0, "", 1},
		{Slow, DynamoDB, 200, "answer", 1},
		{CutShort, DynamoDB, 0, "", 1},
		{Conflict, S3, 409, "<Code>ConditionalRequestConflict</Code>", 0},
		{OwnWrite, S3, 412, "<Code>PreconditionFailed</Code>", 1},
		{SlowDown, S3, 503, "<Code>SlowDown</Code>", 0},
		{Throttled, DynamoDB, 400, "ProvisionedThroughputExceededException", 0},
		{ServerError, S3, 500, "<Code>InternalError</Code>", -1},
		{ServerError, DynamoDB, 500, "InternalServerError", -1},
		{CutOff, DynamoDB, 0, "", 0},
		{none, S3, 200, "answer", 1},
	} {
		t.Run(c.protocol.String()+" "+name(c.fault), func(t *testing.T) {
			t.Parallel()
			p, reached := behind(t, c.protocol, c.fault)
			status, body, _, err := send(t.Context(), p.URL)
			if (err != nil) != (c.status == 0) || err == nil && status != c.status || !strings.Contains(body, c.contains) {
				t.Errorf("status %d, %q, error %v; want %d with %q", status, body, err, c.status, c.contains)
			}
			if n := reached.Load(); c.effect >= 0 && n != c.effect {
				t.Errorf("%d requests reached the server, want %d", n, c.effect)
			}
			requests, counts := p.Counts()
			if c.fault != none && counts[c.fault] != 1 || requests != 1 {
				t.Errorf("%d requests, faults: %s", requests, counts.Text(c.protocol))
			}
		})
	}
}

func name(f Fault) string {
	if f == none {
		return "nothing"
	}
	return f.String()
}

// TestHost: signatures cover the Host header, so the server has to see the one that was signed.
func TestHost(t *testing.T) {
	p, _ := behind(t, S3, none)
	_, _, header, err := send(t.Context(), p.URL)
	if err != nil || "http://"+header.Get("Seen-Host") != p.URL {
		t.Errorf("the server saw host %q (%v), the request was for %s", header.Get("Seen-Host"), err, p.URL)
	}
}

// TestLate: the request takes effect, but not before its sender has gone.
func TestLate(t *testing.T) {
	p, reached := behind(t, S3, Late)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, _, err := send(ctx, p.URL)
	if !errors.Is(err, context.DeadlineExceeded) || reached.Load() != 0 {
		t.Errorf("error %v with %d requests at the server, want a deadline and none", err, reached.Load())
	}
	deadline := time.Now().Add(lateExtra + 10*time.Second)
	for reached.Load() == 0 {
		if time.Now().After(deadline) {
			t.Fatal("it never takes effect")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestTrickle: the sender gives up in the middle of the answer.
func TestTrickle(t *testing.T) {
	p, reached := behind(t, DynamoDB, Trickle)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	status, body, _, err := send(ctx, p.URL)
	if status != 200 || len(body) == 0 || !errors.Is(err, context.DeadlineExceeded) || reached.Load() != 1 {
		t.Errorf("status %d, %q, error %v, %d requests at the server", status, body, err, reached.Load())
	}
}

// TestSeed: the same seed has the same faults happen.
func TestSeed(t *testing.T) {
	outcome := func(seed uint64) string {
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		defer server.Close()
		p, err := New(server.URL, S3, seed)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		p.SetRates(Rates{Conflict: 0.3, SlowDown: 0.3})
		var b strings.Builder
		for range 40 {
			status, _, _, err := send(t.Context(), p.URL)
			if err != nil {
				t.Fatal(err)
			}
			b.WriteString(http.StatusText(status) + " ")
		}
		return b.String()
	}
	if one, two := outcome(7), outcome(7); one != two {
		t.Errorf("the same seed:\n%s\n%s", one, two)
	}
	if outcome(7) == outcome(8) {
		t.Error("two seeds, the same faults")
	}
}

// TestMissing: a fault that never happened is named, one that cannot happen is not.
func TestMissing(t *testing.T) {
	var counts Counts
	for f := range faults {
		counts[f] = 1
	}
	counts[Late], counts[Throttled] = 0, 0
	if missing := counts.Missing(S3, DefaultRates(S3)); len(missing) != 1 || missing[0] != Late {
		t.Errorf("missing on S3: %v", missing)
	}
	if missing := counts.Missing(DynamoDB, DefaultRates(DynamoDB)); len(missing) != 2 {
		t.Errorf("missing on DynamoDB: %v", missing)
	}
}
