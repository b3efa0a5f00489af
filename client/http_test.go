package client_test

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

// serve serves over HTTP and returns the URL.
func serve(t testing.TB, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}

// deadURL is one that refuses connections.
func deadURL(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return "http://" + l.Addr().String()
}

func openHTTP(t testing.TB, servers ...string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Servers: servers})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestServersAreTriedInTurn(t *testing.T) {
	draining := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	working := serve(t, clienttest.New().Handler())
	createTopic(t, openHTTP(t, working), "t", 1)
	c := openHTTP(t, deadURL(t), serve(t, draining), working)
	p := producer(t, c, client.ProducerConfig{Topic: "t"})
	if _, err := p.ProduceSync(t.Context(), client.Record{Timestamp: ms(3)}); err != nil {
		t.Fatal(err)
	}
	wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t"}), "0:0 3 =")
}

func TestNoServer(t *testing.T) {
	c, err := client.New(client.Config{Servers: []string{deadURL(t)}, RequestTimeout: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.DescribeTopic(t.Context(), "t"); err == nil || errors.Is(err, client.ErrUnknownOutcome) {
		t.Errorf("want a definite error, got %v", err)
	}
}

func TestClosedClient(t *testing.T) {
	c := open(t, clienttest.New())
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := c.DescribeTopic(t.Context(), "t"); !errors.Is(err, client.ErrClosed) {
		t.Errorf("want ErrClosed, got %v", err)
	}
	if _, err := c.Append(t.Context(), "t", 0, []client.Record{{}}, client.AppendOptions{}); !errors.Is(err, client.ErrClosed) {
		t.Errorf("want ErrClosed, got %v", err)
	}
}

// cutter closes connections after so many bytes were written to each, in the middle of whatever it is.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	limit int
}

func (l *cutter) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.limit += 700
	return &cutConn{Conn: c, left: l.limit}, nil
}

type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Write(p []byte) (int, error) {
	if len(p) > c.left {
		n, err := c.Conn.Write(p[:c.left])
		return n, errors.Join(err, c.Close(), net.ErrClosed)
	}
	c.left -= len(p)
	return c.Conn.Write(p)
}

// Real connections that break in the middle of messages: nothing twice, nothing left out.
func TestCutConnections(t *testing.T) {
	server := clienttest.New()
	s := httptest.NewUnstartedServer(server.Handler())
	s.Listener = &cutter{Listener: s.Listener}
	s.Start()
	t.Cleanup(s.Close)
	c := openHTTP(t, s.URL)
	client.SetFirstPause(c, 1e5)
	createTopic(t, c, "t", 1)
	p := producer(t, c, client.ProducerConfig{Topic: "t", BatchBytes: 300})
	var want []string
	for i := range 200 {
		value := fmt.Appendf(nil, "%03d", i)
		want = append(want, fmt.Sprintf("0:%d %d =%s", i, i, value))
		if err := p.Produce(t.Context(), client.Record{Value: value, Timestamp: ms(int64(i))}, func(_ client.Ack, err error) {
			if err != nil {
				t.Error(err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, order := range []client.Order{client.AsTheyCome, client.ByTimestamp} {
		wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t", Order: order, MaxBytes: 500}), want...)
	}
}
