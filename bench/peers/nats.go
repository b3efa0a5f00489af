package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	natsd "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// serveNATS runs the server of the Go module with a configuration file, until it is told to end.
func serveNATS(config string) error {
	o, err := natsd.ProcessConfigFile(config)
	if err != nil {
		return err
	}
	o.NoSigs = true
	s, err := natsd.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	<-ended
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

type natsServer struct {
	*process
	conns  []*nats.Conn // one for each log: a connection is read by one goroutine of the server
	js     []jetstream.JetStream
	atomic bool
}

func startNATSRecords(ctx context.Context, dir string, o *options) (server, error) {
	return startNATS(ctx, dir, o, false)
}

func startNATSBatches(ctx context.Context, dir string, o *options) (server, error) {
	return startNATS(ctx, dir, o, true)
}

func startNATS(ctx context.Context, dir string, o *options, atomic bool) (_ server, err error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, "nats.conf")
	text := fmt.Sprintf("listen: %q\njetstream { store_dir: %q, sync_interval: always }\n", address, dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p, err := startProcess(exec.Command(self, "nats-server", config))
	if err != nil {
		return nil, err
	}
	s := &natsServer{process: p, atomic: atomic}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	for log := range o.logs {
		var c *nats.Conn
		if err := p.ready(ctx, func() (err error) { c, err = nats.Connect("nats://" + address); return err }); err != nil {
			return nil, err
		}
		s.conns = append(s.conns, c)
		js, err := jetstream.New(c, jetstream.WithPublishAsyncMaxPending(1<<20))
		if err != nil {
			return nil, err
		}
		s.js = append(s.js, js)
		if _, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: stream(log), Subjects: []string{stream(log)}, Storage: jetstream.FileStorage, AllowAtomicPublish: atomic}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func stream(log int) string { return fmt.Sprintf("log-%d", log) }

func (s *natsServer) version() string { return "nats-server " + natsd.VERSION }

func (s *natsServer) produce(ctx context.Context, log int, records [][]byte) error {
	if s.atomic {
		return s.produceAtomically(ctx, log, records)
	}
	acks := make([]jetstream.PubAckFuture, len(records))
	for i, value := range records {
		var err error
		if acks[i], err = s.js[log].PublishAsync(stream(log), value); err != nil {
			return err
		}
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// produceAtomically publishes a batch as ADR-50 has it: the last message commits it, and is answered.
func (s *natsServer) produceAtomically(ctx context.Context, log int, records [][]byte) error {
	id := nats.NewInbox()
	for i, value := range records {
		m := nats.NewMsg(stream(log))
		m.Data = value
		m.Header.Set("Nats-Batch-Id", id)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < len(records)-1 {
			if err := s.conns[log].PublishMsg(m); err != nil {
				return err
			}
			continue
		}
		m.Header.Set("Nats-Batch-Commit", "1")
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		ack, err := s.js[log].PublishMsg(ctx, m)
		if err != nil {
			return err
		}
		if ack.Sequence == 0 {
			return errors.New("the batch got no sequence")
		}
	}
	return nil
}

func (s *natsServer) consume(ctx context.Context, log int, records int64) (bytes int64, err error) {
	c, err := s.js[log].OrderedConsumer(ctx, stream(log), jetstream.OrderedConsumerConfig{})
	if err != nil {
		return 0, err
	}
	messages, err := c.Messages(jetstream.PullMaxMessages(2000))
	if err != nil {
		return 0, err
	}
	defer messages.Stop()
	for ; records > 0; records-- {
		m, err := messages.Next()
		if err != nil {
			return bytes, err
		}
		bytes += int64(len(m.Data()))
	}
	return bytes, nil
}

func (s *natsServer) close() error {
	for _, c := range s.conns {
		c.Close()
	}
	return s.process.close()
}
