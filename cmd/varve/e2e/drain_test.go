package e2e

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments"
)

// TestDrain stops a gateway under load, kindly: it ends soon and with 0, everything that was acked is
// there, nothing is left to recover, and followers are told to go elsewhere.
func TestDrain(t *testing.T) {
	for _, c := range []struct {
		name   string
		open   func(*testing.T) place
		signal os.Signal
	}{
		{"SIGTERM on bolt and files", embedded, syscall.SIGTERM},
		{"SIGINT on bolt and files", embedded, syscall.SIGINT},
		{"SIGTERM on DynamoDB and S3", onS3, syscall.SIGTERM},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			drainUnderLoad(t, c.open(t), c.signal)
		})
	}
}

func drainUnderLoad(t *testing.T, where place, signal os.Signal) {
	r := newRandom(t)
	p := start(t, where)
	l := newLoad(t, p.url())
	makeTopic(t, l.client, topic, allPartitions)
	f := follow(t, p.url(), allPartitions)
	l.start(t, r)
	waitFor(t, "appends", func() bool { return l.sum(func(op *operation) bool { return op.outcome == confirmed }) > 300 })
	// The load goes on until the process has ended.
	before := l.sum(func(op *operation) bool { return op.outcome == refused })
	began := time.Now()
	p.signal(signal)
	if status := p.wait(t, patience); status != 0 {
		t.Errorf("exit status %d:\n%s", status, p.said.tail(12))
	}
	took := time.Since(began)
	waitFor(t, "a refusal", func() bool { return l.sum(func(op *operation) bool { return op.outcome == refused }) > before })
	for _, each := range f.each {
		_, err := each.state()
		if info := infoOf(err); info != nil && !info.GetRetriable() {
			t.Errorf("%s: the follower's stream ended with an error that is not retriable: %v", each.name, err)
		}
	}
	for _, file := range bufferFiles(t, where) {
		t.Errorf("after a clean drain the buffer holds %s", file)
	}

	again := launch(t, where, p.address).ready(t)
	l.finish(t)
	again.stop(t) // what it acked as buffered is committed then
	for _, line := range again.said.list() {
		if strings.HasPrefix(line.Message, "recovered") || strings.HasPrefix(line.Message, "took over") || line.Level == "ERROR" {
			t.Errorf("after a clean drain: %s", line.Text)
		}
	}
	last := launch(t, where, p.address).ready(t)
	logs := readAll(t, l.client)
	found := l.check(t, logs)
	f.check(t, logs)
	last.stop(t)
	t.Logf("ended %s after the signal; operations\n%s  %d unknown outcomes turned out to be there", took.Round(time.Millisecond), l.table(), found)
}

// bufferFiles lists what appends left in the buffer.
func bufferFiles(t *testing.T, where place) (files []string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(where.data, "buffer"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, segments.BufferSuffix) {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// TestDrainTellsFollowers looks at one stream: what arrived before the end of the gateway is sent, then
// comes an error that says to try again.
func TestDrainTellsFollowers(t *testing.T) {
	p := start(t, embedded(t))
	l := newLoad(t, p.url())
	makeTopic(t, l.client, topic, 1)
	stream, err := l.raw.Consume(t.Context(), &varvev1.ConsumeRequest{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	appendOne(t, l.client, topic, 0, "a")
	for next := int64(0); next < 1; {
		message, err := stream.Receive()
		if err != nil {
			t.Fatal(err)
		}
		next = message.GetNextOffset()
	}
	p.signal(syscall.SIGTERM)
	_, err = stream.Receive()
	if connect.CodeOf(err) != connect.CodeUnavailable || !infoOf(err).GetRetriable() {
		t.Errorf("the stream ended with %v, want a retriable Unavailable", err)
	}
	if status := p.wait(t, patience); status != 0 {
		t.Errorf("exit status %d", status)
	}
	// On a new connection, for what is written to one that was closed may have arrived.
	if _, err := newLoad(t, p.url()).produce(&varvev1.ProduceRequest{Topic: topic, Records: []*varvev1.Record{{}}}); outcomeOf(err) != refused {
		t.Errorf("an append after the end: %v, want a definite refusal", err)
	}
}

// TestDrainThatCannotEnd: the table does not answer. The drain ends when its time is over, or at once
// with a second signal; what was acked as buffered is there after the next start.
func TestDrainThatCannotEnd(t *testing.T) {
	for _, c := range []struct {
		name    string
		args    []string
		signals int
		within  time.Duration
		says    string
	}{
		{"its time is over", []string{"--drain-timeout", "1s"}, 1, 8 * time.Second, "stays in the buffer for the next start"},
		{"a second signal", []string{"--drain-timeout", "5m"}, 2, 3 * time.Second, "second signal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			stack := shared.start(t)
			table := newProxy(t, stack.dynalite.URL())
			where := onMinIO(t).with("--metadata", tableURL(table.url, stack.newTable(t))).with(c.args...)
			p := start(t, where)
			l := newLoad(t, p.url())
			makeTopic(t, l.client, topic, 1)
			appendOne(t, l.client, topic, 0, "before")
			table.hold()
			produceBuffered(t, l, "kept")
			answers := make(chan error, 1)
			go func() {
				_, err := l.produce(&varvev1.ProduceRequest{Topic: topic, Records: []*varvev1.Record{{Value: []byte("perhaps")}}})
				answers <- err
			}()
			waitFor(t, "the append to arrive", func() bool { return l.requests.Load() == 1 })
			for i := range c.signals {
				p.signal(syscall.SIGTERM)
				if i == 0 {
					waitFor(t, "the drain", func() bool { return len(p.said.find("draining: what was accepted is being finished")) > 0 })
					if c.signals > 1 {
						time.Sleep(700 * time.Millisecond) // one that follows at once is taken for the same
					}
				}
			}
			if status := p.wait(t, c.within); status != 1 {
				t.Errorf("exit status %d, want 1", status)
			}
			if said := p.said.tail(3); !strings.Contains(said, c.says) || strings.Contains(said, "goroutine ") {
				t.Errorf("varve said\n%s  want something with %q", said, c.says)
			}
			if err := <-answers; outcomeOf(err) == confirmed {
				t.Error("an append was acked as committed while the table did not answer")
			}
			table.release()

			again := launch(t, where, p.address).ready(t)
			waitRecovered(t, l.client)
			values := readAll(t, l.client)[0]
			if n := count(values, "kept"); n != 1 {
				t.Errorf("what was acked as buffered is there %d times: %q", n, values)
			}
			if count(values, "before") != 1 || count(values, "perhaps") > 1 {
				t.Errorf("the log holds %q", values)
			}
			again.stop(t)
		})
	}
}

func count(values []string, value string) (n int) {
	for _, v := range values {
		if v == value {
			n++
		}
	}
	return n
}

func makeTopic(t *testing.T, c *client.Client, name string, partitions int32) {
	t.Helper()
	if _, _, err := c.CreateTopic(t.Context(), name, client.CreateTopicOptions{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

func appendOne(t *testing.T, c *client.Client, topic string, partition int32, value string) client.Ack {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ack, err := c.Append(ctx, topic, partition, []client.Record{{Value: []byte(value)}}, client.AppendOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ack
}

func produceBuffered(t *testing.T, l *load, value string) {
	t.Helper()
	base, err := l.produce(&varvev1.ProduceRequest{Topic: topic, Acks: varvev1.Acks_ACKS_BUFFERED, Records: []*varvev1.Record{{Value: []byte(value)}}})
	if err == nil && base != -1 {
		err = errors.New("a buffered ack with an offset")
	}
	if err != nil {
		t.Fatal(err)
	}
}

// waitFor waits for what nobody tells of.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("no sign of %s after %s", what, patience)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
