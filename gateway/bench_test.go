package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/segments/filestore"
)

// BenchmarkProduce appends batches of 1 MiB over HTTP to a gateway on files. Client
// and server share the process: for a profile, not for figures (varve bench has those).
func BenchmarkProduce(b *testing.B) {
	dir := b.TempDir()
	store, err := filestore.Open(dir + "/segments")
	if err != nil {
		b.Fatal(err)
	}
	table, err := bolttable.Open(dir+"/metadata.db", bolttable.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	buffers, err := segments.OpenBufferDir(segments.OS(), dir+"/buffer", segments.BufferConfig{})
	if err != nil {
		b.Fatal(err)
	}
	defer buffers.Close()
	g, err := New(Config{Exclusive: true, FlushInterval: 5 * time.Millisecond, CycleInterval: -1},
		Dependencies{Store: store, Table: table, Buffers: buffers, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	started, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- g.Run(ctx, func() { close(started) }) }()
	<-started
	defer func() { cancel(); <-ended }()
	server := httptest.NewServer(g.Handler())
	defer server.Close()
	if _, err := g.topics.Create(ctx, "a", 16, nil, time.Now()); err != nil {
		b.Fatal(err)
	}
	bodies := make([][]byte, 16)
	for p := range bodies {
		builder := batch.NewBuilder(batch.None)
		value := make([]byte, 1000)
		rand.Read(value)
		for range 1000 {
			if err := builder.Append(batch.Record{Timestamp: 1, Value: value}); err != nil {
				b.Fatal(err)
			}
		}
		data, err := builder.Build(batch.NoProducer)
		if err != nil {
			b.Fatal(err)
		}
		number := int32(p)
		if bodies[p], err = proto.Marshal(&varvev1.ProduceRequest{Topic: "a", Partition: &number, RecordBatch: data}); err != nil {
			b.Fatal(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32, DisableCompression: true}}
	b.SetBytes(int64(len(bodies[0])))
	b.ReportAllocs()
	b.ResetTimer()
	work := make(chan int)
	var group sync.WaitGroup
	for range 32 {
		group.Go(func() {
			for i := range work {
				res, err := client.Post(server.URL+"/varve.v1.LogService/Produce", "application/proto", bytes.NewReader(bodies[i%len(bodies)]))
				if err != nil {
					b.Error(err)
					continue
				}
				body, _ := io.ReadAll(res.Body)
				res.Body.Close()
				if res.StatusCode != http.StatusOK {
					b.Error(fmt.Errorf("%s: %s", res.Status, body))
				}
			}
		})
	}
	for i := range b.N {
		work <- i
	}
	close(work)
	group.Wait()
	b.StopTimer()
	b.ReportMetric(float64(g.meters.Usage().GetObjectPuts())/(float64(b.N)*float64(len(bodies[0]))/(1<<30)), "PUTs/GiB")
}
