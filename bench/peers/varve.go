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
	// idle are clients that nobody uses, one for each worker: the appends of one client to a partition wait for each other.
	idle chan *client.Client
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
	s := &varveServer{process: p, o: o, idle: make(chan *client.Client, o.workers)}
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
	config := client.Config{Servers: []string{"http://" + address}}
	if s.c, err = client.New(config); err == nil {
		_, _, err = s.c.CreateTopic(ctx, topic, client.CreateTopicOptions{Partitions: int32(o.logs)})
	}
	for range o.workers {
		if err == nil {
			var c *client.Client
			c, err = client.New(config)
			s.idle <- c
		}
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
	c := <-s.idle
	defer func() { s.idle <- c }()
	_, err := c.Append(ctx, topic, int32(log), list, client.AppendOptions{})
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

func (s *varveServer) close() error {
	faults := []error{s.c.Close()}
	for range s.o.workers {
		faults = append(faults, (<-s.idle).Close())
	}
	return errors.Join(append(faults, s.process.close())...)
}
