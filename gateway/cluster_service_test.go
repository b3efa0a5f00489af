package gateway

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/segments"
)

func tryDump(t *testing.T, cluster varvev1connect.ClusterServiceClient, r *varvev1.DumpRequest) (data []byte, size int64, err error) {
	t.Helper()
	stream, err := cluster.Dump(t.Context(), r)
	if err != nil {
		return nil, 0, err
	}
	defer stream.Close()
	for first := true; ; first = false {
		piece, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return data, size, nil
		}
		if err != nil {
			return nil, 0, err
		}
		if len(piece.GetData()) > dumpPiece {
			t.Errorf("a piece of %d bytes", len(piece.GetData()))
		}
		if first {
			size = piece.GetObjectSize()
		}
		data = append(data, piece.GetData()...)
	}
}

func TestDumpOfALargeObject(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	cluster := varvev1connect.NewClusterServiceClient(protocols(t, g.url)["connect"])
	object := make([]byte, 2*dumpRead+12345)
	for i := range object {
		object[i] = byte(i>>16) ^ byte(i)
	}
	key := segments.ObjectKey(segments.ClusterID(g.ClusterID()), "g1", 7)
	if err := g.store.Put(t.Context(), key, segments.NewBody(object)); err != nil {
		t.Fatal(err)
	}
	size := int64(len(object))
	for _, c := range []struct {
		offset, length int64 // asked for
		from, to       int64 // expected
	}{
		{0, 0, 0, size}, {5, 0, 5, size}, {5, 10, 5, 15}, {size - 3, 10, size - 3, size}, {size, 0, size, size}, {size + 9, 4, size, size},
		{-3, 0, size - 3, size}, {-10, 4, size - 10, size - 6}, {-dumpRead, 0, size - dumpRead, size},
		{-dumpRead - 5, 0, size - dumpRead - 5, size}, {-dumpRead - 5, 7, size - dumpRead - 5, size - dumpRead + 2},
		{-2 * size, 0, 0, size}, {dumpRead - 1, dumpRead + 2, dumpRead - 1, 2*dumpRead + 1},
	} {
		data, told, err := tryDump(t, cluster, &varvev1.DumpRequest{Object: key, Offset: c.offset, Length: c.length})
		if err != nil || told != size || !bytes.Equal(data, object[c.from:c.to]) {
			t.Errorf("%d bytes from %d: got %d bytes of an object of %d, %v", c.length, c.offset, len(data), told, err)
		}
	}
}

func TestDumpRefuses(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	cluster := varvev1connect.NewClusterServiceClient(protocols(t, g.url)["connect"])
	own := segments.ObjectKey(segments.ClusterID(g.ClusterID()), "g1", 1)
	for _, c := range []struct {
		r      *varvev1.DumpRequest
		code   connect.Code
		reason string
	}{
		{&varvev1.DumpRequest{Object: own}, connect.CodeNotFound, reasonObjectNotFound},
		{&varvev1.DumpRequest{Object: own, Length: -1}, connect.CodeInvalidArgument, reasonInvalid},
		{&varvev1.DumpRequest{Object: segments.ObjectKey("other", "g1", 1)}, connect.CodeInvalidArgument, reasonInvalid},
		{&varvev1.DumpRequest{Object: g.generation.prefix() + strings.Repeat("0", 19) + "1"}, connect.CodeInvalidArgument, reasonInvalid},
		{&varvev1.DumpRequest{Object: "../../etc/passwd"}, connect.CodeInvalidArgument, reasonInvalid},
		{&varvev1.DumpRequest{}, connect.CodeInvalidArgument, reasonInvalid},
	} {
		_, _, err := tryDump(t, cluster, c.r)
		wantError(t, err, c.code, c.reason)
	}
}

func TestListGatewaysAndUsage(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true, Address: "127.0.0.1:1", Zone: "z", Version: "v"})
	cluster := varvev1connect.NewClusterServiceClient(protocols(t, g.url)["connect json"])
	list, err := cluster.ListGateways(t.Context(), &varvev1.ListGatewaysRequest{})
	if err != nil || len(list.GetGateways()) != 1 || list.GetClusterId() != g.ClusterID() {
		t.Fatalf("%v, %v", list, err)
	}
	if got := list.GetGateways()[0]; got.GetId() != string(g.ID()) || got.GetState() != "live" || got.GetZone() != "z" || got.GetVersion() != "v" || got.GetAddress() != "127.0.0.1:1" {
		t.Errorf("%v", got)
	}
	g.create(t, "a", 1, nil)
	before, err := cluster.Usage(t.Context(), &varvev1.UsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	g.fill(t, "a", 3)
	after, err := cluster.Usage(t.Context(), &varvev1.UsageRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if puts, commits := after.GetObjectPuts()-before.GetObjectPuts(), after.GetCommitWrites()-before.GetCommitWrites(); puts != 3 || commits != 3 {
		t.Errorf("three appends, one after the other, made %d puts and %d commits", puts, commits)
	}
	if after.GetAppendedRecords() != 3 || after.GetFlushes() != 3 || after.GetCpuSeconds() <= 0 || after.GetResidentBytes() < 1<<20 ||
		after.GetPeakResidentBytes() < after.GetResidentBytes() || after.GetHeapBytes() == 0 {
		t.Errorf("%v", after)
	}
}
