package client

import (
	"testing"
	"time"

	"connectrpc.com/connect/v2"
)

// Another server may do better than one that leaves, was fenced, is full or cannot be reached; what is wrong with a
// partition or a request is the same everywhere.
func TestWhatSpeaksAgainstAServer(t *testing.T) {
	for _, row := range []struct {
		code      connect.Code
		reason    string
		retriable bool
		want      bool
	}{
		{connect.CodeUnavailable, reasonDraining, true, true},
		{connect.CodeAborted, reasonGatewayFenced, true, true},
		{connect.CodeUnavailable, reasonGatewayFenced, true, true},
		{connect.CodeUnavailable, "STORE_UNAVAILABLE", true, true},
		{connect.CodeResourceExhausted, "BUFFER_FULL", true, true},
		{connect.CodeUnavailable, reasonHeld, true, false},
		{connect.CodeUnavailable, reasonBusy, true, false},
		{connect.CodeAborted, reasonOutOfOrder, true, false},
		{connect.CodeAborted, "LOST_RACE", true, false},
		{connect.CodeFailedPrecondition, reasonOffsetMismatch, false, false},
		{connect.CodeDataLoss, "DATA_LOSS", false, false},
	} {
		err := newError(row.code, "")
		err.Reason, err.Retriable, err.informed = row.reason, row.retriable, true
		if err.ofServer() != row.want {
			t.Errorf("%v %s: %v, want %v", row.code, row.reason, !row.want, row.want)
		}
	}
	lost := newError(connect.CodeUnknown, "connection reset")
	if lost.Retriable = true; !lost.ofServer() {
		t.Error("a broken connection speaks against a server")
	}
}

// threeServers are servers with endpoints that nobody calls.
func threeServers() *servers {
	s := &servers{skip: time.Hour, slow: time.Second}
	for _, name := range []string{"a", "b", "c"} {
		s.all = append(s.all, &endpoint{name: name})
	}
	s.start(time.Now())
	return s
}

func failure(reason string) *Error {
	err := newError(connect.CodeUnavailable, "")
	err.Reason, err.Retriable, err.informed = reason, true, true
	return err
}

func TestServersThatFailedAreSkipped(t *testing.T) {
	s := threeServers()
	first := s.pick(nil)
	for range 20 {
		if s.pick(nil) != first {
			t.Fatal("it moves without a reason")
		}
	}
	err := failure(reasonDraining)
	s.failed(first, err, time.Now())
	if !err.elsewhere {
		t.Error("others are there")
	}
	second := s.pick(nil)
	if second == first {
		t.Fatal("the server that failed is used again")
	}
	s.failed(second, failure(reasonDraining), time.Now())
	third := s.pick(nil)
	if third == first || third == second {
		t.Fatal("the servers that failed are used again")
	}
	err = failure(reasonDraining)
	s.failed(third, err, time.Now())
	if err.elsewhere {
		t.Error("all have failed")
	}
	s.succeeded(second)
	if s.pick(nil) != second {
		t.Error("the server that works is not used")
	}
}

// A partition that one server cannot reach is asked for elsewhere, and the server stays in use for others.
func TestServersAreAvoidedWithoutBlame(t *testing.T) {
	s := threeServers()
	first := s.pick(nil)
	err := failure(reasonHeld)
	s.failed(first, err, time.Now())
	if !err.elsewhere || s.pick(first) == first || s.pick(nil) != first {
		t.Error("want another one for this call, and the same one for others")
	}
}

// That a caller had little time says nothing of the server.
func TestShortPatience(t *testing.T) {
	s := threeServers()
	first := s.pick(nil)
	err := newError(connect.CodeDeadlineExceeded, "")
	err.Retriable = true
	s.failed(first, err, time.Now())
	if s.pick(nil) != first {
		t.Error("the server was given up")
	}
	s.failed(first, err, time.Now().Add(-2*time.Second))
	if s.pick(nil) == first {
		t.Error("the server was silent for long, and is used again")
	}
}
