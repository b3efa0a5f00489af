package batch_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// brokerVersions are the last ones that know zstd and have requests without tagged
// fields, which keeps the broker short.
var brokerVersions = kversion.V2_1_0()

const brokerProducerID = 77

// listeningBroker is just enough of a Kafka broker to make a kgo producer send its
// batches to one partition of one topic, through in-memory connections.
type listeningBroker struct {
	mu      sync.Mutex
	batches [][]byte
	err     error
}

func newListeningBroker() *listeningBroker { return &listeningBroker{} }

func (l *listeningBroker) dial(context.Context, string, string) (net.Conn, error) {
	client, server := net.Pipe()
	go l.serve(server) // ends when the client closes its end
	return client, nil
}

// taken returns the batches as they were sent.
func (l *listeningBroker) taken() [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.batches
}

// failed returns what stopped a connection, if not the client did.
func (l *listeningBroker) failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *listeningBroker) serve(conn net.Conn) {
	defer conn.Close()
	for {
		if err := l.serveOne(conn); err != nil {
			if err != io.EOF {
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
			}
			return
		}
	}
}

func (l *listeningBroker) serveOne(conn net.Conn) error {
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return err
	}
	frame := make([]byte, binary.BigEndian.Uint32(size[:]))
	if _, err := io.ReadFull(conn, frame); err != nil {
		return err
	}
	request := kmsg.RequestForKey(int16(binary.BigEndian.Uint16(frame)))
	request.SetVersion(int16(binary.BigEndian.Uint16(frame[2:])))
	correlation := frame[4:8]
	clientID := int(binary.BigEndian.Uint16(frame[8:]))
	if err := request.ReadFrom(frame[10+clientID:]); err != nil {
		return fmt.Errorf("%T version %d: %w", request, request.GetVersion(), err)
	}
	response, err := l.answer(request)
	if err != nil {
		return err
	}
	response.SetVersion(request.GetVersion())
	out := append(make([]byte, 4), correlation...)
	out = response.AppendTo(out)
	binary.BigEndian.PutUint32(out, uint32(len(out)-4))
	_, err = conn.Write(out)
	return err
}

func (l *listeningBroker) answer(request kmsg.Request) (kmsg.Response, error) {
	switch request := request.(type) {
	case *kmsg.ApiVersionsRequest:
		response := kmsg.NewPtrApiVersionsResponse()
		brokerVersions.EachMaxKeyVersion(func(key, version int16) {
			response.ApiKeys = append(response.ApiKeys, kmsg.ApiVersionsResponseApiKey{ApiKey: key, MaxVersion: version})
		})
		return response, nil
	case *kmsg.MetadataRequest:
		topic := "topic"
		response := kmsg.NewPtrMetadataResponse()
		response.Brokers = []kmsg.MetadataResponseBroker{{NodeID: 1, Host: "broker", Port: 9092}}
		response.Topics = []kmsg.MetadataResponseTopic{{Topic: &topic, Partitions: []kmsg.MetadataResponseTopicPartition{{Leader: 1}}}}
		return response, nil
	case *kmsg.InitProducerIDRequest:
		response := kmsg.NewPtrInitProducerIDResponse()
		response.ProducerID = brokerProducerID
		return response, nil
	case *kmsg.ProduceRequest:
		l.mu.Lock()
		defer l.mu.Unlock()
		l.batches = append(l.batches, request.Topics[0].Partitions[0].Records)
		partition := kmsg.NewProduceResponseTopicPartition()
		response := kmsg.NewPtrProduceResponse()
		response.Topics = []kmsg.ProduceResponseTopic{{Topic: "topic", Partitions: []kmsg.ProduceResponseTopicPartition{partition}}}
		return response, nil
	}
	return nil, fmt.Errorf("no answer to %T", request)
}
