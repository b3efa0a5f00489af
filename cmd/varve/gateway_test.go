package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/filestore"
)

// testNow is what the command line takes for now.
var testNow = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

// testShell runs command lines against a gateway in this process.
type testShell struct {
	t   *testing.T
	url string
	// data is as --data of the gateway: segments are in it.
	data string
	env  map[string]string
}

// newShell starts a gateway on files and a table in memory.
func newShell(t *testing.T) *testShell {
	t.Helper()
	data := t.TempDir()
	store, err := filestore.Open(filepath.Join(data, "segments"))
	if err != nil {
		t.Fatal(err)
	}
	buffers, err := segments.OpenBufferDir(segments.OS(), filepath.Join(data, "buffer"), segments.BufferConfig{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := gateway.New(gateway.Config{FlushInterval: time.Millisecond, CycleInterval: -1, AutoCreate: 1, Exclusive: true}, gateway.Dependencies{
		Store: store, Table: memtable.New(), Buffers: buffers, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	select {
	case <-started:
	case err := <-ended:
		t.Fatalf("the gateway did not start: %v", err)
	}
	server := httptest.NewServer(g.Handler())
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the gateway did not end well: %v", err)
		}
		server.Close()
		if err := buffers.Close(); err != nil {
			t.Error(err)
		}
	})
	return &testShell{t: t, url: server.URL, data: data, env: map[string]string{"VARVE_SERVER": server.URL}}
}

// result is what a command line came to.
type result struct {
	stdout, stderr string
	status         int
}

func (s *testShell) app(stdin io.Reader, stdout, stderr io.Writer) *app {
	return &app{
		stdin: stdin, stdout: stdout, stderr: stderr, now: func() time.Time { return testNow },
		lookupEnv: func(name string) (string, bool) { v, ok := s.env[name]; return v, ok },
	}
}

// run runs a command line with the standard input given.
func (s *testShell) run(stdin string, args ...string) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	status := execute(s.t.Context(), args, s.app(strings.NewReader(stdin), &stdout, &stderr))
	return result{stdout.String(), stderr.String(), status}
}

// ok runs a command line that must succeed, and returns its standard output.
func (s *testShell) ok(stdin string, args ...string) string {
	s.t.Helper()
	r := s.run(stdin, args...)
	if r.status != statusDone {
		s.t.Fatalf("varve %s: status %d\n%s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// running is a command line that goes on.
type running struct {
	lines  chan string
	stderr *lockedBuffer
	// interrupt is Ctrl-C.
	interrupt func()
	status    chan int
	done      chan struct{}
}

// start runs a command line in the background. Its lines of standard output come by a channel.
func (s *testShell) start(stdin io.Reader, args ...string) *running {
	s.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &running{
		lines: make(chan string, 1000), stderr: &lockedBuffer{}, status: make(chan int, 1),
		interrupt: func() { cancel(errInterrupted) },
		done:      make(chan struct{}),
	}
	out := &lineWriter{lines: r.lines}
	go func() {
		defer close(r.done)
		r.status <- execute(ctx, args, s.app(stdin, out, r.stderr))
	}()
	s.t.Cleanup(func() {
		r.interrupt()
		r.drain()
	})
	return r
}

// drain takes lines until the command has ended: nobody looks at them, and nobody waits for their reader.
func (r *running) drain() {
	for {
		select {
		case <-r.lines:
		case <-r.done:
			return
		}
	}
}

// expect waits for a line.
func (r *running) expect(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-r.lines:
		if got != want {
			t.Fatalf("line %q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("no line came, want %q; standard error: %s", want, r.stderr)
	}
}

func (r *running) expectStatus(t *testing.T, want int) {
	t.Helper()
	select {
	case got := <-r.status:
		if got != want {
			t.Errorf("status %d, want %d; standard error: %s", got, want, r.stderr)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("did not end; standard error: %s", r.stderr)
	}
}

// lineWriter cuts what is written into lines.
type lineWriter struct {
	lines chan string
	rest  string
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.rest += string(p)
	for {
		line, rest, found := strings.Cut(w.rest, "\n")
		if !found {
			return len(p), nil
		}
		w.lines <- line
		w.rest = rest
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
