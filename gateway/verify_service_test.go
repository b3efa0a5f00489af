package gateway

import (
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

func TestVerify(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	cluster := varvev1connect.NewClusterServiceClient(protocols(t, g.url)["connect"])
	g.create(t, "a", 2, nil)
	g.produce(t, "a", 1, batch.Record{Timestamp: 1, Value: []byte("x")})
	foreign := g.ClusterID() + "/notes.txt"
	if err := g.store.Put(t.Context(), foreign, segments.NewBody([]byte("x"))); err != nil {
		t.Fatal(err)
	}
	gone := segments.ObjectKey(segments.ClusterID(g.ClusterID()), segments.GatewayID(g.ID()), 1)
	if err := g.store.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	stream, err := cluster.Verify(t.Context(), &varvev1.VerifyRequest{Deep: true, GraceSeconds: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	one := int32(1)
	for _, want := range []*varvev1.VerifyResponse{
		{Finding: &varvev1.VerifyFinding{Kind: "OBJECT_MISSING", Break: true, Topic: "a", Partition: &one, Object: gone, Message: "offsets 0 to 0: the object is not there"}},
		{Finding: &varvev1.VerifyFinding{Kind: "FOREIGN_OBJECT", Object: foreign, Message: "no gateway writes such a key"}},
		{Summary: &varvev1.VerifySummary{ClusterId: g.ClusterID(), Topics: 1, Partitions: 1, Entries: 1, Records: 1, Journals: 1, Breaks: 1, Garbage: 1}},
	} {
		got, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	cluster := varvev1connect.NewClusterServiceClient(protocols(t, g.url)["connect"])
	for _, seconds := range []int64{-1, maxGraceSeconds + 1} {
		stream, err := cluster.Verify(t.Context(), &varvev1.VerifyRequest{GraceSeconds: seconds})
		if err == nil {
			_, err = stream.Receive()
			stream.Close()
		}
		wantError(t, err, connect.CodeInvalidArgument, reasonInvalid)
	}
}
