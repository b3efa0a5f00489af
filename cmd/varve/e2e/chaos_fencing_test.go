package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments/batch"
)

// fence is a token that was set for certain.
type fence struct {
	token string
	next  int64 // offset of the next append when it was set, or when that was said again
}

// fencing takes the partition with a token of its own, appends with that until somebody else has taken it, and then
// takes it back.
func (s *storm) fencing(id int, r *rand.Rand) error {
	for round := 0; s.rests(r, time.Second); round++ {
		token := fmt.Sprintf("client-%d-%d", id, round)
		if !s.takeFence(r, token) {
			continue
		}
		var err error
		for s.rests(r, pauseAfter(err)) {
			op, values := s.begin(fenced, id, fencedPartition, 1+r.IntN(3))
			op.token = token
			request, failed := randomRequest(r, op.partition, values, batch.NoProducer)
			if failed != nil {
				return failed
			}
			request.FencingToken = &token
			var base int64
			base, err = s.send(s.fleet.pick(r), request)
			s.judged(op, outcomeOf(err), base, err)
			if op.beaten {
				break
			}
		}
	}
	return nil
}

// takeFence sets a token in place of the one that is there, and returns false if it did not come to that. Naming the
// one that is there keeps a late try from coming back.
func (s *storm) takeFence(r *rand.Rand, token string) bool {
	var current string
	err := s.untilAnswered(r, func(p *post) error {
		ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
		defer cancel()
		topics := varvev1connect.NewTopicServiceClient(connect.NewClient(connecthttp.NewTransport(s.http, p.url())))
		response, err := topics.DescribeTopic(ctx, &varvev1.DescribeTopicRequest{Name: topic})
		if err == nil {
			current = response.GetPartitions()[fencedPartition].GetFencingToken()
		}
		return err
	})
	if err != nil {
		s.fault("%v", err)
		return false
	}
	s.mu.Lock()
	guarded := len(s.fences) > 0 // from then on, for nobody takes a token away
	s.mu.Unlock()
	var next int64
	beaten := false
	err = s.untilAnswered(r, func(p *post) error {
		ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
		defer cancel()
		response, err := rawClient(s.http, p.url()).Fence(ctx, &varvev1.FenceRequest{
			Topic: topic, Partition: fencedPartition, Token: token, CurrentToken: &current,
		})
		if beaten = reasonOf(err) == "FENCING_TOKEN_MISMATCH"; beaten {
			return nil
		}
		next = response.GetNextOffset()
		return err
	})
	if err != nil {
		s.fault("%v", err)
	}
	if err != nil || beaten {
		return false
	}
	if current == "" && guarded {
		s.found.note(lostWrite, "token %q was set where there was none, after others had been", token)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fences = append(s.fences, fence{token, next})
	return true
}

// judgeFences looks at the log of the fenced partition: each token's records lie in one run, after the token was set
// and before the next one was.
func (s *storm) judgeFences(values []string) {
	fences := slices.Clone(s.fences)
	slices.SortStableFunc(fences, func(a, b fence) int { return int(a.next - b.next) })
	set := make(map[string]int64)
	for _, f := range fences {
		set[f.token] = f.next
	}
	over := make(map[string]bool)
	last := ""
	for offset, value := range values {
		var id, index int
		if _, err := fmt.Sscanf(value, "%d %d", &id, &index); err != nil || id >= len(s.operations) {
			continue // noted by others
		}
		token := s.operations[id].token
		if token != last {
			over[last] = true
			last = token
		}
		at := int64(offset)
		// The newest token that was set for certain below this offset.
		i, _ := slices.BinarySearchFunc(fences, at+1, func(f fence, next int64) int { return int(f.next - next) })
		switch since, known := set[token]; {
		case over[token]:
			s.found.note(fencedWrite, "offset %d has a record with token %q, which had ended before", offset, token)
		case !known || at < since:
			s.found.note(fencedWrite, "offset %d has a record with token %q, which was set at %d (%v)", offset, token, since, known)
		case i > 0 && fences[i-1].next > since:
			s.found.note(fencedWrite, "offset %d has a record with token %q, set at %d; %q was set at %d", offset, token, since, fences[i-1].token, fences[i-1].next)
		}
	}
}
