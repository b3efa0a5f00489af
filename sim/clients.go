package sim

import (
	"context"
	"errors"
	"sync"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/client"
)

// caller is a client program: it knows the addresses of all gateways.
type caller struct {
	party
	cluster *Cluster
	dice    *dice
}

func (c *Cluster) newCaller(name string) *caller {
	return &caller{party: party{name, newLife()}, cluster: c, dice: newDice(c.options.Seed, name)}
}

// some is any host that is part of the cluster.
func (c *caller) some() *host { return pick(c.dice, c.cluster.present()) }

// log is the log service of one host.
func (c *caller) log(h *host) varvev1connect.LogServiceClient {
	return varvev1connect.NewLogServiceClient(connect.NewClient(c.cluster.network.dial(c.party, h.apiAddress())))
}

// topics is the topic service of one host.
func (c *caller) topics(h *host) varvev1connect.TopicServiceClient {
	return varvev1connect.NewTopicServiceClient(connect.NewClient(c.cluster.network.dial(c.party, h.apiAddress())))
}

// client returns a Go client. It begins with a host, and goes to another one when calls fail.
func (c *caller) client(home *host) *client.Client {
	cl, err := client.New(client.Config{Transport: &roaming{caller: c, home: home}, RequestTimeout: requestTime})
	if err != nil {
		panic(err) // the configuration is this package's own
	}
	return cl
}

// roaming is a transport that leads elsewhere once something failed: a load balancer.
type roaming struct {
	caller *caller

	mu   sync.Mutex
	home *host
}

// NewClientStream implements connect.Transport.
func (r *roaming) NewClientStream(ctx context.Context, spec connect.Spec) (connect.ClientStream, error) {
	r.mu.Lock()
	h := r.home
	r.mu.Unlock()
	s, err := r.caller.cluster.network.dial(r.caller.party, h.apiAddress()).NewClientStream(ctx, spec)
	if err != nil {
		r.move(h)
		return nil, err
	}
	return &roamingStream{s, r, h}, nil
}

func (r *roaming) move(from *host) {
	to := r.caller.some()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.home == from {
		r.home = to
	}
}

type roamingStream struct {
	connect.ClientStream
	roaming *roaming
	at      *host
}

func (s *roamingStream) Receive(msg any) error {
	err := s.ClientStream.Receive(msg)
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeAborted:
		s.roaming.move(s.at)
	}
	return err
}

// judge says what an error told of an append.
func judge(err error) (Outcome, *varvev1.ErrorInfo) {
	if err == nil {
		return Done, nil
	}
	var remote *connect.Error
	if !errors.As(err, &remote) || !remote.IsRemote() {
		return Unknown, &varvev1.ErrorInfo{Reason: err.Error()}
	}
	for _, d := range remote.Details() {
		if msg, bad := connectproto.UnmarshalErrorDetail(d); bad == nil {
			if info, ok := msg.(*varvev1.ErrorInfo); ok {
				if info.GetUnknownOutcome() {
					return Unknown, info
				}
				return No, info
			}
		}
	}
	return Unknown, &varvev1.ErrorInfo{Reason: err.Error()}
}
