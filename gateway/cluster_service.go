package gateway

import (
	"context"
	"errors"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

const (
	// dumpRead is how much of an object Dump has in memory, dumpPiece how much it sends
	// at once, in bytes.
	dumpRead  = 8 << 20
	dumpPiece = 1 << 20
)

// clusterService is the ClusterService of a gateway.
type clusterService struct{ g *Gateway }

// ListGateways lists the gateways' rows.
func (s *clusterService) ListGateways(ctx context.Context, _ *varvev1.ListGatewaysRequest) (*varvev1.ListGatewaysResponse, error) {
	list, err := metadata.ListGateways(ctx, s.g.table, metadata.Eventual, nil)
	if err != nil {
		return nil, err
	}
	out := &varvev1.ListGatewaysResponse{ClusterId: s.g.ClusterID()}
	for _, g := range list {
		out.Gateways = append(out.Gateways, &varvev1.Gateway{Id: string(g.ID), Address: g.Address, Zone: g.Zone, State: string(g.State),
			Beat: g.Beat, Floor: g.Floor, Version: g.Version, PeerAddress: g.Peer, Partitions: g.Partitions, BufferedRecords: g.Buffered, Role: roleText(g.Role)})
	}
	return out, nil
}

// roleText is a role as people are told it.
func roleText(role string) string {
	if role == metadata.RoleAll {
		return "all"
	}
	return role
}

// Dump streams the bytes of a segment of this cluster, and of nothing else.
func (s *clusterService) Dump(ctx context.Context, r *varvev1.DumpRequest, stream varvev1connect.ClusterServiceDumpServerStream) error {
	cluster, _, _, err := segments.ParseObjectKey(r.GetObject())
	if err != nil {
		return refuse(connect.CodeInvalidArgument, reasonInvalid, "%s", err)
	}
	if string(cluster) != s.g.ClusterID() {
		return refuse(connect.CodeInvalidArgument, reasonInvalid, "object %q is of another cluster than %s", r.GetObject(), s.g.ClusterID())
	}
	if r.GetLength() < 0 {
		return refuse(connect.CodeInvalidArgument, reasonInvalid, "length %d is negative; 0 is up to the end", r.GetLength())
	}
	d := &dump{store: s.g.store, key: r.GetObject(), stream: stream}
	err = d.send(ctx, r.GetOffset(), r.GetLength())
	if errors.Is(err, segments.ErrNotFound) {
		return refuse(connect.CodeNotFound, reasonObjectNotFound, "there is no object %q", r.GetObject()).withCause(err)
	}
	return err
}

// dump sends parts of an object.
type dump struct {
	store  segments.Store
	key    string
	stream varvev1connect.ClusterServiceDumpServerStream
	sent   bool // the first message, with the size
}

// send sends length bytes (0: up to the end) from offset (negative: from the end) on.
func (d *dump) send(ctx context.Context, offset, length int64) error {
	if length == 0 {
		length = -1
	}
	if offset < 0 {
		data, size, err := d.store.Get(ctx, d.key, max(offset, -dumpRead), 0)
		if err != nil {
			return err
		}
		if size-max(0, size+offset) == int64(len(data)) { // that was all of it
			if length > 0 {
				data = data[:min(length, int64(len(data)))]
			}
			return d.pieces(data, size)
		}
		offset = max(0, size+offset)
	}
	for {
		ask := int64(dumpRead)
		if length > 0 {
			ask = min(ask, length)
		}
		data, size, err := d.store.Get(ctx, d.key, offset, ask)
		if err != nil {
			return err
		}
		if err := d.pieces(data, size); err != nil {
			return err
		}
		offset += int64(len(data))
		if length > 0 {
			length -= int64(len(data))
		}
		if length == 0 || offset >= size || len(data) == 0 {
			return nil
		}
	}
}

// pieces sends data, and at least one message, which has the object's size.
func (d *dump) pieces(data []byte, size int64) error {
	for len(data) > 0 || !d.sent {
		n := min(len(data), dumpPiece)
		message := &varvev1.DumpResponse{Data: data[:n]}
		if !d.sent {
			message.ObjectSize = size
		}
		if err := d.stream.Send(message); err != nil {
			return err
		}
		d.sent, data = true, data[n:]
	}
	return nil
}

// Usage says what this gateway has used since its start.
func (s *clusterService) Usage(context.Context, *varvev1.UsageRequest) (*varvev1.UsageResponse, error) {
	return s.g.meters.Usage(), nil
}
