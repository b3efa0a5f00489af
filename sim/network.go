package sim

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectinprocess"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// callTime bounds a unary call without a deadline, keepAlive a stream whose link is dead.
const (
	callTime  = time.Minute
	keepAlive = 10 * time.Second
	hop       = 500 * time.Microsecond
)

// party is an end of links.
type party struct {
	name string
	life *life
}

// listener is a server at an address.
type listener struct {
	party
	server *connect.Server
}

// network carries calls between parties, as the weather has it.
type network struct {
	weather *weather
	strays  *sync.WaitGroup

	mu        sync.Mutex
	listeners map[string]*listener
}

func newNetwork(w *weather, strays *sync.WaitGroup) *network {
	return &network{weather: w, strays: strays, listeners: make(map[string]*listener)}
}

// listen takes an address. Whoever had it before has it no more.
func (n *network) listen(address string, l *listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[address] = l
}

// hangUp gives an address back, unless somebody else has it by now.
func (n *network) hangUp(address string, life *life) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.listeners[address]; l != nil && l.life == life {
		delete(n.listeners, address)
	}
}

func (n *network) lookUp(address string) *listener {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.listeners[address]
}

// dial returns the transport from a party to an address.
func (n *network) dial(from party, address string) connect.Transport {
	return &transport{n, from, address}
}

type transport struct {
	network *network
	from    party
	address string
}

// NewClientStream implements connect.Transport.
func (t *transport) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	if spec.StreamType == connect.StreamTypeUnary {
		return &unary{transport: t, ctx: ctx, spec: spec}, nil
	}
	return t.stream(ctx, spec)
}

// reach finds who listens, after the way there.
func (t *transport) reach(ctx context.Context, f fate) (*listener, error) {
	if err := t.from.life.pass(); err != nil {
		return nil, unreachable(err)
	}
	if err := rest(ctx, hop+f.delay); err != nil {
		return nil, gaveUp(err)
	}
	l := t.network.lookUp(t.address)
	switch {
	case l == nil || f.fault == refused:
		return nil, unreachable(errors.New("connection refused"))
	case t.network.weather.blocked(t.from.name, l.name):
		t.network.weather.fire(blockedOut)
		f.fault = vanished
	}
	if f.fault == vanished {
		<-ctx.Done()
		return nil, gaveUp(ctx.Err())
	}
	return l, nil
}

func unreachable(cause error) error {
	return connect.NewError(connect.CodeUnavailable, cause.Error())
}

func gaveUp(err error) error {
	code := connect.CodeCanceled
	if errors.Is(err, context.DeadlineExceeded) {
		code = connect.CodeDeadlineExceeded
	}
	return connect.NewError(code, err.Error()).WithCause(err)
}

// unary is a call with one message each way. It happens in Receive.
type unary struct {
	*transport
	ctx     context.Context
	spec    connect.Spec
	request any
	done    bool
}

func (u *unary) SendHeaders() error { return nil }
func (u *unary) CloseSend() error   { return nil }
func (u *unary) Close() error       { return nil }

func (u *unary) Send(msg any) error {
	u.request = proto.Clone(msg.(proto.Message))
	return nil
}

type unaryAnswer struct {
	message proto.Message
	err     error
}

func (u *unary) Receive(dst any) error {
	if u.done {
		return io.EOF
	}
	u.done = true
	ctx, cancel := context.WithTimeout(u.ctx, callTime)
	defer cancel()
	w := u.network.weather
	f := w.draw(NetworkCalls, networkOdds)
	delay := f.delay
	if f.fault == late {
		f.delay = 0 // the caller does not feel it
	}
	l, err := u.reach(ctx, f)
	if err != nil {
		return err
	}
	into := dst.(proto.Message)
	if f.fault == late && mayBeLate(u.spec.Procedure) {
		return u.sendLate(ctx, l, delay, into)
	}
	answered := make(chan unaryAnswer, 1)
	leave := u.serve(ctx, l, into.ProtoReflect().New().Interface(), answered)
	defer leave()
	var answer unaryAnswer
	select {
	case answer = <-answered:
	case <-ctx.Done():
		return gaveUp(ctx.Err())
	case <-l.life.over.Done():
		return unreachable(errors.New("connection reset"))
	}
	if w.blocked(l.name, u.from.name) {
		w.fire(blockedIn)
		<-ctx.Done()
		return gaveUp(ctx.Err())
	}
	if f.fault == lostAnswer {
		return unreachable(errors.New("connection reset"))
	}
	if err := rest(ctx, hop); err != nil {
		return gaveUp(err)
	}
	if err := u.from.life.pass(); err != nil {
		return unreachable(err)
	}
	if answer.err != nil {
		return answer.err
	}
	if f.fault == garbage {
		if err := spoil(u.spec.Procedure, answer.message, w.dice); err != nil {
			return err
		}
	}
	proto.Merge(into, answer.message)
	return nil
}

// mayBeLate says whether a request may arrive when its caller has long gone on. Not one that makes or deletes a
// topic: it would mean another topic of the name.
func mayBeLate(procedure string) bool {
	return !strings.HasPrefix(procedure, "/"+varvev1connect.TopicServiceName+"/")
}

// sendLate has the request arrive when the caller may have given up; it gets no answer.
func (u *unary) sendLate(ctx context.Context, l *listener, delay time.Duration, answer proto.Message) error {
	u.network.strays.Go(func() {
		time.Sleep(delay)
		arrived, cancel := context.WithTimeout(context.Background(), callTime)
		defer cancel()
		answered := make(chan unaryAnswer, 1)
		defer u.serve(arrived, l, answer.ProtoReflect().New().Interface(), answered)()
		select {
		case <-answered: // nobody is there to be told
		case <-arrived.Done():
		case <-l.life.over.Done():
		}
	})
	<-ctx.Done()
	return gaveUp(ctx.Err())
}

// serve runs the call at the other end, which goes on when the caller is gone if the
// connection is not seen to be.
func (u *unary) serve(ctx context.Context, l *listener, answer proto.Message, answered chan<- unaryAnswer) (leave func()) {
	deadline, _ := ctx.Deadline()
	left := time.Until(deadline)
	gone, cancel := context.WithCancel(context.Background())
	dies := context.AfterFunc(l.life.over, cancel)
	u.network.strays.Go(func() {
		defer cancel()
		defer dies()
		if l.life.pass() != nil {
			return
		}
		// What a stopped process finds in its sockets is new to it.
		there, end := context.WithTimeout(gone, left)
		defer end()
		stream, err := connectinprocess.New(l.server).NewClientStream(there, u.spec)
		if err == nil {
			err = stream.Send(u.request)
		}
		if err == nil {
			err = stream.Receive(answer)
		}
		if l.life.pass() == nil {
			answered <- unaryAnswer{answer, err}
		}
	})
	return func() {
		if !u.network.weather.dice.chance(4) {
			cancel()
		}
	}
}

// spoil makes garbage of an answer: an error that nobody expects or, among gateways, other bytes where it
// has any (a few wrong bits don't get through a connection with checksums).
func spoil(procedure string, message proto.Message, d *dice) error {
	ofPeers := strings.HasPrefix(procedure, "/"+peerv1connect.PeerServiceName+"/")
	if !ofPeers || d.chance(2) {
		code := connect.Code(1 + d.upTo(16))
		if !ofPeers && (code == connect.CodeDataLoss || code == connect.CodeOutOfRange) {
			code = connect.CodeUnknown // a client believes what is said of the log: it would be an anomaly of the network's making
		}
		return connect.NewError(code, "garbage")
	}
	spoiled := false
	message.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Kind() == protoreflect.BytesKind && !field.IsList():
			noise := make([]byte, d.upTo(64))
			for i := range noise {
				noise[i] = byte(rand.Uint32())
			}
			message.ProtoReflect().Set(field, protoreflect.ValueOfBytes(noise))
			spoiled = true
		case field.IsList() && value.List().Len() > 0:
			value.List().Truncate(value.List().Len() - 1)
			spoiled = true
		}
		return !spoiled
	})
	if !spoiled {
		return connect.NewError(connect.CodeUnknown, "garbage")
	}
	return nil
}

// stream is a call with many messages.
type stream struct {
	connect.ClientStream
	*transport
	ctx    context.Context
	cancel context.CancelFunc
	to     *listener
}

func (t *transport) stream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	f := t.network.weather.draw(NetworkCalls, []odds{{refused, 60, 0}, {slow, 30, time.Second}})
	limited, cancel := context.WithTimeout(ctx, keepAlive)
	defer cancel()
	l, err := t.reach(limited, f)
	if err != nil {
		return nil, err
	}
	there, end := context.WithCancel(context.Background())
	for _, gone := range []context.Context{ctx, l.life.over, t.from.life.over} {
		context.AfterFunc(gone, end)
	}
	inner, err := connectinprocess.New(l.server).NewClientStream(there, spec)
	if err != nil {
		end()
		return nil, err
	}
	return &stream{inner, t, there, end, l}, nil
}

// Send sends a copy: the receiver has the message itself.
func (s *stream) Send(msg any) error {
	if err := s.from.life.pass(); err != nil {
		return unreachable(err)
	}
	if err := s.clear(s.from.name, s.to.name, blockedOut); err != nil {
		return err
	}
	return s.ClientStream.Send(proto.Clone(msg.(proto.Message)))
}

func (s *stream) Receive(msg any) error {
	if err := s.ClientStream.Receive(msg); err != nil {
		if s.to.life.dead() {
			return unreachable(errors.New("connection reset"))
		}
		return err
	}
	if s.to.life.pass() != nil {
		return unreachable(errors.New("connection reset"))
	}
	f := s.network.weather.draw(NetworkCalls, streamOdds)
	if f.fault == cutStream {
		s.cancel()
		return unreachable(errors.New("connection reset"))
	}
	if err := rest(s.ctx, hop+f.delay); err != nil {
		return gaveUp(err)
	}
	if err := s.clear(s.to.name, s.from.name, blockedIn); err != nil {
		return err
	}
	if err := s.from.life.pass(); err != nil {
		return unreachable(err)
	}
	return nil
}

// clear waits until the link carries something, or is given up.
func (s *stream) clear(from, to string, fault Fault) error {
	for waited := time.Duration(0); s.network.weather.blocked(from, to); waited += 100 * time.Millisecond {
		if waited == 0 {
			s.network.weather.fire(fault)
		}
		if waited >= keepAlive {
			s.cancel()
			return unreachable(errors.New("the connection does not answer"))
		}
		if err := rest(s.ctx, 100*time.Millisecond); err != nil {
			return gaveUp(err)
		}
	}
	return nil
}

// Close implements connect.ClientStream.
func (s *stream) Close() error {
	defer s.cancel()
	return s.ClientStream.Close()
}
