package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// transferService takes and gives batches without a log, to measure the transport.
type transferService struct {
	varvev1connect.UnimplementedLogServiceHandler
	data     []byte
	messages int
}

func (*transferService) Produce(_ context.Context, r *varvev1.ProduceRequest) (*varvev1.ProduceResponse, error) {
	return &varvev1.ProduceResponse{Results: []*varvev1.ProduceResult{{RecordCount: int32(len(r.GetRecordBatch()))}}}, nil
}

func (s *transferService) Consume(_ context.Context, _ *varvev1.ConsumeRequest, stream varvev1connect.LogServiceConsumeServerStream) error {
	for i := range s.messages {
		if err := stream.Send(&varvev1.ConsumeResponse{RecordBatches: s.data, NextOffset: int64(i), HighWatermark: 1 << 40}); err != nil {
			return err
		}
	}
	return nil
}

func transferServer(b *testing.B, s *transferService) string {
	server := connect.NewServer()
	varvev1connect.RegisterLogServiceHandler(server, s)
	mux := http.NewServeMux()
	connecthttp.Mount(mux, server, transportOptions(16<<20, nil)...)
	h := httptest.NewServer(limitRequest(mux, 16<<20, bodyTime))
	b.Cleanup(h.Close)
	return h.URL
}

// BenchmarkProduceTransport sends batches of 1 MiB over HTTP/1.1, from a client that does
// nothing but send.
func BenchmarkProduceTransport(b *testing.B) {
	data := make([]byte, 1<<20)
	rand.Read(data)
	body, err := proto.Marshal(&varvev1.ProduceRequest{Topic: "t", Partition: new(int32), RecordBatch: data})
	if err != nil {
		b.Fatal(err)
	}
	url := transferServer(b, &transferService{}) + varvev1connect.LogServiceProduceProcedure
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		response, err := http.Post(url, "application/proto", bytes.NewReader(body))
		if err != nil || response.StatusCode != http.StatusOK {
			b.Fatal(response, err)
		}
		response.Body.Close()
	}
}

// BenchmarkConsumeTransport streams messages of 1 MiB over HTTP/1.1, to a client that
// does nothing but receive.
func BenchmarkConsumeTransport(b *testing.B) {
	s := &transferService{data: make([]byte, 1<<20), messages: 64}
	rand.Read(s.data)
	url := transferServer(b, s) + varvev1connect.LogServiceConsumeProcedure
	sink := make([]byte, 256<<10)
	b.SetBytes(int64(s.messages * len(s.data)))
	for b.Loop() {
		response, err := http.Post(url, "application/connect+proto", bytes.NewReader(make([]byte, 5)))
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, response.Body, sink)
		if err != nil || n < int64(s.messages*len(s.data)) {
			b.Fatal(n, err)
		}
		response.Body.Close()
	}
}
