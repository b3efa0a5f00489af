package clienttest

import (
	"context"

	"connectrpc.com/connect/v2"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// maxFencingToken is the longest token, in bytes.
const maxFencingToken = 36

// Fence implements the API, behind OnFence.
func (s *Server) Fence(_ context.Context, req *varvev1.FenceRequest) (*varvev1.FenceResponse, error) {
	if s.OnFence == nil {
		return s.fence(req)
	}
	req = proto.CloneOf(req) // As in Produce.
	return s.OnFence(req, func() (*varvev1.FenceResponse, error) { return s.fence(req) })
}

func (s *Server) fence(req *varvev1.FenceRequest) (*varvev1.FenceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.lookupPartition(req.GetTopic(), req.GetPartition())
	if err != nil {
		return nil, err
	}
	if n := len(req.GetToken()); n > maxFencingToken {
		return nil, fail(connect.CodeInvalidArgument, p.info("INVALID_REQUEST"), "a fencing token of %d bytes is longer than %d", n, maxFencingToken)
	}
	if req.GetToken() != p.token {
		if err := p.judgeOffset(req.ExpectedOffset); err != nil {
			return nil, err
		}
		if req.CurrentToken != nil && req.GetCurrentToken() != p.token {
			return nil, p.otherToken()
		}
		p.token = req.GetToken()
	}
	return &varvev1.FenceResponse{Token: p.token, NextOffset: p.end}, nil
}

// judgeOffset refuses what expects another next offset.
func (p *partition) judgeOffset(want *int64) error {
	if want == nil || *want == p.end {
		return nil
	}
	e, actual := p.info("OFFSET_MISMATCH"), p.end
	e.ExpectedOffset, e.ActualOffset = want, &actual
	return fail(connect.CodeFailedPrecondition, e, "expected offset %d, but the next is %d", *want, p.end)
}

// otherToken refuses what names a token that is not the partition's, which stays untold.
func (p *partition) otherToken() error {
	e, next := p.info("FENCING_TOKEN_MISMATCH"), p.end
	e.NextOffset = &next
	return fail(connect.CodeAborted, e, "the fencing token is another")
}
