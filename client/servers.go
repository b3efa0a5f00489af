package client

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// endpoint is one server.
type endpoint struct {
	name    string
	log     varvev1connect.LogServiceClient
	topics  varvev1connect.TopicServiceClient
	cluster varvev1connect.ClusterServiceClient

	// down: it failed, and nothing has shown since that it works. Written with servers.mu held.
	down atomic.Bool
	// suspect: no call has succeeded yet, or none since one failed. Written with servers.mu held.
	suspect atomic.Bool
	// The rest is guarded by servers.mu. failures in a row, of calls that somebody wanted.
	failures int
	// lookAt is when to look in the background whether it works.
	lookAt  time.Time
	looking bool
}

// servers chooses the server for each call: one for all calls, drawn at random so that clients spread, until it
// fails; then another one, at random among those that are not known to be down. A server that is down is looked at
// in the background while others do the work, and each client moves to one that is back with a chance of one
// in the number of servers: so load finds new and restarted gateways without a storm.
type servers struct {
	all []*endpoint
	// current is the one in use.
	current atomic.Pointer[endpoint]
	// skip is how long a server that failed is left alone; the double each time it fails again, eightfold at most.
	skip time.Duration
	// slow is how long a call must have lasted for its time limit to say something of the server.
	slow time.Duration
	// dropIdle closes connections that nobody uses; nil without HTTP.
	dropIdle func()
	// ctx ends with the client.
	ctx context.Context

	mu     sync.Mutex
	closed bool
	looks  sync.WaitGroup
}

// start draws the first server.
func (s *servers) start(now time.Time) {
	s.current.Store(s.all[rand.IntN(len(s.all))])
	for _, e := range s.all {
		e.lookAt = now.Add(s.skip)
		e.suspect.Store(true)
	}
}

// pick returns the server for a call, if possible not the one to avoid.
func (s *servers) pick(avoid *endpoint) *endpoint {
	if len(s.all) == 1 {
		return s.all[0]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	e := s.current.Load()
	if e.down.Load() {
		e = s.draw(nil)
		s.current.Store(e)
	}
	if e == avoid {
		e = s.draw(avoid)
	}
	if !e.down.Load() {
		s.lookAtOthers(e, now)
	}
	return e
}

// draw returns a server that is not down and not to be avoided. If there is none: the one whose turn comes first.
func (s *servers) draw(avoid *endpoint) *endpoint {
	if up := s.up(avoid); len(up) > 0 {
		return up[rand.IntN(len(up))]
	}
	return slices.MinFunc(s.all, func(a, b *endpoint) int { return a.lookAt.Compare(b.lookAt) })
}

func (s *servers) up(except *endpoint) []*endpoint {
	var up []*endpoint
	for _, e := range s.all {
		if e != except && !e.down.Load() {
			up = append(up, e)
		}
	}
	return up
}

// lookAtOthers looks at servers that are down, and once at those that were never asked.
func (s *servers) lookAtOthers(busy *endpoint, now time.Time) {
	if s.closed {
		return
	}
	for _, e := range s.all {
		if e == busy || e.looking || e.lookAt.IsZero() || now.Before(e.lookAt) {
			continue
		}
		e.looking = true
		s.looks.Go(func() { s.look(e) })
	}
}

// look asks a server for nothing in particular. It ends within seconds, and with the client.
func (s *servers) look(e *endpoint) {
	const patience = 2 * time.Second
	ctx, cancel := context.WithTimeout(s.ctx, patience)
	defer cancel()
	_, err := e.cluster.Usage(ctx, &varvev1.UsageRequest{})
	s.mu.Lock()
	defer s.mu.Unlock()
	e.looking = false
	if err != nil && errorOf(err).ofServer() {
		e.down.Store(true)
		e.lookAt = time.Now().Add(jitter(s.skip))
		return
	}
	e.lookAt = time.Time{}
	e.down.Store(false)
	if rand.IntN(len(s.up(nil))) == 0 {
		s.current.Store(e)
	}
}

// wait returns when nothing is looked at any more, which the end of ctx sees to.
func (s *servers) wait() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.looks.Wait()
}

// succeeded takes note that a server works.
func (s *servers) succeeded(e *endpoint) {
	if !e.suspect.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e.failures, e.lookAt = 0, time.Time{}
	e.down.Store(false)
	e.suspect.Store(false)
}

// failed takes note of the failure of a call that began at started. It sets elsewhere when another server may
// be asked at once.
func (s *servers) failed(e *endpoint, err *Error, started time.Time) {
	if s.dropIdle != nil && err.Reason == reasonDraining {
		// Behind a load balancer the next connection leads to another gateway.
		s.dropIdle()
	}
	if len(s.all) == 1 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	ownLimit := !err.informed && err.Code == connect.CodeDeadlineExceeded && now.Sub(started) < s.slow
	if err.ofServer() && !ownLimit {
		e.down.Store(true)
		e.suspect.Store(true)
		e.lookAt = now.Add(jitter(s.skip << min(e.failures, 3)))
		e.failures++
	}
	// A gap is closed by what is still on its way, wherever.
	err.elsewhere = err.Retriable && err.Reason != reasonOutOfOrder && len(s.up(e)) > 0
}

// jitter is between half of d and one and a half.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d+1) }
