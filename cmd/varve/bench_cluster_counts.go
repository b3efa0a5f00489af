package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// counted is something that gateways of a bench do, as it is seen from beneath them.
type counted int

const (
	commitWrites counted = iota // entries of a journal
	journalReads                // pages of a journal, or a look at its end
	journalSeals                // of another gateway
	journalTrims                // rows removed, and the mark of that
	leaseReads                  // of partitions
	leaseWrites                 // taking one, its checkpoints, its release
	indexReads                  // pages, tree and producers of partitions
	indexWrites                 //
	memberReads                 // of all gateways' rows
	memberWrites                // beats and marks
	otherCalls                  // topics, cluster, generation
	objectPuts                  //
	objectBytes                 // of those
	peerCalls                   // calls to other gateways
	peerBytes                   // on the wires of those, both ways, with all that HTTP adds
	peerPayload                 // pieces of records seen on them
	producerSeen                // pieces of records seen on the wires from producers
	countedKinds
)

var countedNames = [countedKinds]string{"commit_writes", "journal_reads", "journal_seals", "journal_trims", "lease_reads", "lease_writes",
	"index_reads", "index_writes", "member_reads", "member_writes", "other_calls", "object_puts", "object_bytes",
	"peer_calls", "peer_bytes", "peer_payload", "producer_payload"}

// counts is how often each was.
type counts [countedKinds]uint64

func (t counts) minus(o counts) counts {
	for i := range t {
		t[i] -= o[i]
	}
	return t
}

func (t counts) plus(o counts) counts {
	for i := range t {
		t[i] += o[i]
	}
	return t
}

// tableCalls are those of the table that partitions cause, and not time: without beats and looks at them.
func (t counts) tableCalls() (n uint64) {
	for kind := commitWrites; kind <= indexWrites; kind++ {
		n += t[kind]
	}
	return n + t[otherCalls]
}

// MarshalJSON names what was counted.
func (t counts) MarshalJSON() ([]byte, error) {
	named := make(map[string]uint64, len(t))
	for i, n := range t {
		named[countedNames[i]] = n
	}
	return json.Marshal(named)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (t *counts) UnmarshalJSON(data []byte) error {
	var named map[string]uint64
	if err := json.Unmarshal(data, &named); err != nil {
		return err
	}
	for i, name := range countedNames {
		t[i] = named[name]
	}
	return nil
}

// counter counts for one gateway.
type counter struct {
	own  func() metadata.GatewayID
	sums [countedKinds]atomic.Uint64
	// changed is told of looks at the gateways' rows.
	changed chan struct{}
	// sealed is when it sealed another gateway's journal last, or tried to.
	sealed atomic.Pointer[time.Time]
}

func newCounter() *counter { return &counter{changed: make(chan struct{}, 1)} }

func (c *counter) add(kind counted, n uint64) { c.sums[kind].Add(n) }

func (c *counter) counts() (t counts) {
	for i := range t {
		t[i] = c.sums[i].Load()
	}
	return t
}

// tableCall counts a call by its row: see docs/metadata.md.
func (c *counter) tableCall(o metadata.Observation) {
	kind := otherCalls
	journal, ofJournal := strings.CutPrefix(o.Key.Partition, "journal/")
	switch reads := o.Op.Reads(); {
	case ofJournal && reads:
		kind = journalReads
	case ofJournal && (o.Op == metadata.OpDelete || o.Key.Sort == "0000000000000000"):
		kind = journalTrims
	case ofJournal && journal != string(c.own()):
		kind = journalSeals
	case ofJournal:
		kind = commitWrites
	case strings.HasPrefix(o.Key.Partition, "partition/") && o.Key.Sort == "lease":
		kind = pick(reads, leaseReads, leaseWrites)
	case strings.HasPrefix(o.Key.Partition, "partition/"):
		kind = pick(reads, indexReads, indexWrites)
	case o.Key.Partition == "gateways":
		kind = pick(reads, memberReads, memberWrites)
	}
	c.add(kind, 1)
	switch kind {
	case memberReads:
		select {
		case c.changed <- struct{}{}:
		default:
		}
	case journalSeals:
		now := time.Now()
		c.sealed.Store(&now)
	}
}

func pick(reads bool, r, w counted) counted {
	if reads {
		return r
	}
	return w
}

func (c *counter) storeCall(op segments.Op, n int64, _ time.Duration, _ error) {
	if op == segments.OpPut {
		c.add(objectPuts, 1)
		c.add(objectBytes, uint64(n))
	}
}

// handler counts the calls that come.
func (c *counter) handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.add(peerCalls, 1)
		next.ServeHTTP(w, r)
	})
}

// markSize is how often a record of a bench has its mark in it. So a piece of a record can be told wherever
// it is seen: whatever is twice as long holds the mark whole.
const markSize = 16

var mark = []byte("\xf1varve's payload")

// marked returns the value of a record.
func marked(size int) []byte { return bytes.Repeat(mark, size/markSize+1)[:size] }

// wiretap is a connection whose bytes are counted, and looked through for records.
type wiretap struct {
	net.Conn
	counter *counter
	bytes   counted
	payload counted
	in, out tapped
}

// tapped is one direction.
type tapped struct {
	mu   sync.Mutex
	tail []byte // the last bytes, shorter than a mark
}

func (w *wiretap) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	w.note(&w.in, p[:n])
	return n, err
}

func (w *wiretap) Write(p []byte) (int, error) {
	n, err := w.Conn.Write(p)
	w.note(&w.out, p[:n])
	return n, err
}

func (w *wiretap) note(t *tapped, p []byte) {
	if len(p) == 0 {
		return
	}
	if w.bytes != 0 {
		w.counter.add(w.bytes, uint64(len(p)))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	seam := append(t.tail, p[:min(len(p), markSize-1)]...)
	seen := bytes.Count(p, mark) + bytes.Count(seam, mark)
	if len(p) >= markSize {
		seam = p
	}
	t.tail = append(t.tail[:0], seam[max(0, len(seam)-markSize+1):]...)
	w.counter.add(w.payload, uint64(seen))
}

// tapListener taps what producers send.
type tapListener struct {
	net.Listener
	counter *counter
}

func (l *tapListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &wiretap{Conn: conn, counter: l.counter, payload: producerSeen}, nil
}

// mortality ends what a gateway can do, at once and in the middle of things, as kill -9 does.
type mortality struct {
	ctx  context.Context
	kill context.CancelFunc
	mu   sync.Mutex
	open map[net.Conn]struct{} // connections to other gateways
}

func newMortality() *mortality {
	m := &mortality{open: make(map[net.Conn]struct{})}
	m.ctx, m.kill = context.WithCancel(context.Background())
	return m
}

// end cuts the connections that the gateway made. Whatever it calls from now on fails.
func (m *mortality) end() {
	m.kill()
	m.mu.Lock()
	defer m.mu.Unlock()
	for conn := range m.open {
		conn.Close()
	}
}

// join bounds a call by the gateway's life.
func (m *mortality) join(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(m.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// passed waits, and says whether the gateway, or whoever calls, has gone meanwhile.
func (m *mortality) passed(ctx context.Context, delay time.Duration) bool {
	return delay > 0 && !sleep(ctx, delay) || m.ctx.Err() != nil
}

// dial makes connections to other gateways.
func (m *mortality) dial(c *counter) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, done := m.join(ctx)
		defer done()
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		tap := &wiretap{Conn: conn, counter: c, bytes: peerBytes, payload: peerPayload}
		m.mu.Lock()
		defer m.mu.Unlock()
		m.open[tap] = struct{}{}
		if m.ctx.Err() != nil {
			conn.Close()
		}
		return tap, nil
	}
}

// mortalTable is a table that a killed gateway no longer reaches. Each call takes a while.
type mortalTable struct {
	metadata.Table
	life  *mortality
	delay time.Duration
}

func (t mortalTable) enter(ctx context.Context) (context.Context, func(), error) {
	if t.life.passed(ctx, t.delay) {
		return nil, nil, fmt.Errorf("%w: the gateway is dead, or does not want to know", metadata.ErrUnavailable)
	}
	ctx, done := t.life.join(ctx)
	return ctx, done, nil
}

func (t mortalTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	ctx, done, err := t.enter(ctx)
	if err != nil {
		return metadata.Row{}, err
	}
	defer done()
	return t.Table.Get(ctx, key, c)
}

func (t mortalTable) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	ctx, done, err := t.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	return t.Table.Put(ctx, row, cond)
}

func (t mortalTable) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	ctx, done, err := t.enter(ctx)
	if err != nil {
		return err
	}
	defer done()
	return t.Table.Delete(ctx, key, cond)
}

func (t mortalTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	ctx, done, err := t.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return t.Table.Range(ctx, r)
}

// mortalStore is the same of a bucket. Benches of clusters read nothing from it but what starts read.
type mortalStore struct {
	segments.Store
	life  *mortality
	delay time.Duration
}

func (s mortalStore) Put(ctx context.Context, key string, body segments.Body) error {
	if s.life.passed(ctx, s.delay) {
		return fmt.Errorf("%w: the gateway is dead, or does not want to know", segments.ErrUnavailable)
	}
	ctx, done := s.life.join(ctx)
	defer done()
	return s.Store.Put(ctx, key, body)
}
