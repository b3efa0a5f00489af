package gateway

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	"github.com/varvelog/varve/metadata"
)

const (
	// peerProtocol is the version of what gateways say to each other. One that speaks another
	// is not spoken to.
	peerProtocol = 4
	// peerWait is how long a gateway lets another one wait for a verdict, peerTime how long
	// that one waits for the answer.
	peerWait = 2 * time.Second
	peerTime = 2 * peerWait
	// peerMessage bounds a message between gateways, in bytes: the references of a segment of
	// 500,000 batches.
	peerMessage = 64 << 20
)

// errUnreachable says that a gateway did not answer, or not sensibly. Whether it did what
// it was asked for is unknown.
var errUnreachable = errors.New("gateway: peer does not answer")

// peers are the connections to other gateways, one each, made when first needed.
type peers struct {
	g    *Gateway
	dial func(address string) connect.Transport

	mu   sync.Mutex
	list map[metadata.GatewayID]*peer
}

// peer is another gateway.
type peer struct {
	id     metadata.GatewayID
	client peerv1connect.PeerServiceClient
	// gone ends with the gateway: whoever waits for it waits in vain.
	gone   context.Context
	cancel context.CancelFunc
	// faults are told once, until a call succeeds again.
	fault since
}

func newPeers(g *Gateway, dial func(string) connect.Transport) *peers {
	if dial == nil {
		dial = DialHTTP(nil)
	}
	return &peers{g: g, dial: dial, list: make(map[metadata.GatewayID]*peer)}
}

// DialHTTP is what [Dependencies].Dial is by default: HTTP/2 without TLS; one client has all
// connections. open makes them; nil: as the net package does, within two seconds.
func DialHTTP(open func(ctx context.Context, network, address string) (net.Conn, error)) func(string) connect.Transport {
	if open == nil {
		open = (&net.Dialer{Timeout: peerWait}).DialContext
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	client := &http.Client{Transport: &http.Transport{
		DialContext:     open,
		Protocols:       &protocols,
		IdleConnTimeout: time.Minute,
		HTTP2: &http.HTTP2Config{
			SendPingTimeout: 5 * time.Second, // finds connections that are gone
			PingTimeout:     5 * time.Second,
		},
	}}
	return func(address string) connect.Transport {
		return connecthttp.NewTransport(client, "http://"+address, connecthttp.WithReadMaxBytes(peerMessage), connecthttp.WithCompressMinBytes(math.MaxInt))
	}
}

// get returns the connection to a gateway that lives.
func (s *peers) get(id metadata.GatewayID) (*peer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.list[id]; p != nil {
		return p, nil
	}
	address, protocol := s.g.members.peerOf(id)
	switch {
	case !s.g.members.lives(id):
		return nil, fmt.Errorf("%w: %s is gone", errUnreachable, id)
	case address == "":
		return nil, fmt.Errorf("%w: %s tells no address for peers: it was not started to share its table", errUnreachable, id)
	case protocol != peerProtocol:
		return nil, fmt.Errorf("%w: %s speaks version %d to its peers, this gateway version %d: run the same version of varve on both", errUnreachable, id, protocol, peerProtocol)
	}
	p := &peer{id: id, client: peerv1connect.NewPeerServiceClient(connect.NewClient(s.dial(address)))}
	p.gone, p.cancel = context.WithCancel(context.Background())
	s.list[id] = p
	return p, nil
}

// checkAddress calls the address that others are about to be told. If another gateway answers there, they would wait for
// this one in vain. Whether all of them reach it, nobody can tell from here.
func (s *peers) checkAddress(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, peerWait)
	defer cancel()
	address := s.g.config.PeerAddress
	client := peerv1connect.NewPeerServiceClient(connect.NewClient(s.dial(address)))
	_, err := client.Refer(ctx, &peerv1.ReferRequest{Call: s.introduce(s.g.ID()), References: metadata.EncodeReferences(nil)})
	switch {
	case err == nil:
	case connect.CodeOf(err) == connect.CodeFailedPrecondition:
		return refuse(connect.CodeFailedPrecondition, reasonWrongPeer,
			"the address %s, which other gateways would be told, leads to another one: %s; give each gateway an --advertise of its own", address, err.Error())
	default:
		s.g.log.Warn("this gateway does not reach itself at the address that other gateways are told: if they do not either, what they refer to it waits in vain (--advertise)",
			"address", address, "error", err)
	}
	return nil
}

// prune lets go of gateways that are gone, and of whoever waits for them.
func (s *peers) prune() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, p := range s.list {
		if !s.g.members.lives(id) {
			p.cancel()
			delete(s.list, id)
		}
	}
}

// call runs a call to a gateway, with time for it and an end should the gateway go.
func (s *peers) call(ctx context.Context, id metadata.GatewayID, do func(context.Context, peerv1connect.PeerServiceClient, *peerv1.Call) error) error {
	p, err := s.get(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, peerTime)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	s.g.meters.peerCalls.Add(1)
	if err := do(ctx, p.client, s.introduce(id)); err != nil {
		err = fmt.Errorf("%w: %s: %w", errUnreachable, id, err)
		if p.fault.begin() && ctx.Err() == nil {
			s.g.log.Warn("another gateway does not answer as it should", "error", err)
		}
		return err
	}
	p.fault.end()
	return nil
}

// introduce says between whom a call is.
func (s *peers) introduce(to metadata.GatewayID) *peerv1.Call {
	return &peerv1.Call{ClusterId: s.g.ClusterID(), From: string(s.g.ID()), To: string(to), Protocol: peerProtocol}
}

// refer has references judged by another gateway: a result each, or an error for all.
func (s *peers) refer(ctx context.Context, to metadata.GatewayID, references []*metadata.Reference) ([]referred, error) {
	encoded := metadata.EncodeReferences(references)
	s.g.meters.peerBytes.Add(uint64(len(encoded)))
	results := make([]referred, len(references))
	err := s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
		answer, err := client.Refer(ctx, &peerv1.ReferRequest{Call: call, References: encoded})
		if err != nil {
			return err
		}
		if len(answer.GetResults()) != len(references) {
			return fmt.Errorf("%d results for %d references", len(answer.GetResults()), len(references))
		}
		for i, r := range answer.GetResults() {
			s.g.meters.peerBytes.Add(uint64(len(r.GetVerdict())))
			if results[i].err = refusalError(r.GetRefusal()); results[i].err != nil {
				continue
			}
			if results[i].verdict, err = metadata.DecodeVerdict(r.GetVerdict()); err != nil {
				return err
			}
			if got, want := len(results[i].verdict.Batches), len(references[i].Batches); got != want && !(got == 0 && results[i].verdict.Status == metadata.Repeated) {
				return fmt.Errorf("verdicts on %d batches, there are %d", got, want)
			}
		}
		return nil
	})
	return results, err
}

// referred is what becomes of one reference.
type referred struct {
	verdict metadata.Verdict
	err     error
}

// decide has a decision taken by another gateway, and returns what readers see then.
func (s *peers) decide(ctx context.Context, to metadata.GatewayID, id metadata.PartitionID, d decision) (v *metadata.View, err error) {
	request := d.message(id)
	var refused error
	err = s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
		request.Call = call
		answer, err := client.Decide(ctx, request)
		if err != nil {
			return err
		}
		if refused = refusalError(answer.GetRefusal()); refused != nil {
			return nil
		}
		if d.swap != nil {
			return d.swap.answered(answer.GetSwapOutcome())
		}
		v, err = metadata.DecodeView(id, answer.GetView())
		return err
	})
	if err == nil {
		err = refused
	}
	return v, err
}

// read asks another gateway for what readers may see of a partition, as of a moment after
// the call.
func (s *peers) read(ctx context.Context, to metadata.GatewayID, id metadata.PartitionID) (v *metadata.View, err error) {
	var refused error
	err = s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
		answer, err := client.Read(ctx, &peerv1.ReadRequest{Call: call, Partition: partitionMessage(id), Linearizable: true})
		if err != nil {
			return err
		}
		if refused = refusalError(answer.GetRefusal()); refused != nil {
			return nil
		}
		v, err = metadata.DecodeView(id, answer.GetView())
		return err
	})
	if err == nil {
		err = refused
	}
	return v, err
}

// readBlock asks another gateway of the zone for a range of a segment.
func (s *peers) readBlock(ctx context.Context, to metadata.GatewayID, name segmentName, offset int64, length int) (data []byte, err error) {
	p, err := s.get(to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.gone, cancel)()
	s.g.meters.peerCalls.Add(1)
	answer, err := p.client.ReadBlock(ctx, &peerv1.ReadBlockRequest{Call: s.introduce(to), Zone: s.g.config.Zone,
		Gateway: string(name.gateway), Number: name.number, Offset: offset, Length: int32(length)})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errUnreachable, to, err)
	}
	if len(answer.GetData()) > length {
		return nil, fmt.Errorf("%w: %s answered with %d bytes, it was asked for %d", errUnreachable, to, len(answer.GetData()), length)
	}
	return answer.GetData(), nil
}

// take tells another gateway that partitions were released for it.
func (s *peers) take(ctx context.Context, to metadata.GatewayID, ids []metadata.PartitionID) error {
	request := &peerv1.TakeRequest{}
	for _, id := range ids {
		request.Partitions = append(request.Partitions, partitionMessage(id))
	}
	pauses := fewPauses()
	for {
		err := s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
			request.Call = call
			_, err := client.Take(ctx, request)
			return err
		})
		if err == nil {
			return nil
		}
		if d := pauses.NextBackOff(); d < 0 || ctx.Err() != nil {
			return err
		} else {
			select {
			case <-time.After(d):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// acknowledge has another gateway read the gateways' rows and settle what it judged before.
func (s *peers) acknowledge(ctx context.Context, to metadata.GatewayID) error {
	return s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
		_, err := client.Acknowledge(ctx, &peerv1.AcknowledgeRequest{Call: call})
		return err
	})
}

func partitionMessage(id metadata.PartitionID) *peerv1.Partition {
	return &peerv1.Partition{Topic: id.Topic[:], Number: id.Number}
}

func partitionOfMessage(m *peerv1.Partition) (metadata.PartitionID, error) {
	id := metadata.PartitionID{Number: m.GetNumber()}
	if len(m.GetTopic()) != len(id.Topic) || id.Number < 0 || id.Number >= metadata.MaxPartitions {
		return id, connect.Errorf(connect.CodeInvalidArgument, "that is no partition: topic of %d bytes, number %d", len(m.GetTopic()), m.GetNumber())
	}
	copy(id.Topic[:], m.GetTopic())
	return id, nil
}

// refusalMessage says to a peer why a partition could not be asked about.
func refusalMessage(err error) *peerv1.Refusal {
	r := &peerv1.Refusal{Kind: peerv1.Refusal_KIND_BUSY, Message: err.Error()}
	var (
		held     *elsewhere
		closed   *uploaderClosed
		conflict *metadata.FenceConflict
		other    *altered
	)
	switch {
	case errors.As(err, &held):
		r.Kind, r.Holder = peerv1.Refusal_KIND_ELSEWHERE, string(held.holder)
	case errors.As(err, &closed):
		r.Kind = peerv1.Refusal_KIND_UPLOADER_CLOSED
	case errors.As(err, &conflict):
		r.Kind, r.Token, r.NextOffset = peerv1.Refusal_KIND_CONDITION, conflict.Token, conflict.Next
	case errors.Is(err, metadata.ErrClosed):
		r.Kind = peerv1.Refusal_KIND_CLOSED
	case errors.As(err, &other):
		r.Kind = peerv1.Refusal_KIND_SETTINGS
	case errors.Is(err, metadata.ErrInvalid):
		r.Kind = peerv1.Refusal_KIND_INVALID
	case lasting(err):
		r.Kind = peerv1.Refusal_KIND_CORRUPT
	}
	return r
}

// refusalError is the error that a peer's refusal stands for; nil without one.
func refusalError(r *peerv1.Refusal) error {
	if r == nil {
		return nil
	}
	switch r.GetKind() {
	case peerv1.Refusal_KIND_ELSEWHERE:
		return &elsewhere{metadata.GatewayID(r.GetHolder())}
	case peerv1.Refusal_KIND_UPLOADER_CLOSED:
		return &uploaderClosed{}
	case peerv1.Refusal_KIND_CONDITION:
		return &metadata.FenceConflict{Token: r.GetToken(), Next: r.GetNextOffset()}
	case peerv1.Refusal_KIND_CLOSED:
		return metadata.ErrClosed
	case peerv1.Refusal_KIND_SETTINGS:
		return &altered{r.GetMessage()}
	case peerv1.Refusal_KIND_INVALID:
		return fmt.Errorf("%w: %s", metadata.ErrInvalid, r.GetMessage())
	case peerv1.Refusal_KIND_CORRUPT:
		return fmt.Errorf("%w: says the gateway that sequences it: %s", metadata.ErrCorrupt, r.GetMessage())
	}
	return fmt.Errorf("%w: %s", metadata.ErrBusy, r.GetMessage())
}
