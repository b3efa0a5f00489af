package compactor

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// fillKeys appends small flushes of records with few keys, a fifth of them tombstones, with timestamps in no order.
func (w *world) fillKeys(topic string, partitions, rounds, keys int, config map[string]string) {
	w.t.Helper()
	if w.values[topic] == nil {
		_, _, err := w.c.CreateTopic(w.t.Context(), topic, client.CreateTopicOptions{Partitions: int32(partitions), Config: config})
		w.must(err)
		w.values[topic] = make([][]client.Record, partitions)
	}
	p, err := w.c.NewProducer(client.ProducerConfig{Topic: topic, Linger: client.NoLinger, Partitioning: client.PartitionAsGiven, Codec: batch.Zstd})
	w.must(err)
	defer p.Close(w.t.Context())
	random := rand.New(rand.NewPCG(uint64(rounds), uint64(len(w.values[topic][0]))))
	for range rounds {
		var records []client.Record
		for n := range partitions {
			for range 1 + random.IntN(4) {
				r := client.Record{Partition: int32(n), Timestamp: time.UnixMilli(random.Int64N(1_000_000)), Key: fmt.Appendf(nil, "k%d", random.IntN(keys))}
				if random.IntN(5) > 0 {
					r.Value = fmt.Appendf(nil, "%d/%0*d", n, 100+random.IntN(500), random.Int())
				}
				r.Offset = int64(len(w.values[topic][n]))
				records = append(records, r)
				w.values[topic][n] = append(w.values[topic][n], r)
			}
		}
		_, err := p.ProduceSync(w.t.Context(), records...)
		w.must(err)
	}
}

// checkKeys holds what is read of a partition against what was appended: records with their offsets, of each key the last
// one. It returns them.
func (w *world) checkKeys(topic string, partition int32) []client.Record {
	w.t.Helper()
	all, read := w.values[topic][partition], w.read(topic, partition)
	last := make(map[string]int64)
	for _, r := range all {
		last[string(r.Key)] = r.Offset
	}
	there := make(map[int64]bool)
	for i, r := range read {
		if i > 0 && r.Offset <= read[i-1].Offset {
			w.t.Fatalf("offset %d comes after %d", r.Offset, read[i-1].Offset)
		}
		was := all[r.Offset]
		if !bytes.Equal(r.Key, was.Key) || !bytes.Equal(r.Value, was.Value) || (r.Value == nil) != (was.Value == nil) || !r.Timestamp.Equal(was.Timestamp) {
			w.t.Fatalf("record %d was %v, is %v", r.Offset, was, r)
		}
		there[r.Offset] = true
	}
	for key, offset := range last {
		if !there[offset] && all[offset].Value != nil {
			w.t.Fatalf("the last record of %s, at %d, is gone", key, offset)
		}
	}
	return read
}

// checkPlaces asks for places in a partition in every way, and holds the answers against what is readable.
func (w *world) checkPlaces(topic string, partition int32, read []client.Record) {
	w.t.Helper()
	from := func(start client.Place, between *client.TimeRange) (list []int64) {
		consumer, err := w.c.NewConsumer(client.ConsumerConfig{Topic: topic, Partitions: []int32{partition}, Start: start, End: client.Latest(), Between: between})
		w.must(err)
		for r, err := range consumer.Records(w.t.Context()) {
			w.must(err)
			list = append(list, r.Offset)
		}
		return list
	}
	offsets := func(keep func(client.Record) bool) (list []int64) {
		for _, r := range read {
			if keep(r) {
				list = append(list, r.Offset)
			}
		}
		return list
	}
	end := int64(len(w.values[topic][partition]))
	for o := int64(0); o <= end; o += 1 + end/40 {
		if got, want := from(client.At(o), nil), offsets(func(r client.Record) bool { return r.Offset >= o }); !slices.Equal(got, want) {
			w.t.Fatalf("from offset %d: %v, want %v", o, got, want)
		}
		if got, want := from(client.BeforeEnd(o), nil), offsets(func(r client.Record) bool { return r.Offset >= end-o }); !slices.Equal(got, want) {
			w.t.Fatalf("from %d before the end: %v, want %v", o, got, want)
		}
	}
	for ms := int64(0); ms <= 1_000_000; ms += 27_001 {
		at := time.UnixMilli(ms)
		i := slices.IndexFunc(read, func(r client.Record) bool { return !r.Timestamp.Before(at) })
		w.checkOffset(topic, partition, client.OffsetAtOrAfter(at), read, i)
		if i < 0 {
			i = len(read)
		}
		w.checkOffset(topic, partition, client.OffsetBefore(at), read, i-1)
		between := &client.TimeRange{Start: at, End: at.Add(100 * time.Second)}
		want := offsets(func(r client.Record) bool {
			return !r.Timestamp.Before(between.Start) && r.Timestamp.Before(between.End)
		})
		if got := from(client.Earliest(), between); !slices.Equal(got, want) {
			w.t.Fatalf("between %v: %v, want %v", between, got, want)
		}
	}
}

// checkOffset asks and wants the record with that index, none for -1.
func (w *world) checkOffset(topic string, partition int32, q client.OffsetQuery, read []client.Record, index int) {
	w.t.Helper()
	found, err := w.c.ListOffsets(w.t.Context(), topic, q, partition)
	w.must(err)
	switch {
	case index < 0 && found[0].Found, index >= 0 && !found[0].Found:
		w.t.Fatalf("%+v, want record number %d", found[0], index)
	case index >= 0 && (found[0].Offset != read[index].Offset || !found[0].Timestamp.Equal(read[index].Timestamp)):
		w.t.Fatalf("%+v, want offset %d at %v", found[0], read[index].Offset, read[index].Timestamp)
	}
}

// TestKeysEndToEnd compacts by key beside a gateway, again and again: what is read, followed, looked up and verified is
// right, and appends are judged as if nothing had gone.
func TestKeysEndToEnd(t *testing.T) {
	w := newWorld(t)
	config := map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0", "delete.retention.ms": "1"}
	w.fillKeys("a", 2, 1, 30, config)
	all := func(c *Config, _ *Dependencies) { c.KeyTailBytes, c.KeyMapBytes = -1, 64<<10 }
	c := w.compactor(all)
	stop := runs(c)
	defer func() { stop() }()
	for round := range 4 {
		w.fillKeys("a", 2, 130, 30, nil)
		report, err := c.Compact(t.Context(), "", false)
		w.must(err)
		t.Logf("%+v", report)
		if report.Dropped == 0 || report.Failed != 0 || len(report.SetAside) != 0 {
			t.Errorf("the pass came to %+v", report)
		}
		for n := range int32(2) {
			read := w.checkKeys("a", n)
			if len(read) > 40 { // 30 keys, and the last flush
				t.Errorf("%d records of 30 keys are left", len(read))
			}
			w.checkPlaces("a", n, read)
		}
		w.verify()
		if round == 1 { // what is clean is still known
			stop()
			w.stop()
			w.start()
			c = w.compactor(all)
			stop = runs(c)
			if entries := w.entries("a", 0); len(entries) < 2 || !entries[0].Clean {
				t.Errorf("nothing is clean after a restart: %+v", entries)
			}
		}
	}
}

func TestKeysDoNotTouchAppends(t *testing.T) {
	w := newWorld(t)
	w.fillKeys("a", 1, 60, 3, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
	server := httptest.NewServer(w.g.Handler())
	defer server.Close()
	produce := func(sequence int32, expected *int64) (out struct {
		Results []struct {
			BaseOffset string
			Duplicate  bool
		}
		Message string
	}) {
		b := batch.NewBuilder(batch.None)
		w.must(b.Append(batch.Record{Timestamp: 5, Key: []byte("k1"), Value: []byte("v")}))
		data, err := b.Build(batch.BuildOptions{ProducerID: 77, BaseSequence: sequence})
		w.must(err)
		request := map[string]any{"topic": "a", "partition": 0, "recordBatch": base64.StdEncoding.EncodeToString(data)}
		if expected != nil {
			request["expectedOffset"] = fmt.Sprint(*expected)
		}
		body, err := json.Marshal(request)
		w.must(err)
		answer, err := http.Post(server.URL+"/varve.v1.LogService/Produce", "application/json", bytes.NewReader(body))
		w.must(err)
		defer answer.Body.Close()
		w.must(json.NewDecoder(answer.Body).Decode(&out))
		return out
	}
	end := int64(len(w.values["a"][0]))
	for sequence := range int32(3) {
		next := end + int64(sequence)
		if out := produce(sequence, &next); len(out.Results) != 1 || out.Results[0].BaseOffset != fmt.Sprint(next) || out.Results[0].Duplicate {
			t.Fatalf("sequence %d: %+v", sequence, out)
		}
	}
	if r := w.compact(w.compactor(func(c *Config, _ *Dependencies) { c.KeyTailBytes = -1 })); r.Dropped == 0 {
		t.Fatalf("%+v", r)
	}
	read := w.read("a", 0)
	if slices.ContainsFunc(read, func(r client.Record) bool { return r.Offset == end }) {
		t.Fatalf("the first one is still there: %v", read)
	}
	if out := produce(0, nil); len(out.Results) != 1 || out.Results[0].BaseOffset != fmt.Sprint(end) || !out.Results[0].Duplicate {
		t.Errorf("a duplicate of what is gone: %+v", out)
	}
	late := end + 2
	if out := produce(3, &late); out.Message == "" {
		t.Errorf("an append that expects %d: %+v", late, out)
	}
	next := end + 3
	if out := produce(3, &next); len(out.Results) != 1 || out.Results[0].BaseOffset != fmt.Sprint(next) {
		t.Errorf("an append that expects %d: %+v", next, out)
	}
}

func TestKeysAreDemanded(t *testing.T) {
	w := newWorld(t)
	w.fillKeys("a", 1, 1, 3, map[string]string{"cleanup.policy": "compact,delete"})
	p, err := w.c.NewProducer(client.ProducerConfig{Topic: "a"})
	w.must(err)
	defer p.Close(t.Context())
	_, err = p.ProduceSync(t.Context(), client.Record{Value: []byte("v")})
	var refused *client.Error
	if !errors.As(err, &refused) || refused.Code != connect.CodeInvalidArgument {
		t.Errorf("a record without a key: %v", err)
	}
	if _, err = p.ProduceSync(t.Context(), client.Record{Key: []byte{}, Value: []byte("v")}); err != nil {
		t.Errorf("an empty key is a key: %v", err)
	}
}

// TestKeysUnderAFollower compacts while one follows: it sees each key's last value, and offsets only rise.
func TestKeysUnderAFollower(t *testing.T) {
	w := newWorld(t)
	w.fillKeys("a", 1, 1, 20, map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	values, ended := make(map[string]string), make(chan error, 1)
	consumer, err := w.c.NewConsumer(client.ConsumerConfig{Topic: "a", MaxBytes: 1 << 10})
	w.must(err)
	go func() {
		last := int64(-1)
		for r, err := range consumer.Records(ctx) {
			if err != nil || r.Offset <= last {
				ended <- fmt.Errorf("offset %d after %d, %w", r.Offset, last, err)
				return
			}
			last = r.Offset
			if values[string(r.Key)] = string(r.Value); string(r.Key) == "end" {
				ended <- nil
				return
			}
		}
	}()
	c := w.compactor(func(c *Config, _ *Dependencies) { c.KeyTailBytes = -1 })
	stop := runs(c)
	for range 8 {
		w.fillKeys("a", 1, 40, 20, nil)
		r, err := c.Compact(ctx, "", false)
		w.must(err)
		if r.Failed > 0 || r.Dropped == 0 {
			t.Errorf("%+v", r)
		}
	}
	stop()
	p, err := w.c.NewProducer(client.ProducerConfig{Topic: "a"})
	w.must(err)
	defer p.Close(t.Context())
	_, err = p.ProduceSync(ctx, client.Record{Key: []byte("end")})
	w.must(err)
	w.must(<-ended)
	want := make(map[string]string)
	for _, r := range w.values["a"][0] {
		want[string(r.Key)] = string(r.Value)
	}
	delete(values, "end")
	if fmt.Sprint(values) != fmt.Sprint(want) {
		t.Errorf("followed %v, want %v", values, want)
	}
}

// TestKeysLeaveNothing: an index entry without records is passed by readers of every kind, and merges, restarts and
// verify take it for what it is.
func TestKeysLeaveNothing(t *testing.T) {
	w := newWorld(t)
	w.fillKeys("a", 1, 70, 1, map[string]string{"cleanup.policy": "compact"})
	number := uint64(0)
	d := KeyDeps{Store: w.store, Cluster: segments.ClusterID(w.g.ClusterID()), Table: w.table, Index: metadata.TableIndex{Table: w.table},
		Uploader: metadata.MergerID(w.g.ID()), Number: func() uint64 { number++; return number }, View: w.g.MergeView, Swap: w.g.Swap, Now: time.Now}
	p, err := w.c.NewProducer(client.ProducerConfig{Topic: "a", Partitioning: client.PartitionAsGiven})
	w.must(err)
	defer p.Close(t.Context())
	r := client.Record{Timestamp: time.UnixMilli(500_000), Key: []byte("last"), Value: []byte("v"), Offset: int64(len(w.values["a"][0]))}
	_, err = p.ProduceSync(t.Context(), r)
	w.must(err)
	w.values["a"][0] = append(w.values["a"][0], r)
	if report, err := CleanPartition(t.Context(), d, KeyConfig{}, w.id("a", 0), KeyRules{}, true); err != nil || report.Dropped != r.Offset-1 {
		t.Fatalf("%+v, %v", report, err)
	}
	empty := 0
	for _, e := range w.entries("a", 0) {
		if e.Length == 0 {
			empty++
		}
	}
	if empty == 0 {
		t.Error("no entry is empty")
	}
	check := func() {
		t.Helper()
		read := w.checkKeys("a", 0)
		if len(read) != 2 {
			t.Errorf("%d records are left", len(read))
		}
		w.checkPlaces("a", 0, read)
		w.verify()
	}
	check()
	w.compact(w.compactor(func(c *Config, d *Dependencies) { d.Cluster = another(t, w, d.Cluster) }))
	check()
	w.stop()
	w.start()
	check()
}
