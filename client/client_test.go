package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

// open returns a client of server over the in-process transport.
func open(t testing.TB, server *clienttest.Server) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Transport: server.Transport()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func createTopic(t testing.TB, c *client.Client, name string, partitions int32) {
	t.Helper()
	if _, _, err := c.CreateTopic(t.Context(), name, client.CreateTopicOptions{Partitions: partitions}); err != nil {
		t.Fatal(err)
	}
}

func producer(t testing.TB, c *client.Client, cfg client.ProducerConfig) *client.Producer {
	t.Helper()
	p, err := c.NewProducer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := p.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return p
}

func consumer(t testing.TB, c *client.Client, cfg client.ConsumerConfig) *client.Consumer {
	t.Helper()
	k, err := c.NewConsumer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// readAll reads up to the latest offset.
func readAll(t testing.TB, c *client.Client, cfg client.ConsumerConfig) []client.Record {
	t.Helper()
	if cfg.End.IsZero() {
		cfg.End = client.Latest()
	}
	var out []client.Record
	for rec, err := range consumer(t, c, cfg).Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec)
	}
	return out
}

// line is a record as tests compare them: partition:offset time key=value.
func line(r client.Record) string {
	return fmt.Sprintf("%d:%d %d %s=%s", r.Partition, r.Offset, r.Timestamp.UnixMilli(), r.Key, r.Value)
}

func lines(recs []client.Record) []string {
	var out []string
	for _, r := range recs {
		out = append(out, line(r))
	}
	return out
}

func wantLines(t testing.TB, got []client.Record, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, lines(got)); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}

func ms(n int64) time.Time { return time.UnixMilli(n) }

func TestConfigListsEveryFault(t *testing.T) {
	_, err := client.New(client.Config{Servers: []string{"nowhere", "ftp://x"}, RequestTimeout: -1, MaxMessageBytes: -1})
	for _, want := range []string{"nowhere", "ftp://x", "request timeout", "max message bytes"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %q", err, want)
		}
	}
}

func TestTopics(t *testing.T) {
	c := open(t, clienttest.New())
	ctx := t.Context()
	topic, created, err := c.CreateTopic(ctx, "a", client.CreateTopicOptions{Partitions: 3, Config: map[string]string{"retention.ms": "5"}})
	if err != nil || !created || topic.Partitions != 3 {
		t.Fatalf("created %v %+v: %v", created, topic, err)
	}
	if _, created, err := c.CreateTopic(ctx, "a", client.CreateTopicOptions{IfNotExists: true}); err != nil || created {
		t.Fatalf("created again: %v, %v", created, err)
	}
	if _, _, err := c.CreateTopic(ctx, "a", client.CreateTopicOptions{}); !errors.Is(err, client.ErrTopicExists) {
		t.Fatalf("want ErrTopicExists, got %v", err)
	}
	createTopic(t, c, "b", 1)
	var names []string
	for topic, err := range c.Topics(ctx, "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, topic.Name)
	}
	if diff := cmp.Diff([]string{"a", "b"}, names); diff != "" {
		t.Error(diff)
	}
	altered, err := c.AlterTopic(ctx, "a", client.AlterTopicOptions{Partitions: 4, Set: map[string]string{"x": "1"}, Unset: []string{"retention.ms"}})
	if err != nil || altered.Partitions != 4 || altered.Config["x"] != "1" || len(altered.Config) != 1 {
		t.Fatalf("altered to %+v: %v", altered, err)
	}
	d, err := c.DescribeTopic(ctx, "a")
	if err != nil || len(d.PartitionInfo) != 4 || !d.PartitionInfo[0].MaxTimestamp.IsZero() {
		t.Fatalf("described as %+v: %v", d, err)
	}
	if err := c.DeleteTopic(ctx, "a", false); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteTopic(ctx, "a", true); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteTopic(ctx, "a", false); !errors.Is(err, client.ErrTopicNotFound) {
		t.Fatalf("want ErrTopicNotFound, got %v", err)
	}
}

func TestListOffsetsAnswersAsDocumented(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 1)
	var recs []client.Record
	for _, at := range []int64{1000, 5000, 2000, 9000, 3000} {
		recs = append(recs, client.Record{Timestamp: ms(at)})
	}
	if _, err := c.Append(t.Context(), "t", 0, recs, client.AppendOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ at, after, before int64 }{
		{500, 0, -1}, {1000, 0, -1}, {1500, 1, 0}, {2500, 1, 0}, {4000, 1, 0}, {5000, 1, 0}, {6000, 3, 2}, {9000, 3, 2}, {9001, -1, 4},
	} {
		for q, want := range map[*client.OffsetQuery]int64{
			ptr(client.OffsetAtOrAfter(ms(row.at))): row.after, ptr(client.OffsetBefore(ms(row.at))): row.before,
		} {
			got, err := c.ListOffsets(t.Context(), "t", *q)
			if err != nil {
				t.Fatal(err)
			}
			if got[0].Offset != want || got[0].Found != (want >= 0) || got[0].EndOffset != 5 {
				t.Errorf("at %d: got %+v, want %d", row.at, got[0], want)
			}
		}
	}
	// A time between two milliseconds asks for the later one.
	got, err := c.ListOffsets(t.Context(), "t", client.OffsetAtOrAfter(ms(5000).Add(time.Microsecond)))
	if err != nil || got[0].Offset != 3 {
		t.Errorf("just after 5000: %+v, %v", got, err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestDump(t *testing.T) {
	server := clienttest.New()
	data := make([]byte, 5000)
	for i := range data {
		data[i] = byte(i)
	}
	server.PutObject("a.seg", data)
	c := open(t, server)
	for _, row := range []struct{ offset, length, from, to int64 }{
		{0, 0, 0, 5000}, {-10, 0, 4990, 5000}, {7, 2000, 7, 2007},
	} {
		r, err := c.Dump(t.Context(), "a.seg", row.offset, row.length)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readObject(r)
		if err != nil || r.Size() != 5000 {
			t.Fatalf("size %d: %v", r.Size(), err)
		}
		if diff := cmp.Diff(data[row.from:row.to], got); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := c.Dump(t.Context(), "b.seg", 0, 0); !errors.Is(err, client.ErrObjectNotFound) || errors.Is(err, client.ErrTopicNotFound) {
		t.Errorf("want ErrObjectNotFound, got %v", err)
	}
}
