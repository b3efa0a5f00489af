package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

// router finds the sequencer of a partition: this gateway, or another one by a peer call.
// It remembers who answered last; who does not know asks the gateway that should have it,
// which takes the partition or says who has it.
type router struct {
	g *Gateway

	mu     sync.Mutex
	routes map[metadata.PartitionID]metadata.GatewayID
	broken map[metadata.PartitionID]error // partitions that cannot be sequenced, for good
}

func newRouter(g *Gateway) *router {
	return &router{g: g, routes: make(map[metadata.PartitionID]metadata.GatewayID), broken: make(map[metadata.PartitionID]error)}
}

// route says whom to ask about a partition.
func (r *router) route(id metadata.PartitionID) metadata.GatewayID {
	own := r.g.ID()
	if p := r.g.partitions.peek(id); p != nil && p.owned.Load() {
		return own
	}
	r.mu.Lock()
	to, known := r.routes[id]
	r.mu.Unlock()
	if known && (to == own || r.g.members.lives(to)) {
		return to
	}
	if to = r.g.members.winner(id); to == "" {
		return own
	}
	return to
}

// sequencer is the gateway that is known to sequence a partition; "" when none is.
func (r *router) sequencer(id metadata.PartitionID) metadata.GatewayID {
	if p := r.g.partitions.peek(id); p != nil && p.owned.Load() {
		return r.g.ID()
	}
	r.mu.Lock()
	at := r.routes[id]
	r.mu.Unlock()
	if at == "" {
		at = r.g.mirrors.teller(id)
	}
	return at
}

// learn notes where a partition is said to be; "": not where it was thought to be.
func (r *router) learn(id metadata.PartitionID, at metadata.GatewayID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if at == "" || at == r.g.ID() {
		delete(r.routes, id)
		return
	}
	r.routes[id] = at
}

// breakOff refuses a partition's appends from now on.
func (r *router) breakOff(id metadata.PartitionID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken[id] == nil {
		r.broken[id] = err
	}
}

func (r *router) brokenOff(id metadata.PartitionID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.broken[id]
}

// forget drops what is known of a partition that takes nothing more, for ever.
func (r *router) forget(id metadata.PartitionID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.routes, id)
	delete(r.broken, id)
}

// maxHurried is how often references go where they are sent on to at once. Gateways that send
// each other to and fro, since they disagree on who lives, need a moment to agree.
const maxHurried = 3

// exchange is the references of one segment on their way.
type exchange struct {
	r          *router
	references []*metadata.Reference
	results    chan indexed
	again      chan []int
	troubled   bool // it was said that something is wrong
	hurried    int  // how often it went on without a pause
	// doubt has the references of which an earlier try may have been committed.
	doubt map[int]bool
}

// indexed is what became of the reference with an index.
type indexed struct {
	index int
	to    metadata.GatewayID // who was asked
	referred
}

// refer has references judged, each until there is a verdict, and reports them in whatever
// order they come. turn, if given, says which may be sent at once; it calls send, which does not
// block, when another one may. It returns an error when the gateway ends before.
func (r *router) refer(ctx context.Context, references []*metadata.Reference, turn func(i int, send func()) bool, judged func(i int, v metadata.Verdict, err error)) error {
	x := &exchange{r: r, references: references, results: make(chan indexed, len(references)), again: make(chan []int, len(references)+1), doubt: make(map[int]bool)}
	ready := make([]int, 0, len(references))
	for i := range references {
		// There is room in again: no reference is twice on its way.
		if turn == nil || turn(i, func() { x.again <- []int{i} }) {
			ready = append(ready, i)
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	x.send(ctx, ready)
	pauses, epoch := metadata.DefaultBackOff(), r.g.members.epoch()
	for left := len(references); left > 0; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case indexes := <-x.again:
			x.send(ctx, indexes)
		case first := <-x.results:
			var retry []int
			hurry := true
			for n, result := len(x.results), first; ; n-- {
				if x.settles(&result) {
					if result.err != nil && x.doubt[result.index] {
						result.err = unknownOutcome("an earlier try may have been committed", result.err)
					}
					judged(result.index, result.verdict, result.err)
					left--
				} else {
					retry = append(retry, result.index)
					hurry = hurry && x.pointed(&result)
				}
				if n == 0 {
					break
				}
				result = <-x.results
			}
			if len(retry) == 0 {
				continue
			}
			if now := r.g.members.epoch(); now != epoch {
				pauses.Reset() // what there was to wait for may have come
				epoch = now
			}
			delay := pauses.NextBackOff()
			if hurry && x.hurried < maxHurried {
				delay = time.Millisecond
				x.hurried++
			}
			go x.resume(ctx, retry, delay)
		}
	}
	return nil
}

// resume has references sent again after a pause, or as soon as gateways come or go: that is
// what those wait for whose sequencer has died.
func (x *exchange) resume(ctx context.Context, indexes []int, delay time.Duration) {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-x.r.g.members.watch():
	case <-ctx.Done():
		return
	}
	x.again <- indexes // there is room for it
}

// send hands references to those who sequence their partitions.
func (x *exchange) send(ctx context.Context, indexes []int) {
	own := x.r.g.ID()
	groups := make(map[metadata.GatewayID][]int)
	for _, i := range indexes {
		id := x.references[i].Partition
		if err := x.r.brokenOff(id); err != nil {
			// Its chain of numbers has a hole now: it would wait for ever.
			x.results <- indexed{index: i, to: own, referred: referred{err: err}}
			continue
		}
		to := x.r.route(id)
		groups[to] = append(groups[to], i)
	}
	for to, group := range groups {
		if to == own {
			x.sendHere(ctx, group)
		} else {
			go x.sendTo(ctx, to, group)
		}
	}
}

func (x *exchange) sendHere(ctx context.Context, group []int) {
	s := x.r.g.tenure.Load().sequencer
	tickets := make([]*ticket, len(group))
	for at, i := range group {
		tickets[at] = s.refer(x.references[i], ctx.Done(), func(v metadata.Verdict, err error) {
			x.results <- indexed{index: i, to: s.t.id, referred: referred{v, err}}
		})
	}
	s.submit(tickets...)
}

func (x *exchange) sendTo(ctx context.Context, to metadata.GatewayID, group []int) {
	references := make([]*metadata.Reference, len(group))
	for at, i := range group {
		references[at] = x.references[i]
	}
	results, err := x.r.g.peers.refer(ctx, to, references)
	for at, i := range group {
		result := indexed{index: i, to: to, referred: referred{err: err}}
		if err == nil {
			result.referred = results[at]
		}
		x.results <- result
	}
}

// settles says whether a result is the last word on its reference.
func (x *exchange) settles(result *indexed) bool {
	id := x.references[result.index].Partition
	// Nothing is allocated when there is no error: this is asked of every span.
	held, isHeld := errors.AsType[*elsewhere](result.err)
	_, isClosed := errors.AsType[*uploaderClosed](result.err)
	switch err := result.err; {
	case err == nil && result.verdict.Status == metadata.Waiting:
		return false
	case err == nil, errors.Is(err, metadata.ErrClosed), isClosed:
		if result.to != x.r.g.ID() {
			x.r.learn(id, result.to)
		}
		return true
	case errors.Is(err, errUnreachable): // also when what it said is garbage
		x.r.learn(id, "")
		x.doubt[result.index] = true
	case lasting(err):
		if x.r.brokenOff(id) == nil {
			x.r.g.log.Error("a partition cannot be sequenced: appends to it are refused until it is mended and the gateway starts again",
				"partition", id.String(), "error", err)
			x.r.breakOff(id, err)
		}
		return true
	case isHeld:
		x.r.learn(id, held.holder)
	case errors.Is(err, metadata.ErrFenced), errors.Is(err, metadata.ErrUnknown), errors.Is(err, errStopped), errors.Is(err, metadata.ErrBusy):
		x.doubt[result.index] = true // goes on in the next tenure, or with whoever takes over
	case !x.troubled:
		x.troubled = true // once is enough: a segment may be of thousands of partitions
		x.r.g.log.Warn("a partition cannot be sequenced yet; it is tried until it can", "partition", id.String(), "error", err)
	}
	return false
}

// pointed says that somebody else was named who may know better: no need to wait.
func (x *exchange) pointed(result *indexed) bool {
	var held *elsewhere
	return errors.As(result.err, &held) && held.holder != "" && held.holder != result.to
}

// decision is what can be decided about a partition, other than an append.
type decision struct {
	trim  *int64
	under *settings // of a trim by retention, or a swap that leaves records out
	close bool
	fence *fencing
	swap  *swapping
}

// settings is a version of a topic's row.
type settings struct {
	topic string
	stamp metadata.Stamp
}

// settingsTrusted is for how long settings count as the newest ones after they were read.
const settingsTrusted = time.Second

// altered says that a topic has, or may have, other settings than those that were decided by.
type altered struct{ message string }

func (e *altered) Error() string { return e.message }

// Unwrap makes it a lost race.
func (e *altered) Unwrap() error { return metadata.ErrConflict }

// stand says whether settings that something was decided by are still the topic's: *altered when they are not.
func (g *Gateway) stand(ctx context.Context, id metadata.TopicID, under *settings) error {
	t, err := g.topics.Refresh(ctx, under.topic)
	switch {
	case errors.Is(err, metadata.ErrTopicNotFound), err == nil && (t.ID != id || t.State != metadata.TopicActive || t.Stamp != under.stamp):
		return &altered{fmt.Sprintf("topic %q was altered meanwhile", under.topic)}
	}
	return err
}

// fencing sets the fencing token.
type fencing struct {
	token    string
	current  *string
	expected *int64
}

func (d decision) judge(p *metadata.Partition) (*metadata.Change, error) {
	switch {
	case d.trim != nil:
		return p.JudgeTrim(*d.trim)
	case d.fence != nil:
		return p.JudgeFence(d.fence.token, d.fence.current, d.fence.expected)
	case d.swap != nil:
		return d.swap.judge(p)
	}
	return p.JudgeClose(), nil
}

func (d decision) message(id metadata.PartitionID) *peerv1.DecideRequest {
	r := &peerv1.DecideRequest{Partition: partitionMessage(id)}
	switch {
	case d.trim != nil:
		r.Decision = &peerv1.DecideRequest_Trim{Trim: *d.trim}
	case d.fence != nil:
		r.Decision = &peerv1.DecideRequest_Fence{Fence: &peerv1.Fence{Token: d.fence.token, CurrentToken: d.fence.current, ExpectedOffset: d.fence.expected}}
	case d.swap != nil:
		r.Decision = &peerv1.DecideRequest_Swap{Swap: d.swap.Encode()}
	default:
		r.Decision = &peerv1.DecideRequest_Close{Close: true}
	}
	if u := d.under; u != nil {
		r.Under = &peerv1.Settings{Topic: u.topic, Epoch: u.stamp.Epoch, Sequence: u.stamp.Sequence}
	}
	return r
}

func decisionOf(id metadata.PartitionID, r *peerv1.DecideRequest) (decision, error) {
	var under *settings
	if u := r.GetUnder(); u != nil {
		under = &settings{u.GetTopic(), metadata.Stamp{Epoch: u.GetEpoch(), Sequence: u.GetSequence()}}
	}
	switch d := r.GetDecision().(type) {
	case *peerv1.DecideRequest_Trim:
		return decision{trim: &d.Trim, under: under}, nil
	case *peerv1.DecideRequest_Fence:
		return decision{fence: &fencing{d.Fence.GetToken(), d.Fence.CurrentToken, d.Fence.ExpectedOffset}}, nil
	case *peerv1.DecideRequest_Close:
		return decision{close: true}, nil
	case *peerv1.DecideRequest_Swap:
		w, err := metadata.DecodeSwap(id, d.Swap)
		return decision{swap: &swapping{Swap: w}, under: under}, err
	}
	return decision{}, fmt.Errorf("%w: a decision of unknown kind", metadata.ErrInvalid)
}

// decide has a decision taken by whoever sequences the partition, and returns what readers
// see after it. It is tried until ctx ends, so that a try may come late, when later decisions were taken: that
// does no harm to a trim or a close, and a fencing token is set in place of the one that was there.
func (r *router) decide(ctx context.Context, id metadata.PartitionID, d decision) (*metadata.View, error) {
	if d.fence != nil && d.fence.current == nil {
		return r.fence(ctx, id, *d.fence)
	}
	return r.decideUntil(ctx, id, d)
}

// fence sets a fencing token in place of whatever is there.
func (r *router) fence(ctx context.Context, id metadata.PartitionID, f fencing) (*metadata.View, error) {
	v, err := r.g.viewNow(ctx, id)
	if err != nil {
		return nil, err
	}
	for current := v.Fence; ; {
		v, err := r.decideUntil(ctx, id, decision{fence: &fencing{f.token, &current, f.expected}})
		var conflict *metadata.FenceConflict
		if !errors.As(err, &conflict) || conflict.Token == current {
			return v, err
		}
		current = conflict.Token // somebody was quicker
	}
}

// decideUntil asks until there is an answer.
func (r *router) decideUntil(ctx context.Context, id metadata.PartitionID, d decision) (*metadata.View, error) {
	pauses := metadata.DefaultBackOff()
	doubt := false // an earlier try may have taken effect
	for {
		v, again, err := r.decideOnce(ctx, id, d)
		switch {
		case err == nil:
			return v, nil
		case !errors.Is(err, metadata.ErrHeld):
			// Busy is also what another gateway says whose commit is in doubt.
			doubt = doubt || again || errors.Is(err, metadata.ErrUnknown)
		}
		if !again {
			return nil, inDoubt(doubt, err)
		}
		if pauseErr := pause(ctx, pauses); pauseErr != nil {
			return nil, inDoubt(doubt, fmt.Errorf("%w; last: %w", pauseErr, err))
		}
	}
}

// inDoubt is the error of a decision that may have been taken.
func inDoubt(doubt bool, err error) error {
	if !doubt {
		return err
	}
	// What the error is about is one try, and must not be taken for what came of all.
	return fmt.Errorf("%w: this try, or an earlier one, may have taken effect: %v", metadata.ErrUnknown, err)
}

// decideOnce asks once; again says whether there is any point in asking again.
func (r *router) decideOnce(ctx context.Context, id metadata.PartitionID, d decision) (v *metadata.View, again bool, err error) {
	to, own := r.route(id), r.g.ID()
	if to == own {
		v, err = r.g.tenure.Load().sequencer.decide(ctx, id, d)
	} else {
		v, err = r.g.peers.decide(ctx, to, id, d)
	}
	var held *elsewhere
	switch {
	case errors.As(err, &held):
		r.learn(id, held.holder)
	case errors.Is(err, errUnreachable):
		r.learn(id, "")
	case errors.Is(err, metadata.ErrFenced), errors.Is(err, metadata.ErrUnavailable), errors.Is(err, metadata.ErrBusy):
	default:
		return v, false, err
	}
	return v, true, err
}

// decide takes a decision here.
func (s *sequencer) decide(ctx context.Context, id metadata.PartitionID, d decision) (v *metadata.View, err error) {
	if d.swap != nil {
		if err := s.meets(ctx, d.swap.Uploader); err != nil {
			return nil, err
		}
	}
	read, other := time.Now(), false
	if d.under != nil {
		err := s.g.stand(ctx, id.Topic, d.under)
		// A swap is refused below: its number must be void, or nobody knows when an earlier try of it may still come.
		if other = errors.As(err, new(*altered)) && d.swap != nil; err != nil && !other {
			return nil, err
		}
	}
	err = s.ask(ctx, id, func(p *metadata.Partition) (*metadata.Change, error) {
		switch late := d.under != nil && time.Since(read) > settingsTrusted; {
		case d.swap != nil:
			d.swap.altered = other || late
		case late:
			return nil, &altered{fmt.Sprintf("topic %q may have been altered since it was read", d.under.topic)} // what asks looks again
		}
		if d.swap != nil && !s.g.members.takesFrom(d.swap.Uploader) && !seeded.Has(seeded.AcceptClosedUploader) {
			return nil, &uploaderClosed{d.swap.Uploader}
		}
		c, err := d.judge(p)
		if errors.Is(err, metadata.ErrClosed) && d.close {
			return nil, nil
		}
		return c, err
	})
	if err != nil && !(d.close && errors.Is(err, metadata.ErrClosed)) {
		return nil, err
	}
	if p := s.g.partitions.peek(id); p != nil {
		if v := p.view.Load(); v != nil {
			return v, nil
		}
	}
	return &metadata.View{Partition: id, Closed: true}, nil // it was closed, and is forgotten already
}
