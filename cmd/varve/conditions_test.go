package main

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

// newMemoryShell runs command lines against a cluster in memory, whose answers tests can spoil.
func newMemoryShell(t *testing.T, server *clienttest.Server) *testShell {
	t.Helper()
	s := httptest.NewServer(server.Handler())
	t.Cleanup(s.Close)
	return &testShell{t: t, url: s.URL, env: map[string]string{"VARVE_SERVER": s.URL}}
}

// fails runs a command line that must fail and say why.
func (s *testShell) fails(stdin, want string, args ...string) {
	s.t.Helper()
	if r := s.run(stdin, args...); r.status != statusFailed || !strings.Contains(r.stderr, want) {
		s.t.Errorf("varve %s: status %d, %q, want %q", strings.Join(args, " "), r.status, r.stderr, want)
	}
}

// Each batch expects to begin where the one before it ended.
func TestProduceExpectsOffsets(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "2")
	s.ok("a\n", "produce", "t", "-p", "1")
	// A line is nearly a batch.
	lines := strings.Repeat(strings.Repeat("x", 700<<10)+"\n", 4)
	want := ""
	for i := 1; i < 5; i++ {
		want += fmt.Sprintf(`{"topic":"t","partition":1,"base_offset":%d,"last_offset":%[1]d,"acks":"committed"}`+"\n", i)
	}
	if got := s.ok(lines, "produce", "t", "-p", "1", "--expected-offset", "1", "-o", "json"); got != want {
		t.Errorf("got %swant %s", got, want)
	}
	s.fails("b\n", "t/1: ", "produce", "t", "-p", "1", "--expected-offset", "4")
	s.fails("b\n", "t/0: ", "produce", "t", "-p", "0", "--expected-offset", "5")
	if got := s.ok("", "offsets", "t"); got != "t:0:0\nt:1:5\n" {
		t.Errorf("%q", got)
	}
}

// Another writer between two batches ends it, and nothing comes after him.
func TestProduceExpectsToBeAlone(t *testing.T) {
	server := clienttest.New()
	s := newMemoryShell(t, server)
	s.ok("", "topic", "create", "t")
	other := false
	server.OnProduce = func(req *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error) {
		res, err := apply()
		if !other && req.ExpectedOffset != nil {
			other = true
			s.ok("other\n", "produce", "t")
		}
		return res, err
	}
	lines := strings.Repeat(strings.Repeat("x", 700<<10)+"\n", 3)
	s.fails(lines, "expected offset 1, but the next is 2", "produce", "t", "-p", "0", "--expected-offset", "0")
	if got := s.ok("", "cat", "t", "-f", `%o %S\n`); got != "0 716800\n1 5\n" {
		t.Errorf("%q", got)
	}
}

func TestFence(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "2")
	s.ok("a\nb\n", "produce", "t", "-p", "1")
	if got := s.ok("", "topic", "fence", "t", "-p", "1", "one"); got != "t:1:one 2\n" {
		t.Errorf("%q", got)
	}
	if got, want := s.ok("", "topic", "fence", "t", "two", "-p", "1", "--current", "one", "--expected-offset", "2", "-o", "json"),
		`{"topic":"t","partition":1,"fencing_token":"two","next_offset":2}`+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	s.fails("", "'varve topic describe' shows it", "topic", "fence", "t", "three", "-p", "1", "--current", "")
	s.fails("", "t/1: expected offset 1, but the next", "topic", "fence", "t", "three", "-p", "1", "--expected-offset", "1")
	s.fails("", "varve topic list", "topic", "fence", "absent", "x", "-p", "0")
	s.fails("", "partitions count from 0", "topic", "fence", "t", "x", "-p", "2")
	s.fails("c\n", "was not acknowledged: t/1: ", "produce", "t", "-p", "1", "--fencing-token", "one")
	s.fails("c\n", "was not acknowledged: t/0: ", "produce", "t", "-p", "0", "--fencing-token", "two")
	s.ok("c\n", "produce", "t", "-p", "1", "--fencing-token", "two")
	s.ok("d\n", "produce", "t", "-p", "1") // Without a token nobody is held back.
	s.ok("e\n", "produce", "t", "-p", "0", "--fencing-token", "")
	if got := s.ok("", "offsets", "t"); got != "t:0:1\nt:1:4\n" {
		t.Errorf("%q", got)
	}
	if got := s.ok("", "topic", "describe", "t"); !strings.Contains(got, " TOKEN ") || !strings.Contains(got, " two ") {
		t.Errorf("no token in\n%s", got)
	}
	if got := s.ok("", "topic", "describe", "t", "-o", "json"); !strings.Contains(got, `"fencing_token":"two"`) || !strings.Contains(got, `"fencing_token":""`) {
		t.Errorf("no token in %s", got)
	}
}

// An answer that never comes: the token may have been set.
func TestFenceInDoubt(t *testing.T) {
	server := clienttest.New()
	s := newMemoryShell(t, server)
	s.ok("", "topic", "create", "t", "--partitions", "2")
	server.OnFence = func(_ *varvev1.FenceRequest, apply func() (*varvev1.FenceResponse, error)) (*varvev1.FenceResponse, error) {
		if _, err := apply(); err != nil {
			return nil, err
		}
		return nil, clienttest.Refusal(true)
	}
	s.fails("", "set it again to know", "topic", "fence", "t", "three", "-p", "1", "--timeout", "100ms")
	if got := s.ok("", "topic", "describe", "t"); !strings.Contains(got, " three ") {
		t.Errorf("no token in\n%s", got)
	}
}

func TestLinearizableOffsets(t *testing.T) {
	server := clienttest.New()
	s := newMemoryShell(t, server)
	s.ok("a\n", "produce", "t")
	s.ok("b\n", "produce", "t")
	server.Lag = func() int64 { return 1 }
	if got := s.ok("", "offsets", "t"); got != "t:0:1\n" {
		t.Errorf("%q", got)
	}
	if got := s.ok("", "offsets", "t", "--linearizable"); got != "t:0:2\n" {
		t.Errorf("%q", got)
	}
	for args, want := range map[string]string{"": `"linearizable":false}`, "--linearizable": `"linearizable":true}`} {
		if got := s.ok("", append([]string{"offsets", "t", "-o", "json"}, strings.Fields(args)...)...); !strings.HasSuffix(got, want+"\n") {
			t.Errorf("%s: %q", args, got)
		}
	}
}

func TestGateways(t *testing.T) {
	server := clienttest.New()
	server.Peer()
	s := newMemoryShell(t, server)
	want := "GATEWAY    ADDRESS  PEER ADDRESS  ZONE  ROLE  STATE  PARTITIONS  BUFFERED  BEAT  VERSION\n" +
		"gateway-1  -        -             -     -     live   0           0         0     -\n" +
		"gateway-2  -        -             -     -     live   0           0         0     -\n"
	if got := s.ok("", "gateways"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	line := `{"cluster_id":"in-memory","id":"gateway-2","address":"","peer_address":"","zone":"","state":"live","version":"",` +
		`"partitions":0,"buffered_records":0,"beat":0,"floor":0,"role":""}` + "\n"
	if got := s.ok("", "gateways", "-o", "json"); !strings.HasSuffix(got, line) {
		t.Errorf("%s", got)
	}
	for state, want := range map[string]string{"live": "7", "draining": "7", "sealed": "-", "closed": "-"} {
		if got := whileServing(client.Gateway{State: state}, 7); got != want {
			t.Errorf("a number of a gateway that is %s: %s, want %s", state, got, want)
		}
	}
}
