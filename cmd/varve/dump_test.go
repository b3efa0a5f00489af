package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// segmentFile finds the only segment of a gateway.
func (s *testShell) segmentFile() (path, key string) {
	s.t.Helper()
	root := filepath.Join(s.data, "segments")
	found, err := filepath.Glob(filepath.Join(root, "*", "*", "*.seg"))
	if err != nil || len(found) != 1 {
		s.t.Fatalf("segments %q, %v, want one", found, err)
	}
	key, err = filepath.Rel(root, found[0])
	if err != nil {
		s.t.Fatal(err)
	}
	return found[0], filepath.ToSlash(key)
}

// produceBatch makes a topic with one batch of three records.
func (s *testShell) produceBatch(codec string) {
	s.ok("", "topic", "create", "t")
	s.ok(`{"timestamp":1000,"key":"k","value":"one","headers":[{"key":"h","value":"1"},{"key":"i","value":null}]}
{"timestamp":3000,"key":null,"value":"two"}
{"timestamp":2000,"key":"k","value":null}
`, "produce", "t", "--format", "json", "-z", codec)
}

// Another library reads what dump --raw cuts out.
func TestRawBatchByKgo(t *testing.T) {
	for _, codec := range []string{"none", "gzip", "snappy", "lz4", "zstd"} {
		s := newShell(t)
		s.produceBatch(codec)
		raw := s.ok("", "dump", "t/0@1", "--raw")
		partition, _ := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{Topic: "t"},
			&kmsg.FetchResponseTopicPartition{RecordBatches: []byte(raw)}, kgo.DefaultDecompressor(), nil)
		if partition.Err != nil {
			t.Fatalf("%s: %v", codec, partition.Err)
		}
		type record struct {
			Offset, Timestamp int64
			Key, Value        []byte
			Headers           int
		}
		var got []record
		for _, r := range partition.Records {
			got = append(got, record{r.Offset, r.Timestamp.UnixMilli(), r.Key, r.Value, len(r.Headers)})
		}
		want := []record{{0, 1000, []byte("k"), []byte("one"), 2}, {1, 3000, nil, []byte("two"), 0}, {2, 2000, []byte("k"), nil, 0}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", codec, diff)
		}
	}
}

// steady replaces what differs from run to run in a dump.
func steady(text string) string {
	for pattern, with := range map[string]string{
		`producer(Id: |_id":)\d+`: "producer${1}P", `(crc"?: ?)\d+`: "${1}C", `[0-9a-f]{32}`: "TOPIC",
		`[a-z0-9]+/[a-z0-9]+/\d{20}\.seg`: "KEY", `(LeaderEpoch: |leader_epoch":)\d+`: "${1}E",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, with)
	}
	return text
}

const dumpedRecords = `| offset: 0 CreateTime: 1000 keySize: 1 valueSize: 3 sequence: 0 headerKeys: [h,i] key: k payload: one
| offset: 1 CreateTime: 3000 keySize: -1 valueSize: 3 sequence: 1 headerKeys: [] payload: two
| offset: 2 CreateTime: 2000 keySize: 1 valueSize: -1 sequence: 2 headerKeys: [] key: k
`

const dumpedSegment = `segment: KEY version: 1 size: 250 spans: 1 batches: 1
span: topicId: TOPIC partition: 0 previous: 0 position: 16 length: 99 batches: 1
baseOffset: 0 lastOffset: 2 count: 3 baseSequence: 0 lastSequence: 2 producerId: P producerEpoch: 0 partitionLeaderEpoch: -1 isTransactional: false isControl: false position: 16 CreateTime: 3000 size: 99 magic: 2 compresscodec: none crc: C isvalid: true
`

func TestDump(t *testing.T) {
	s := newShell(t)
	s.produceBatch("none")
	file, key := s.segmentFile()
	batchLine := `baseOffset: 0 lastOffset: 2 count: 3 baseSequence: 0 lastSequence: 2 producerId: P producerEpoch: 0 partitionLeaderEpoch: E isTransactional: false isControl: false position: 0 CreateTime: 3000 size: 99 magic: 2 compresscodec: none crc: C isvalid: true
`
	raw := filepath.Join(t.TempDir(), "batches")
	if err := os.WriteFile(raw, []byte(s.ok("", "dump", "t/0@0", "--raw")), 0o600); err != nil {
		t.Fatal(err)
	}
	sizes := regexp.MustCompile(`size: 2\d\d spans`)
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"batch", batchLine, []string{"t/0@2"}},
		{"batch with records", batchLine + dumpedRecords, []string{"t/0@0", "--records"}},
		{"file of batches", batchLine + dumpedRecords, []string{raw, "--records"}},
		{"segment file", dumpedSegment, []string{file}},
		{"segment file with records", dumpedSegment + dumpedRecords, []string{file, "--records"}},
		{"object by a gateway", dumpedSegment, []string{key}},
		{"object in a folder", dumpedSegment, []string{key, "--data", s.data}},
		{"object in a store", dumpedSegment, []string{key, "--segments", "file://" + filepath.Join(s.data, "segments")}},
	} {
		got := s.ok("", append([]string{"dump"}, c.args...)...)
		if diff := cmp.Diff(c.want, sizes.ReplaceAllString(steady(got), "size: 250 spans")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestDumpJSON(t *testing.T) {
	s := newShell(t)
	s.produceBatch("none")
	_, key := s.segmentFile()
	var kinds []string
	for line := range strings.Lines(s.ok("", "dump", key, "--records", "-o", "json")) {
		var v struct{ Kind string }
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		kinds = append(kinds, v.Kind)
	}
	if diff := cmp.Diff([]string{"segment", "span", "batch", "record", "record", "record"}, kinds); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	want := `{"kind":"batch","base_offset":0,"last_offset":2,"count":3,"base_sequence":0,"last_sequence":2,"producer_id":P,"producer_epoch":0,"partition_leader_epoch":E,"is_transactional":false,"is_control":false,"position":0,"timestamp_type":"CreateTime","base_timestamp":1000,"max_timestamp":3000,"size":99,"magic":2,"compress_codec":"none","crc":C,"is_valid":true,"fault":""}
`
	if diff := cmp.Diff(want, steady(s.ok("", "dump", "t/0@1", "-o", "json"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Whatever byte is wrong, dump says so, and where, and does not fall over.
func TestDumpDamage(t *testing.T) {
	s := newShell(t)
	s.produceBatch("none")
	file, _ := s.segmentFile()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(t.TempDir(), "damaged.seg")
	dump := func(data []byte) result {
		if err := os.WriteFile(damaged, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return s.run("", "dump", damaged, "--records")
	}
	place := regexp.MustCompile(`(?m)^varve: \S+damaged\.seg: positions? \d+`)
	for at := range whole {
		data := append([]byte(nil), whole...)
		data[at] ^= 0xff
		r := dump(data)
		// The first 12 bytes of a batch, its base offset and length, and bytes 12 to 16, its epoch, lie outside its CRC; the
		// base offset and the epoch of a stored batch mean nothing.
		free := at >= 16 && at < 24 || at >= 28 && at < 32
		newer := strings.Contains(r.stderr, "newer")
		if r.status != statusFailed && !free || r.status == statusFailed && !place.MatchString(r.stderr) && !newer {
			t.Errorf("byte %d: status %d, %q", at, r.status, r.stderr)
		}
	}
	for size := range whole {
		if r := dump(whole[:size]); r.status != statusFailed {
			t.Errorf("cut to %d bytes: status %d, %q", size, r.status, r.stderr)
		}
	}
	data := append([]byte(nil), whole...)
	data[100] ^= 1
	if r := dump(data); !strings.Contains(r.stdout, "position: 16") || !strings.Contains(r.stdout, "isvalid: false") ||
		!strings.Contains(r.stderr, "damaged.seg: position 16: batch of 99 bytes: ") {
		t.Errorf("%q, %q", r.stdout, r.stderr)
	}
	data = append([]byte(nil), whole...)
	data[len(data)-1] ^= 1 // the footer
	if r := dump(data); !strings.Contains(r.stdout, "isvalid: true\n| offset: 0") || !strings.Contains(r.stderr, "positions 16 to 115: ") {
		t.Errorf("%q, %q", r.stdout, r.stderr)
	}
}

// TestDumpMovedBatch: in a segment that a merge wrote the base offset of a batch means something, and dump says when it is not the one
// that was sealed.
func TestDumpMovedBatch(t *testing.T) {
	s := newShell(t)
	b := batch.NewBuilder(batch.None)
	if err := b.Append(batch.Record{Timestamp: 1000, Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		t.Fatal(err)
	}
	batch.SealPlace(data, 40)
	h, err := batch.Check(data)
	if err != nil {
		t.Fatal(err)
	}
	builder := segments.NewBuilder("c1", "g1-m", 1)
	if err := builder.Add(segments.SpanID{}, data, segments.BatchInfo{Offsets: 1, Records: 1, MinTimestamp: 1000, MaxTimestamp: 1000, LastTimestamp: 1000, CRC: h.CRC,
		ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1}); err != nil {
		t.Fatal(err)
	}
	object, err := builder.Build(func(segments.SpanID) uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "merged.seg")
	whole := segments.Bytes(object)
	for _, at := range []int{-1, 16 + 7, 16 + 13} {
		data := append([]byte(nil), whole...)
		if at >= 0 {
			data[at] ^= 1
		}
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r := s.run("", "dump", file)
		if (r.status == statusFailed) != (at >= 0) || at >= 0 && !strings.Contains(r.stderr, "position 16: batch of ") {
			t.Errorf("byte %d: status %d, %q, %q", at, r.status, r.stdout, r.stderr)
		}
	}
}

func TestDumpRefused(t *testing.T) {
	s := newShell(t)
	s.produceBatch("none")
	file, key := s.segmentFile()
	absent := regexp.MustCompile(`\d\d\.seg`).ReplaceAllString(key, "99.seg")
	for _, c := range []struct {
		args   []string
		status int
		want   string
	}{
		{[]string{"nothing"}, 2, "there is no such file"},
		{[]string{"t@0"}, 2, "want TOPIC/PARTITION@OFFSET"},
		{[]string{"t/0@x"}, 2, "want TOPIC/PARTITION@OFFSET"},
		{[]string{file, "--raw"}, 2, "--raw is for TOPIC/PARTITION@OFFSET"},
		{[]string{"t/0@0", "--raw", "--records"}, 2, "raw"},
		{[]string{"t/0@3"}, 1, "the partition has offsets from 0, and its next one is 3"},
		{[]string{"t/1@0"}, 1, "partitions count from 0"},
		{[]string{"u/0@0"}, 1, `no topic "u"`},
		{[]string{absent}, 1, "99.seg"},
		{[]string{absent, "--data", s.data}, 1, "no such file"},
		{[]string{key, "--segments", "ftp://x"}, 2, "must begin with one of"},
	} {
		r := s.run("", append([]string{"dump"}, c.args...)...)
		if r.status != c.status || !strings.Contains(r.stderr, c.want) || r.stdout != "" {
			t.Errorf("dump %v: status %d, %q, %q", c.args, r.status, r.stdout, r.stderr)
		}
	}
}
