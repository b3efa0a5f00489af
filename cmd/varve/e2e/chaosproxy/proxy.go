package chaosproxy

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Protocol is what the server behind a proxy speaks.
type Protocol uint8

const (
	S3 Protocol = iota
	DynamoDB
)

func (p Protocol) String() string { return [...]string{"S3", "DynamoDB"}[p] }

const (
	// slowLimit is the longest that a slow request is kept.
	slowLimit = 2 * time.Second
	// lateLimit is the longest that a late one waits for its sender to give up, and lateExtra what it
	// takes at most after that.
	lateLimit, lateExtra = time.Minute, 2 * time.Second
)

// Proxy is a listener on 127.0.0.1 in front of one server. It is safe for concurrent use.
type Proxy struct {
	// URL is where it listens.
	URL string

	protocol  Protocol
	backend   string // host:port
	transport *http.Transport
	server    *http.Server
	ctx       context.Context
	cancel    context.CancelFunc

	mu       sync.Mutex
	random   *rand.Rand
	rates    Rates
	cut      bool
	requests int
	counts   Counts
}

// New starts a proxy before the server at a URL. No fault happens before SetRates. Close ends it.
func New(backend string, protocol Protocol, seed uint64) (*Proxy, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		URL: "http://" + listener.Addr().String(), protocol: protocol, backend: strings.TrimPrefix(backend, "http://"),
		transport: &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
		random:    rand.New(rand.NewPCG(seed, uint64(protocol))),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: time.Minute}
	go p.server.Serve(listener) // until Close
	return p, nil
}

// Close cuts all connections; requests that are kept are dropped.
func (p *Proxy) Close() {
	p.cancel()
	p.server.Close()
	p.transport.CloseIdleConnections()
}

// SetRates says how likely faults are from now on.
func (p *Proxy) SetRates(r Rates) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rates = r
}

// SetCut cuts the server off, or connects it again.
func (p *Proxy) SetCut(cut bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = cut
}

// Counts returns how many requests came, and which faults happened.
func (p *Proxy) Counts() (requests int, counts Counts) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests, p.counts
}

func (p *Proxy) happened(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.counts[f]++
}

// chance returns a number from 0 up to below 1.
func (p *Proxy) chance() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.random.Float64()
}

// none is the fault of a request that nothing happens to.
const none = faults

// draw chooses what happens to a request.
func (p *Proxy) draw(r *http.Request) Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.requests++
	x := p.random.Float64() // also while cut off: chance goes on
	if p.cut {
		return CutOff
	}
	for f := range faults {
		put := r.Method == http.MethodPut
		switch {
		case f == CutOff, !f.possible(p.protocol), f == Conflict && !put, f == OwnWrite && !(put && r.Header.Get("If-None-Match") != ""):
			continue
		case x < p.rates[f]:
			return f
		}
		x -= p.rates[f]
	}
	return none
}

// ServeHTTP is the proxy at work.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // whoever sent it is gone
	}
	fault := p.draw(r)
	switch fault {
	case LostRequest, CutOff:
		p.happened(fault)
		reset(w)
		return
	case Conflict, SlowDown, Throttled:
		p.happened(fault)
		p.refuse(w, fault)
		return
	case ServerError:
		if p.chance() < 0.5 {
			p.happened(fault)
			p.refuse(w, fault)
			return
		}
	case Late:
		p.happened(fault)
		pause(r.Context(), lateLimit)
		pause(p.ctx, time.Duration(p.chance()*float64(lateExtra)))
	case Slow:
		p.happened(fault)
		pause(r.Context(), time.Duration(p.chance()*float64(slowLimit)))
	}
	a, err := p.forward(r, body)
	if err != nil {
		reset(w) // the server itself is gone, or we are
		return
	}
	p.answer(w, r, a, fault)
}

// pause waits until the context ends, so long at most.
func pause(ctx context.Context, limit time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(limit):
	}
}

// answered is the server's answer, read to its end.
type answered struct {
	status int
	header http.Header
	body   []byte
}

// forward sends the request on, whoever still waits for its answer.
func (p *Proxy) forward(r *http.Request, body []byte) (*answered, error) {
	out := r.Clone(p.ctx)
	out.RequestURI, out.URL.Scheme, out.URL.Host = "", "http", p.backend
	out.Body, out.ContentLength, out.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	out.Header.Del("Expect") // the body is here
	response, err := p.transport.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	a := &answered{status: response.StatusCode, header: response.Header}
	a.body, err = io.ReadAll(response.Body)
	return a, err
}

// answer passes the answer on, or what the fault leaves of it.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, a *answered, fault Fault) {
	switch {
	case fault == LostAnswer, fault == Late:
		if fault == LostAnswer {
			p.happened(fault)
		}
		reset(w)
		return
	case fault == ServerError, fault == OwnWrite && a.status == http.StatusOK:
		p.happened(fault)
		p.refuse(w, fault)
		return
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	w.WriteHeader(a.status)
	switch {
	case len(a.body) > 1 && fault == CutShort:
		p.happened(fault)
		w.Write(a.body[:int(p.chance()*float64(len(a.body)))]) // who asked may be gone
		http.NewResponseController(w).Flush()
		reset(w)
	case len(a.body) > 1 && fault == Trickle:
		p.happened(fault)
		p.trickle(w, r, a.body)
	default:
		w.Write(a.body)
	}
}

// trickle sends a body at one byte a second until whoever asked has enough of it.
func (p *Proxy) trickle(w http.ResponseWriter, r *http.Request, body []byte) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for _, b := range body {
		if _, err := w.Write([]byte{b}); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		select {
		case <-tick.C:
		case <-r.Context().Done():
			return
		case <-p.ctx.Done():
			reset(w)
			return
		}
	}
}

// reset ends the connection as a host does that knows nothing of it.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return // it is gone already
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}

// refusal is an answer in the server's own words.
type refusal struct {
	status        int
	code, message string
}

var refusals = map[Fault]refusal{
	Conflict:  {http.StatusConflict, "ConditionalRequestConflict", "The conditional request cannot succeed due to a conflicting operation against this resource."},
	OwnWrite:  {http.StatusPreconditionFailed, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold"},
	SlowDown:  {http.StatusServiceUnavailable, "SlowDown", "Please reduce your request rate."},
	Throttled: {http.StatusBadRequest, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException", "The level of configured provisioned throughput for the table was exceeded."},
}

var serverErrors = map[Protocol]refusal{
	S3:       {http.StatusInternalServerError, "InternalError", "We encountered an internal error. Please try again."},
	DynamoDB: {http.StatusInternalServerError, "com.amazonaws.dynamodb.v20120810#InternalServerError", "Internal server error"},
}

func (p *Proxy) refuse(w http.ResponseWriter, f Fault) {
	no, ok := refusals[f]
	if !ok {
		no = serverErrors[p.protocol]
	}
	if p.protocol == DynamoDB {
		w.Header().Set("Content-Type", "application/x-amz-json-1.0")
		w.WriteHeader(no.status)
		io.WriteString(w, `{"__type":"`+no.code+`","message":"`+no.message+`"}`)
		return
	}
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(no.status)
	io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n<Error><Code>"+no.code+"</Code><Message>"+no.message+
		"</Message><RequestId>chaos</RequestId><HostId>chaos</HostId></Error>")
}
