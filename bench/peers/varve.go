package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os/exec"

	"github.com/varvelog/varve/client"
)

const topic = "peers"

type varveServer struct {
	*process
	c *client.Client
	o *options
}

func startVarveFiles(ctx context.Context, dir string, o *options) (server, error) {
	return startVarve(ctx, o, "--data", dir)
}

func startVarveBucket(ctx context.Context, dir string, o *options) (server, error) {
	if o.segments == "" {
		return nil, fmt.Errorf("%w: no bucket was given", errAbsent)
	}
	return startVarve(ctx, o, "--data", dir, "--segments", o.segments, "--metadata", o.metadata)
}

func startVarve(ctx context.Context, o *options, args ...string) (server, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	p, err := startProcess(exec.Command(o.varve, append([]string{"serve", "--listen", address, "--log-level", "warn"}, args...)...))
	if err != nil {
		return nil, err
	}
	s := &varveServer{process: p, o: o}
	err = p.ready(ctx, func() error {
		response, err := http.Get("http://" + address + "/readyz")
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return errors.New(response.Status)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.c, err = client.New(client.Config{Servers: []string{"http://" + address}}); err == nil {
		_, _, err = s.c.CreateTopic(ctx, topic, client.CreateTopicOptions{Partitions: int32(o.logs)})
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return s, nil
}

func (s *varveServer) version() string { return s.o.commit }

func (s *varveServer) produce(ctx context.Context, log int, records [][]byte) error {
	list := make([]client.Record, len(records))
	for i, value := range records {
		list[i].Value = value
	}
	_, err := s.c.Append(ctx, topic, int32(log), list, client.AppendOptions{})
	return err
}

func (s *varveServer) consume(ctx context.Context, log int, records int64) (bytes int64, err error) {
	consumer, err := s.c.NewConsumer(client.ConsumerConfig{Topic: topic, Partitions: []int32{int32(log)}, Start: client.Earliest()})
	if err != nil {
		return 0, err
	}
	for record, err := range consumer.Records(ctx) {
		if err != nil {
			return bytes, err
		}
		bytes += int64(len(record.Value))
		if records--; records == 0 {
			return bytes, nil
		}
	}
	return bytes, fmt.Errorf("the log ended %d records too early", records)
}

func (s *varveServer) close() error { return errors.Join(s.c.Close(), s.process.close()) }
