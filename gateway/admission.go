package gateway

import (
	"context"
	"io"
	"log"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"golang.org/x/sync/semaphore"
)

const (
	// bodyTime bounds how long a request's body takes to arrive: a client that sends
	// a byte a second holds memory and a connection for nothing.
	bodyTime = time.Minute
	// stallTime bounds how long one write of an HTTP/1.1 answer waits for its reader.
	// It is long because people page through what `cat` prints.
	stallTime = 10 * time.Minute
	// bodySlack is what a body holds beside the message: the frame of gRPC and Connect streams.
	bodySlack = 64
)

// admission bounds the memory of produce requests before their bodies are read.
type admission struct {
	room     *semaphore.Weighted // bytes
	largest  int64               // bytes of one request
	total    int64
	wait     time.Duration
	failures *connecthttp.ErrorWriter
}

func newAdmission(c Config, failures *connecthttp.ErrorWriter) *admission {
	return &admission{room: semaphore.NewWeighted(c.RequestBytes), largest: int64(c.MaxRequestBytes), total: c.RequestBytes,
		wait: c.AdmitWait, failures: failures}
}

func (a *admission) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		size := a.sizeOf(r)
		if err := a.enter(r.Context(), size); err != nil {
			// A failed write means that the client is gone.
			_ = a.failures.Write(w, r, err)
			return
		}
		defer a.room.Release(size)
		next.ServeHTTP(w, r)
	})
}

// sizeOf is how much memory a request may take: what it says, or the most there can be.
func (a *admission) sizeOf(r *http.Request) int64 {
	compressed := r.Header.Get("Content-Encoding") != "" || r.Header.Get("Grpc-Encoding") != ""
	if r.ContentLength < 0 || compressed {
		return a.largest
	}
	return min(r.ContentLength, a.largest)
}

// enter waits until there is room for so many bytes.
func (a *admission) enter(ctx context.Context, size int64) error {
	if a.room.TryAcquire(size) {
		return nil
	}
	limited, cancel := context.WithTimeout(ctx, a.wait)
	defer cancel()
	if a.room.Acquire(limited, size) == nil {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return classify(err).connectError()
	}
	return refuse(connect.CodeResourceExhausted, reasonBufferFull,
		"produce requests already hold the %d bytes that the gateway has for them; send more slowly or to another gateway", a.total).
		withRetriable().connectError()
}

// limitRequest bounds a request's body in bytes and in time, and how long an answer's
// reader may stall.
func limitRequest(next http.Handler, limit int, bodyTime time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		controller := http.NewResponseController(w)
		if r.Body != nil && r.Body != http.NoBody {
			// Fails where there is no connection (in tests); then there is no need.
			_ = controller.SetReadDeadline(time.Now().Add(bodyTime))
			body := http.MaxBytesReader(w, r.Body, int64(limit)+bodySlack)
			r.Body = &timedBody{ReadCloser: body, controller: controller}
		}
		if r.ProtoMajor == 1 {
			w = &stallingWriter{ResponseWriter: w, controller: controller}
		}
		next.ServeHTTP(w, r)
	})
}

// timedBody lifts the deadline once the body is there: from then on the connection is
// read only to see whether the client leaves.
type timedBody struct {
	io.ReadCloser
	controller *http.ResponseController
	done       bool
}

func (b *timedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !b.done {
		b.done = true
		_ = b.controller.SetReadDeadline(time.Time{})
	}
	return n, err
}

// stallingWriter gives each write its own deadline. (HTTP/2 has its own ways, and its
// deadlines would end streams that are merely quiet.)
type stallingWriter struct {
	http.ResponseWriter
	controller *http.ResponseController
}

func (w *stallingWriter) Write(p []byte) (int, error) {
	_ = w.controller.SetWriteDeadline(time.Now().Add(stallTime))
	return w.ResponseWriter.Write(p)
}

// Flush sends what was written.
func (w *stallingWriter) Flush() {
	_ = w.controller.SetWriteDeadline(time.Now().Add(stallTime))
	_ = w.controller.Flush()
}

// Unwrap is for http.ResponseController.
func (w *stallingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// httpLog takes what net/http has to say of single connections: clients' faults.
func httpLog(l *slog.Logger) *log.Logger { return slog.NewLogLogger(l.Handler(), slog.LevelDebug) }
