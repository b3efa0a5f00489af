package gateway

import (
	"context"
	"io"
	"net/http"
	"strings"
)

// The transport reads a body into a buffer of its own, whose memory it wants back, so
// that a record batch would be copied out of it. A large produce body is therefore
// handed over: it is read, when the transport begins to read, into one slice of
// its exact length, which travels in the context to the codec and then belongs to the
// append. The transport sees a single byte in its place.

// minHandover is the smallest body that is worth it, in bytes.
const minHandover = 8 << 10

type handoverKey struct{}

// handover is the body of a request while it is handed over. One goroutine uses it.
type handover struct {
	from io.ReadCloser
	size int64
	data []byte // nil until it was read, whole
	sent bool
	err  error
}

// handOver prepares the request for a handover, if it is one in which the message is
// the body: Connect, binary, not compressed, of a known length up to limit bytes.
func handOver(r *http.Request, limit int64) *http.Request {
	encoding := r.Header.Get("Content-Encoding")
	if r.Method != http.MethodPost || r.ContentLength < minHandover || r.ContentLength > limit ||
		encoding != "" && encoding != "identity" || !strings.EqualFold(r.Header.Get("Content-Type"), "application/proto") {
		return r
	}
	h := &handover{from: r.Body, size: r.ContentLength}
	r = r.WithContext(context.WithValue(r.Context(), handoverKey{}, h))
	r.Body = h
	return r
}

// handedOver returns the body that was handed over, or nil.
func handedOver(ctx context.Context) []byte {
	if h, ok := ctx.Value(handoverKey{}).(*handover); ok {
		return h.data
	}
	return nil
}

// Read reads the whole body at the first call and gives one byte for it.
func (h *handover) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if h.data == nil && h.err == nil {
		h.fill()
	}
	if h.err != nil {
		return 0, h.err
	}
	if h.sent {
		return 0, io.EOF
	}
	h.sent = true
	p[0] = 0
	return 1, nil
}

// fill reads the body up to its end, and sees that the end is there: that is when
// the server begins to watch for a client that leaves.
func (h *handover) fill() {
	data := make([]byte, h.size)
	if _, err := io.ReadFull(h.from, data); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		h.err = err
		return
	}
	var more [1]byte
	if n, err := h.from.Read(more[:]); n > 0 || err != nil && err != io.EOF {
		if h.err = err; err == nil {
			h.err = io.ErrShortBuffer
		}
		return
	}
	h.data = data
}

func (h *handover) Close() error { return h.from.Close() }
