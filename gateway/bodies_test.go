package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

// All tests of this package have requests of any size stay where they were read, and memory that is given back lose what it had.
func init() { leastBody, poisonBodies = 1, true }

func TestBodyClasses(t *testing.T) {
	sizes := make(map[int]int64)
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Int64Range(1, 1<<40).Draw(t, "bytes")
		class, size := bodyClass(n)
		if class < 0 || class >= bodyClasses || size < n || n > 64 && size > n+n/8+1 {
			t.Fatalf("%d bytes: class %d of %d bytes", n, class, size)
		}
		if known, ok := sizes[class]; ok && known != size {
			t.Fatalf("class %d has %d bytes and %d", class, known, size)
		}
		sizes[class] = size
		if again, _ := bodyClass(size); again != class {
			t.Fatalf("%d bytes: class %d, whose size is of class %d", n, class, again)
		}
	})
}

// TestBodyDecodes holds requests whose batch stays where it is against requests that are decoded as ever.
func TestBodyDecodes(t *testing.T) {
	p, codec := newBodies(1<<20), newBinaryCodec(nil)
	inPlace := 0
	rapid.Check(t, func(t *rapid.T) {
		encoded := encodings(t)
		if rapid.Bool().Draw(t, "large") {
			large := protowire.AppendBytes(protowire.AppendTag(nil, recordBatchField, protowire.BytesType), bytes.Repeat([]byte{7}, 16<<10))
			encoded = slices.Insert(encoded, rapid.SampledFrom([]int{0, len(encoded)}).Draw(t, "at"), large...)
		}
		if len(encoded) == 0 {
			return
		}
		var want, got varvev1.ProduceRequest
		wanted := proto.Unmarshal(encoded, &want)
		b := p.take(int64(len(encoded)))
		defer b.release()
		copy(b.read, encoded)
		err := codec.UnmarshalRead(context.WithValue(t.Context(), bodyKey{}, b), new(bytes.Buffer), &got)
		if (err == nil) != (wanted == nil) {
			t.Fatalf("error %v, want %v", err, wanted)
		}
		if err == nil && !proto.Equal(&got, &want) {
			t.Fatalf("decoded otherwise: %.300q, want %.300q, batches of %d and %d bytes", got.String(), want.String(), len(got.GetRecordBatch()), len(want.GetRecordBatch()))
		}
		if err == nil && b.holds(got.GetRecordBatch()) {
			inPlace++
		}
	})
	if inPlace == 0 {
		t.Error("no batch stayed where it was")
	}
}

// TestFreshMemory has a segment leave the fresh ones while it is read.
func TestFreshMemory(t *testing.T) {
	p := newBodies(1 << 20)
	add := func(f *freshSegments, number uint64) *body {
		b := p.take(100)
		copy(b.read, strings.Repeat("x", 100))
		builder := segments.NewBuilder("c", "g", number)
		if err := builder.Add(segments.SpanID{}, b.read, segments.BatchInfo{Offsets: 1, Records: 1, ExpectedOffset: -1}); err != nil {
			t.Fatal(err)
		}
		object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
		if err != nil {
			t.Fatal(err)
		}
		f.add(object, []*body{b})
		return b
	}
	f := newFreshSegments(500)
	b := add(f, 1)
	reader := f.hold(segmentName{"g", 1})
	for number := uint64(2); f.has(segmentName{"g", 1}); number++ {
		add(f, number)
	}
	if got := b.users.Load(); got != 1 || b.memory[0] != 'x' {
		t.Errorf("with a reader: %d users, first byte %q", got, b.memory[0])
	}
	reader.release()
	if got := b.users.Load(); got != 0 || b.memory[0] == 'x' {
		t.Errorf("without: %d users, first byte %q", got, b.memory[0])
	}
	last := add(f, 100)
	f.clear()
	if got := last.users.Load(); got != 0 {
		t.Errorf("a segment that was forgotten has %d users", got)
	}
	if small := add(newFreshSegments(1), 1); small.users.Load() != 0 {
		t.Error("a segment that is not kept has users")
	}
}

// failingStore fails each third put of a segment, and keeps what it was given, as a connection does that nobody waits for.
type failingStore struct {
	*memstore.Store
	mu   sync.Mutex
	puts int
	kept []keptBody
}

type keptBody struct {
	key  string
	body segments.Body
	had  []byte
}

func (s *failingStore) Put(ctx context.Context, key string, body segments.Body) error {
	if !strings.HasSuffix(key, segments.Suffix) {
		return s.Store.Put(ctx, key, body)
	}
	s.mu.Lock()
	s.puts++
	fails := s.puts%3 == 0
	if fails {
		s.kept = append(s.kept, keptBody{key, body, segments.Bytes(body)})
	}
	s.mu.Unlock()
	if fails {
		return segments.ErrUnavailable
	}
	return s.Store.Put(ctx, key, body)
}

// TestMemoryIsUsedAgain appends and follows at once, with few fresh segments: what is read must be what was appended.
func TestMemoryIsUsedAgain(t *testing.T) {
	const partitions, appends = 4, 60
	d := memory()
	store := &failingStore{Store: d.Store.(*memstore.Store)}
	d.Store = store
	g := &served{testGateway: startGateway(t, Config{Exclusive: true, FreshBytes: 128 << 10, SegmentBytes: 64 << 10, FlushInterval: time.Millisecond}, d)}
	g.url = serveHTTP(t, g.Gateway)
	g.create(t, "a", partitions, nil)
	log := varvev1connect.NewLogServiceClient(protocols(t, g.url)["connect"])
	value := func(partition int32, i int64) []byte {
		return bytes.Repeat(fmt.Appendf(nil, "%d/%d.", partition, i), 1000)
	}
	group, ctx := errgroup.WithContext(t.Context())
	for partition := range int32(partitions) {
		group.Go(func() error {
			for i := range int64(appends) {
				if _, err := log.Produce(ctx, &varvev1.ProduceRequest{Topic: "a", Partition: &partition, RecordBatch: batchOf(t, value(partition, i))}); err != nil {
					return err
				}
			}
			return nil
		})
		group.Go(func() error {
			for next := int64(0); next < appends; {
				out, err := log.Fetch(ctx, &varvev1.FetchRequest{Topic: "a", Partition: partition, Decode: true, MaxWaitMs: 1000,
					Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: next}}})
				if err != nil {
					return err
				}
				for _, r := range out.GetRecords() {
					if !bytes.Equal(r.GetValue(), value(partition, next)) {
						return fmt.Errorf("partition %d has %.20q at %d", partition, r.GetValue(), next)
					}
					next++
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if len(store.kept) == 0 {
		t.Error("no put failed")
	}
	for _, kept := range store.kept {
		if !bytes.Equal(segments.Bytes(kept.body), kept.had) {
			t.Errorf("memory of %s was used again, though a try that failed may still be read", kept.key)
		}
	}
}

// TestBodyTime has the time that a body takes count against the caller's.
func TestBodyTime(t *testing.T) {
	for _, c := range []struct{ timeout, want string }{{"", ""}, {"5000", "3500"}, {"1000", "0"}, {"soon", "soon"}, {"-1", "-1"}} {
		header := http.Header{}
		if c.timeout != "" {
			header.Set("Connect-Timeout-Ms", c.timeout)
		}
		if spend(header, 1500*time.Millisecond); header.Get("Connect-Timeout-Ms") != c.want {
			t.Errorf("of %q %q is left, want %q", c.timeout, header.Get("Connect-Timeout-Ms"), c.want)
		}
	}
}

// TestBodiesLeftAlone tells which requests the transport reads itself.
func TestBodiesLeftAlone(t *testing.T) {
	p := newBodies(100)
	ready := error(nil)
	for _, c := range []struct {
		what, header, value string
		length              int64
		ready               error
		taken               bool
	}{
		{"plain", "", "", 100, nil, true},
		{"no length", "", "", -1, nil, false},
		{"too large", "", "", 101, nil, false},
		{"compressed", "Content-Encoding", "gzip", 100, nil, false},
		{"JSON", "Content-Type", "application/json", 100, nil, false},
		{"gRPC", "Content-Type", "application/grpc", 100, nil, false},
		{"while the gateway does not serve", "", "", 100, errDraining, false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(strings.Repeat("x", 100)))
		r.Header.Set("Content-Type", "application/proto")
		if c.header != "" {
			r.Header.Set(c.header, c.value)
		}
		r.ContentLength, ready = c.length, c.ready
		p.wrap(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			rest, err := io.ReadAll(r.Body)
			if taken := bodyOf(r.Context()) != nil; err != nil || taken != c.taken || (len(rest) == 0) != c.taken {
				t.Errorf("%s: taken %v, want %v; %d bytes are left, error %v", c.what, taken, c.taken, len(rest), err)
			}
		}), func() error { return ready }).ServeHTTP(httptest.NewRecorder(), r)
	}
}

// TestRestFreesBodies: what nobody uses when the gateway comes to rest is with the collector at once, not after another round of it
// that may be minutes away.
func TestRestFreesBodies(t *testing.T) {
	p := newBodies(1 << 20)
	var taken []*body
	for range 16 {
		taken = append(taken, p.take(1<<20))
	}
	var kept []weak.Pointer[body]
	for _, b := range taken {
		kept = append(kept, weak.Make(b))
	}
	releaseAll(taken)
	clear(taken)
	p.clear()
	newResting(nil).free()
	for i, b := range kept {
		if b.Value() != nil {
			t.Fatalf("body %d is still there", i)
		}
	}
}

// TestBodyMisuse: memory that was given back is neither given back again nor retained.
func TestBodyMisuse(t *testing.T) {
	for what, misuse := range map[string]func(*body){
		"release": (*body).release,
		"retain":  func(b *body) { b.retain() },
	} {
		b := newBodies(1 << 20).take(100)
		b.retain().release()
		b.release()
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of memory that was given back", what)
				}
			}()
			misuse(b)
		}()
	}
}
