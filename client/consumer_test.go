package client_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/client/clienttest"
)

func readObject(r *client.ObjectReader) ([]byte, error) {
	data, err := io.ReadAll(r)
	return data, errors.Join(err, r.Close())
}

// appendAt appends one batch with a record for each time.
func appendAt(t testing.TB, c *client.Client, topic string, partition int32, times ...int64) {
	t.Helper()
	var recs []client.Record
	for _, at := range times {
		recs = append(recs, client.Record{Timestamp: ms(at)})
	}
	if _, err := c.Append(t.Context(), topic, partition, recs, client.AppendOptions{}); err != nil {
		t.Fatal(err)
	}
}

func TestPlaces(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 1)
	appendAt(t, c, "t", 0, 1000, 5000, 2000)
	appendAt(t, c, "t", 0, 9000, 3000)
	if _, err := c.TrimTopic(t.Context(), "t", client.At(1), 0); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		start, end client.Place
		first, n   int
	}{
		{client.Place{}, client.Latest(), 1, 4},
		{client.Earliest(), client.At(4), 1, 3},
		{client.At(2), client.Latest(), 2, 3},
		{client.At(2), client.At(2), 0, 0},
		{client.At(3), client.At(2), 0, 0},
		{client.Latest(), client.Latest(), 0, 0},
		{client.BeforeEnd(2), client.Latest(), 3, 2},
		{client.BeforeEnd(99), client.Latest(), 1, 4},
		{client.AtTime(ms(5001)), client.Latest(), 3, 2},
		{client.AtTime(ms(9001)), client.Latest(), 0, 0},
		{client.Earliest(), client.AtTime(ms(9000)), 1, 2},
		{client.Earliest(), client.Earliest(), 0, 0},
	} {
		got := readAll(t, c, client.ConsumerConfig{Topic: "t", Start: row.start, End: row.end})
		if len(got) != row.n || row.n > 0 && got[0].Offset != int64(row.first) {
			t.Errorf("%v to %v: %q, want %d from %d", row.start, row.end, lines(got), row.n, row.first)
		}
	}
	start := map[int32]client.Place{0: client.At(4)}
	wantLines(t, readAll(t, c, client.ConsumerConfig{Topic: "t", Start: client.Earliest(), Starts: start}), "0:4 3000 =")
}

func TestBetweenIsExact(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 1)
	appendAt(t, c, "t", 0, 1000, 5000, 2000)
	appendAt(t, c, "t", 0, 6000, 7000)
	appendAt(t, c, "t", 0, 9000, 4000)
	got := readAll(t, c, client.ConsumerConfig{Topic: "t", Between: &client.TimeRange{Start: ms(2000), End: ms(5000)}})
	wantLines(t, got, "0:2 2000 =", "0:6 4000 =")
}

func TestConsumerFaultsAreNotSkipped(t *testing.T) {
	server := clienttest.New()
	c := open(t, server)
	createTopic(t, c, "t", 1)
	appendAt(t, c, "t", 0, 1)
	appendAt(t, c, "t", 0, 2)
	one := func(cfg client.ConsumerConfig) (n int, err error) {
		cfg.Topic = "t"
		for _, e := range consumer(t, c, cfg).Records(t.Context()) {
			if e != nil {
				return n, e
			}
			n++
		}
		return n, nil
	}
	var e *client.Error
	if _, err := one(client.ConsumerConfig{Start: client.At(9)}); !errors.Is(err, client.ErrOutOfRange) || !errors.As(err, &e) || e.NextOffset != 2 {
		t.Errorf("past the end: want ErrOutOfRange with 2, got %v", err)
	}
	if _, err := c.TrimTopic(t.Context(), "t", client.At(1), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := one(client.ConsumerConfig{Start: client.At(0)}); !errors.Is(err, client.ErrOutOfRange) || !errors.As(err, &e) || e.LogStart != 1 {
		t.Errorf("before the start: want ErrOutOfRange with 1, got %v", err)
	}
	appendAt(t, c, "t", 0, 3)
	if err := server.Corrupt("t", 0); err != nil {
		t.Fatal(err)
	}
	for _, order := range []client.Order{client.AsTheyCome, client.ByTimestamp} {
		n, err := one(client.ConsumerConfig{End: client.Latest(), Order: order})
		if !errors.Is(err, client.ErrDataLoss) || order == client.AsTheyCome && n != 1 {
			t.Errorf("damaged: want 1 record and ErrDataLoss, got %d and %v", n, err)
		}
	}
	nowhere := consumer(t, c, client.ConsumerConfig{Topic: "nowhere"})
	for _, err := range nowhere.Records(t.Context()) {
		if !errors.Is(err, client.ErrTopicNotFound) {
			t.Errorf("want ErrTopicNotFound, got %v", err)
		}
	}
}

// Followers see what is appended later, in new partitions too, and stop with their context.
func TestFollow(t *testing.T) {
	c := open(t, clienttest.New())
	createTopic(t, c, "t", 2)
	k := consumer(t, c, client.ConsumerConfig{Topic: "t"})
	client.SetGrowthInterval(k, 1e6)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	appendAt(t, c, "t", 1, 1)
	var got []string
	var last error
	for rec, err := range k.Records(ctx) {
		if last = err; err != nil {
			break
		}
		got = append(got, line(rec))
		switch len(got) {
		case 1:
			appendAt(t, c, "t", 0, 2)
		case 2:
			if _, err := c.AlterTopic(ctx, "t", client.AlterTopicOptions{Partitions: 3}); err != nil {
				t.Fatal(err)
			}
			appendAt(t, c, "t", 2, 3)
		case 3:
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) || len(got) != 3 || got[2] != "2:0 3 =" {
		t.Errorf("got %q and %v", got, last)
	}
}
