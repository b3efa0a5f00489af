// Package clienttest is a Varve in memory, for tests of programs that use package client.
//
//	server := clienttest.New()
//	c, err := client.New(client.Config{Transport: server.Transport()})
//
// It speaks the public API and judges appends as a gateway does: dense offsets, producer ids with the
// last five batches remembered, expected offsets and fencing tokens after duplicates. Peer makes more gateways of
// the same cluster. Hooks lose answers, refuse, delay, and let a gateway's reads lag. It keeps everything in memory,
// reads every record to answer a question about time, and leaves out what has no meaning in one process: leases,
// segments, retention by time.
package clienttest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/connect/v2/connectinprocess"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// Server is a gateway of a cluster in memory. Set its fields before the first call.
type Server struct {
	varvev1connect.UnimplementedClusterServiceHandler
	*cluster
	number int // from 1

	// AutoCreate is how many partitions a topic gets that the first append makes; 0: none are made.
	AutoCreate int32
	// OnCall, if set, is asked before each call and each stream, by the procedure's name. An error is the answer.
	OnCall func(ctx context.Context, procedure string) error
	// OnProduce, if set, stands before each append. It may refuse it, apply it and lose the answer,
	// apply it later, or just delay it; apply may be called once, from any goroutine.
	OnProduce func(req *varvev1.ProduceRequest, apply func() (*varvev1.ProduceResponse, error)) (*varvev1.ProduceResponse, error)
	// OnFence is OnProduce for fencing tokens.
	OnFence func(req *varvev1.FenceRequest, apply func() (*varvev1.FenceResponse, error)) (*varvev1.FenceResponse, error)
	// OnConsume, if set, is called before each message of a stream. An error breaks the stream.
	OnConsume func(*varvev1.ConsumeResponse) error
	// Lag, if set, says how many records a read is behind, as of a gateway that heard late of the newest
	// commits. Linearizable reads are not, and no read is behind what its request says that the reader has seen.
	Lag func() int64
	// IgnoreSeen breaks the last promise.
	IgnoreSeen bool
}

// cluster is what its gateways share.
type cluster struct {
	mu        sync.Mutex
	topics    map[string]*topic
	producers int64
	objects   map[string][]byte
	gateways  int
	// changed is closed and replaced by each append.
	changed chan struct{}
}

// New returns a server without topics, which makes a topic with one partition at its first append.
func New() *Server {
	return &Server{AutoCreate: 1, number: 1, cluster: &cluster{
		topics:   make(map[string]*topic),
		objects:  make(map[string][]byte),
		gateways: 1,
		changed:  make(chan struct{}),
	}}
}

// Peer returns another gateway of the same cluster: the same topics and producer ids, hooks of its own.
func (s *Server) Peer() *Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gateways++
	return &Server{AutoCreate: s.AutoCreate, number: s.gateways, cluster: s.cluster}
}

func (s *Server) connectServer() *connect.Server {
	server := connect.NewServer(func(next connect.ServerFunc) connect.ServerFunc {
		return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) error {
			if s.OnCall != nil {
				if err := s.OnCall(ctx, spec.Procedure); err != nil {
					return err
				}
			}
			return next(ctx, spec, stream)
		}
	})
	varvev1connect.RegisterLogServiceHandler(server, s)
	varvev1connect.RegisterTopicServiceHandler(server, s)
	varvev1connect.RegisterClusterServiceHandler(server, s)
	return server
}

// Transport reaches the server within the process.
func (s *Server) Transport() connect.Transport { return connectinprocess.New(s.connectServer()) }

// Handler serves the same over HTTP.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	connecthttp.Mount(mux, s.connectServer(), connecthttp.WithCompressors(), connecthttp.WithReadMaxBytes(64<<20))
	return mux
}

// PutObject makes bytes that Dump reads.
func (s *Server) PutObject(key string, data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[key] = data
}

// topic is what the server keeps of one.
type topic struct {
	meta       *varvev1.Topic
	partitions []*partition
}

func (s *Server) lookup(name string) (*topic, error) {
	if t := s.topics[name]; t != nil {
		return t, nil
	}
	return nil, fail(connect.CodeNotFound, &varvev1.ErrorInfo{Reason: "TOPIC_NOT_FOUND", Topic: name}, "topic %q does not exist", name)
}

func (s *Server) lookupPartition(name string, n int32) (*partition, error) {
	t, err := s.lookup(name)
	if err != nil {
		return nil, err
	}
	if n < 0 || int(n) >= len(t.partitions) {
		return nil, fail(connect.CodeInvalidArgument, &varvev1.ErrorInfo{Reason: "PARTITION_NOT_FOUND", Topic: name, Partition: &n},
			"the topic has %d partitions", len(t.partitions))
	}
	return t.partitions[n], nil
}

func (s *Server) create(name string, partitions int32, config map[string]string) *topic {
	t := &topic{meta: &varvev1.Topic{
		Name: name, Id: strings.Repeat("0", 32), State: "active", Config: config, CreatedAt: time.Now().UnixMilli(),
	}}
	t.grow(max(partitions, 1))
	s.topics[name] = t
	return t
}

func (t *topic) grow(n int32) {
	for i := int32(len(t.partitions)); i < n; i++ {
		t.partitions = append(t.partitions, &partition{topic: t.meta.GetName(), number: i, producers: make(map[int64]*producerState)})
	}
	t.meta.Partitions = n
}

// CreateTopic implements the API.
func (s *Server) CreateTopic(_ context.Context, req *varvev1.CreateTopicRequest) (*varvev1.CreateTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[req.GetName()]; t != nil {
		if !req.GetIfNotExists() {
			return nil, fail(connect.CodeAlreadyExists, nil, "topic %q exists", req.GetName())
		}
		return &varvev1.CreateTopicResponse{Topic: proto.CloneOf(t.meta)}, nil
	}
	if req.GetName() == "" || req.GetPartitions() < 0 {
		return nil, fail(connect.CodeInvalidArgument, nil, "a topic needs a name and a count of partitions that is not negative")
	}
	t := s.create(req.GetName(), req.GetPartitions(), req.GetConfig())
	return &varvev1.CreateTopicResponse{Topic: proto.CloneOf(t.meta), Created: true}, nil
}

// ListTopics implements the API, with the last name as the page token.
func (s *Server) ListTopics(_ context.Context, req *varvev1.ListTopicsRequest) (*varvev1.ListTopicsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := int(req.GetPageSize())
	if size == 0 {
		size = 1000
	}
	res := &varvev1.ListTopicsResponse{}
	var names []string
	for name := range s.topics {
		if strings.HasPrefix(name, req.GetPrefix()) && name > req.GetPageToken() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if len(res.Topics) == size {
			res.NextPageToken = res.Topics[size-1].GetName()
			break
		}
		res.Topics = append(res.Topics, proto.CloneOf(s.topics[name].meta))
	}
	return res, nil
}

// DescribeTopic implements the API.
func (s *Server) DescribeTopic(_ context.Context, req *varvev1.DescribeTopicRequest) (*varvev1.DescribeTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.lookup(req.GetName())
	if err != nil {
		return nil, err
	}
	res := &varvev1.DescribeTopicResponse{Topic: proto.CloneOf(t.meta)}
	for name, value := range t.meta.GetConfig() {
		res.Config = append(res.Config, &varvev1.ConfigEntry{Name: name, Value: value})
	}
	for _, p := range t.partitions {
		info := &varvev1.PartitionInfo{
			Partition: p.number, StartOffset: p.start, EndOffset: p.end, MaxTimestamp: -1, FencingToken: p.token,
		}
		for _, b := range p.batches {
			info.Bytes += int64(len(b.data))
			info.MaxTimestamp = max(info.MaxTimestamp, b.info.MaxTimestamp)
		}
		res.Partitions = append(res.Partitions, info)
	}
	return res, nil
}

// AlterTopic implements the API.
func (s *Server) AlterTopic(_ context.Context, req *varvev1.AlterTopicRequest) (*varvev1.AlterTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, err := s.lookup(req.GetName())
	if err != nil {
		return nil, err
	}
	if n := req.GetPartitions(); n != 0 {
		if int(n) < len(t.partitions) {
			return nil, fail(connect.CodeInvalidArgument, nil, "partitions can only grow")
		}
		t.grow(n)
	}
	config := make(map[string]string)
	for k, v := range t.meta.GetConfig() {
		config[k] = v
	}
	for k, v := range req.GetSet() {
		config[k] = v
	}
	for _, k := range req.GetUnset() {
		delete(config, k)
	}
	t.meta.Config = config
	return &varvev1.AlterTopicResponse{Topic: proto.CloneOf(t.meta)}, nil
}

// DeleteTopic implements the API.
func (s *Server) DeleteTopic(_ context.Context, req *varvev1.DeleteTopicRequest) (*varvev1.DeleteTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.lookup(req.GetName()); err != nil && !req.GetIfExists() {
		return nil, err
	}
	delete(s.topics, req.GetName())
	s.wake()
	return &varvev1.DeleteTopicResponse{}, nil
}

// TrimTopic implements the API, within batches too.
func (s *Server) TrimTopic(_ context.Context, req *varvev1.TrimTopicRequest) (*varvev1.TrimTopicResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	partitions, err := s.selected(req.GetName(), req.GetPartitions())
	if err != nil {
		return nil, err
	}
	res := &varvev1.TrimTopicResponse{}
	for _, p := range partitions {
		to := p.end
		switch at := req.GetTo().GetAt().(type) {
		case *varvev1.TrimPlace_Offset:
			to = at.Offset
		case *varvev1.TrimPlace_BeforeEnd:
			to = p.end - at.BeforeEnd
		case *varvev1.TrimPlace_Time:
			if found, _, ok := p.atOrAfter(at.Time); ok {
				to = found
			}
		}
		if to > p.end {
			return nil, p.outOfRange(to)
		}
		p.start = max(p.start, to)
		p.batches = slices.DeleteFunc(p.batches, func(b storedBatch) bool { return b.info.EndOffset() <= p.start })
		res.Results = append(res.Results, &varvev1.TrimResult{Partition: p.number, StartOffset: p.start, EndOffset: p.end})
	}
	return res, nil
}

// ListSegments implements the API: nothing lies in segments here.
func (s *Server) ListSegments(_ context.Context, req *varvev1.ListSegmentsRequest) (*varvev1.ListSegmentsResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.lookupPartition(req.GetName(), req.GetPartition())
	if err != nil {
		return nil, err
	}
	return &varvev1.ListSegmentsResponse{NextOffset: p.end}, nil
}

// ListGateways implements the API.
func (s *Server) ListGateways(context.Context, *varvev1.ListGatewaysRequest) (*varvev1.ListGatewaysResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	res := &varvev1.ListGatewaysResponse{ClusterId: "in-memory"}
	for n := range s.gateways {
		res.Gateways = append(res.Gateways, &varvev1.Gateway{Id: fmt.Sprintf("gateway-%d", n+1), State: "live"})
	}
	return res, nil
}

// Dump implements the API for what PutObject made.
func (s *Server) Dump(_ context.Context, req *varvev1.DumpRequest, stream varvev1connect.ClusterServiceDumpServerStream) error {
	s.mu.Lock()
	data, ok := s.objects[req.GetObject()]
	s.mu.Unlock()
	if !ok {
		return fail(connect.CodeNotFound, &varvev1.ErrorInfo{Reason: "OBJECT_NOT_FOUND"}, "no object %q", req.GetObject())
	}
	size := int64(len(data))
	from := req.GetOffset()
	if from < 0 {
		from = max(0, size+from)
	}
	from = min(from, size)
	data = data[from:]
	if n := req.GetLength(); n > 0 && n < int64(len(data)) {
		data = data[:n]
	}
	const piece = 1 << 10
	for first := true; first || len(data) > 0; first = false {
		n := min(piece, len(data))
		res := &varvev1.DumpResponse{Data: data[:n]}
		if first {
			res.ObjectSize = size
		}
		if err := stream.Send(res); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}

// Usage implements the API.
func (s *Server) Usage(context.Context, *varvev1.UsageRequest) (*varvev1.UsageResponse, error) {
	return &varvev1.UsageResponse{}, nil
}

func (s *Server) selected(name string, numbers []int32) ([]*partition, error) {
	t, err := s.lookup(name)
	if err != nil || len(numbers) == 0 {
		return t.all(), err
	}
	var out []*partition
	for _, n := range numbers {
		p, err := s.lookupPartition(name, n)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (t *topic) all() []*partition {
	if t == nil {
		return nil
	}
	return t.partitions
}

// wake tells followers to look again.
func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}
