package client

import (
	"context"
	"errors"
	"io"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// Gateway is a process that serves the API.
type Gateway struct {
	ID, Address, Zone string
	// State is live, draining, sealed or closed.
	State string
	Beat  uint64
	// Floor is the lowest segment number that is not settled.
	Floor   uint64
	Version string
	// PeerAddress is where other gateways reach it; empty when it serves alone.
	PeerAddress string
	// Partitions that it sequences, and BufferedRecords that it acked as buffered and that were not committed, as
	// of its last beat.
	Partitions, BufferedRecords uint64
	// Role is all, gateway (it merges nothing) or compactor (it merges, sequences nothing and takes no appends).
	Role string
}

// Gateways lists the cluster's gateways and names the cluster.
func (c *Client) Gateways(ctx context.Context) (clusterID string, gateways []Gateway, err error) {
	res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.ListGatewaysResponse, error) {
		return e.cluster.ListGateways(ctx, &varvev1.ListGatewaysRequest{})
	})
	if err != nil {
		return "", nil, err
	}
	for _, g := range res.GetGateways() {
		gateways = append(gateways, Gateway{
			ID: g.GetId(), Address: g.GetAddress(), Zone: g.GetZone(), State: g.GetState(),
			Beat: g.GetBeat(), Floor: g.GetFloor(), Version: g.GetVersion(),
			PeerAddress: g.GetPeerAddress(), Partitions: g.GetPartitions(), BufferedRecords: g.GetBufferedRecords(), Role: g.GetRole(),
		})
	}
	return res.GetClusterId(), gateways, nil
}

// Usage is what the answering gateway has used since its start. Benchmarks subtract two of them.
func (c *Client) Usage(ctx context.Context) (*varvev1.UsageResponse, error) {
	return call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.UsageResponse, error) {
		return e.cluster.Usage(ctx, &varvev1.UsageRequest{})
	})
}

// CostOptions says whose costs to tell.
type CostOptions struct {
	// Topic: of this one only. Empty: of all, and of the cluster.
	Topic string
	// All: say what is stored also where that takes reads of more than 10,000 partitions.
	All bool
}

// Cost tells what topics have used of what a cloud bills, by the counters of all gateways that live. Those of gateways
// that have stopped are gone; one that does not answer is named.
func (c *Client) Cost(ctx context.Context, opts CostOptions) (*varvev1.CostResponse, error) {
	return call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.CostResponse, error) {
		return e.cluster.Cost(ctx, &varvev1.CostRequest{Topic: opts.Topic, All: opts.All})
	})
}

// Dump reads a segment object, named as Segments names it, from offset on (negative: from its end),
// length bytes (0: to its end). The reader must be closed. ErrObjectNotFound: there is no such object. It does not reconnect: a connection that
// breaks is an error from Read.
func (c *Client) Dump(ctx context.Context, object string, offset, length int64) (*ObjectReader, error) {
	ctx, cancel := context.WithCancel(ctx)
	r := &ObjectReader{cancel: cancel}
	req := &varvev1.DumpRequest{Object: object, Offset: offset, Length: length}
	// The first response tells whether the object is there, and its size.
	_, err := callStream(ctx, c, func(ctx context.Context, e *endpoint) (struct{}, error) {
		stream, err := e.cluster.Dump(ctx, req)
		if err != nil {
			return struct{}{}, err
		}
		first, err := stream.Receive()
		if err != nil && !errors.Is(err, io.EOF) {
			return struct{}{}, errors.Join(err, stream.Close())
		}
		r.stream, r.data, r.size = stream, first.GetData(), first.GetObjectSize()
		return struct{}{}, nil
	})
	if err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

// ObjectReader reads the bytes of an object.
type ObjectReader struct {
	stream varvev1connect.ClusterServiceDumpClientStream
	cancel context.CancelFunc
	data   []byte
	size   int64
	err    error
}

// Size is the size of the whole object in bytes, however much of it was asked for.
func (r *ObjectReader) Size() int64 { return r.size }

// Read implements io.Reader.
func (r *ObjectReader) Read(p []byte) (int, error) {
	for len(r.data) == 0 && r.err == nil && len(p) > 0 {
		msg, err := r.stream.Receive()
		switch {
		case errors.Is(err, io.EOF):
			r.err = io.EOF
		case err != nil:
			r.err = errorOf(err)
		default:
			r.data = msg.GetData()
		}
	}
	if len(r.data) == 0 {
		return 0, r.err
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

// Close ends the transfer. It is safe to call twice.
func (r *ObjectReader) Close() error {
	r.cancel()
	return r.stream.Close()
}
