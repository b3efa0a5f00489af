package gateway

import (
	"context"
	"io"
	"math/bits"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// leastBody is the length, in bytes, from which on a request is read into memory of a [bodies]: a shorter one costs less to copy.
// poisonBodies has memory that is given back lose what it had. Both are changed by tests only.
var (
	leastBody    int64 = 64 << 10
	poisonBodies       = false
)

// bodies is memory for requests whose batch stays where it was read: in the open segment, in the segment that is uploaded,
// and among the fresh ones, without a copy. Memory that was used last is used next, for it is still in the processor's caches.
//
// Each [body] counts who uses it, and is used again when nobody does. Whoever cannot know when that is (a write that was given
// up may still be read by its connection) keeps it for ever: then the collector takes it.
type bodies struct {
	largest int64 // bytes of a request
	pools   atomic.Pointer[[bodyClasses]sync.Pool]
}

// bodyClasses is the number of sizes there are, eight to each power of two: no memory of more than 64 bytes is larger than what was
// read into it by more than an eighth.
const bodyClasses = 8 * 40

func newBodies(largest int) *bodies {
	p := &bodies{largest: int64(largest)}
	p.clear()
	return p
}

// clear leaves to the collector what nobody uses.
func (p *bodies) clear() { p.pools.Store(new([bodyClasses]sync.Pool)) }

// bodyClass is the class for so many bytes, and its size.
func bodyClass(n int64) (class int, size int64) {
	n = max(n, 8)
	shift := bits.Len64(uint64(n-1)) - 4 // of an eighth of the power of two that is not above it
	shift = max(shift, 0)
	eighths := (n + 1<<shift - 1) >> shift // 8 to 16
	return shift*8 + int(eighths) - 8, eighths << shift
}

// take returns memory for n bytes, with one user.
func (p *bodies) take(n int64) *body {
	class, size := bodyClass(n)
	b, _ := p.pools.Load()[class].Get().(*body)
	if b == nil {
		b = &body{from: p, class: class, memory: make([]byte, size)}
	}
	b.users.Store(1)
	b.read = b.memory[:n]
	return b
}

// body is the memory of one request.
type body struct {
	from   *bodies
	class  int
	memory []byte
	read   []byte // what was read into it
	batch  []byte // the request's batch in it, if that was not copied
	users  atomic.Int32
}

// holds says that a batch is the one that lies in b, which may be nil.
func (b *body) holds(data []byte) bool {
	return b != nil && len(b.batch) > 0 && len(data) > 0 && &b.batch[0] == &data[0]
}

// retain adds a user. It panics if there is none yet: then the memory may be another request's, and to go on would be to store that
// under this one's name.
func (b *body) retain() *body {
	if b.users.Add(1) <= 1 {
		panic("gateway: memory of a request is retained after it was given back")
	}
	return b
}

// release takes one off. It panics if there is none, see retain.
func (b *body) release() {
	switch left := b.users.Add(-1); {
	case left > 0:
		return
	case left < 0:
		panic("gateway: memory of a request is given back twice")
	}
	if poisonBodies {
		for i := range b.memory {
			b.memory[i] = 0xdb
		}
	}
	b.read, b.batch = nil, nil
	b.from.pools.Load()[b.class].Put(b)
}

func releaseAll(list []*body) {
	for _, b := range list {
		b.release()
	}
}

type bodyKey struct{}

// bodyOf is the memory that the request of this call was read into, or nil.
func bodyOf(ctx context.Context) *body {
	b, _ := ctx.Value(bodyKey{}).(*body)
	return b
}

// wrap reads bodies of produce requests for the handler behind it: of messages of the Connect protocol in binary, as they are, with a
// known length. The others, and errors, are left to the transport, and so are all while serving has one. It belongs behind what
// bounds the bytes of a body, the time that it takes and the memory of all.
func (p *bodies) wrap(next http.Handler, serving func() error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !p.wants(r) || serving() != nil {
			next.ServeHTTP(w, r)
			return
		}
		began := time.Now()
		b := p.take(r.ContentLength)
		defer b.release()
		n, err := io.ReadFull(r.Body, b.read)
		spend(r.Header, time.Since(began))
		if err != nil { // the transport meets it where it would have, and says so in its words
			r.Body = &replayed{ReadCloser: r.Body, read: b.read[:n], err: err}
			next.ServeHTTP(w, r)
			return
		}
		// The transport reads on, to the end.
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), bodyKey{}, b)))
	})
}

func (p *bodies) wants(r *http.Request) bool {
	return r.Method == http.MethodPost && r.ContentLength >= leastBody && r.ContentLength <= p.largest &&
		r.Header.Get("Content-Type") == "application/proto" && r.Header.Get("Content-Encoding") == ""
}

// spend takes what reading a body took off the time that the caller gives the call, which the transport has count from when it is called.
func spend(header http.Header, took time.Duration) {
	const name = "Connect-Timeout-Ms"
	if millis, err := strconv.ParseInt(header.Get(name), 10, 64); err == nil && millis >= 0 && took >= time.Millisecond {
		header.Set(name, strconv.FormatInt(max(millis-took.Milliseconds(), 0), 10))
	}
}

// replayed is a body of which some was read, and then an error.
type replayed struct {
	io.ReadCloser
	read []byte
	err  error
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.read) == 0 {
		return 0, r.err
	}
	n := copy(p, r.read)
	r.read = r.read[n:]
	return n, nil
}

// findBatch finds the batch of an encoded ProduceRequest, the last one as the encoding has it, and what is encoded around it. It is
// nil if there is none, or the message is not well formed.
func findBatch(message []byte) (batch, before, after []byte) {
	for at := 0; at < len(message); {
		field, kind, n := protowire.ConsumeTag(message[at:])
		if n < 0 {
			return nil, nil, nil
		}
		m := protowire.ConsumeFieldValue(field, kind, message[at+n:])
		if m < 0 {
			return nil, nil, nil
		}
		end := at + n + m
		if field == recordBatchField && kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message[at+n:])
			batch, before, after = value[:len(value):len(value)], message[:at], message[end:]
		}
		at = end
	}
	return batch, before, after
}

// recordBatchField is the number of ProduceRequest's record_batch.
var recordBatchField = (*varvev1.ProduceRequest)(nil).ProtoReflect().Descriptor().Fields().ByName("record_batch").Number()

// decode decodes the request, whose batch stays where it is if it is most of the memory.
func (b *body) decode(req *varvev1.ProduceRequest, unmarshal func([]byte) error) error {
	batch, before, after := findBatch(b.read)
	if len(batch) < len(b.memory)/8*7 { // only the batch is accounted for once the call has ended
		return unmarshal(b.read)
	}
	rest := append(append(make([]byte, 0, len(before)+len(after)), before...), after...)
	if err := unmarshal(rest); err != nil {
		return err
	}
	req.RecordBatch, b.batch = batch, batch
	return nil
}
