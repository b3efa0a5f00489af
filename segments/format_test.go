package segments_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

// parses runs both ways of reading on an object. They agree, except on the header,
// which is not part of what ReadDirectory reads.
func parses(t testing.TB, key string, data []byte) (*segments.Directory, error) {
	t.Helper()
	d, err := segments.ParseDirectory(data)
	read, readErr := segments.ReadDirectory(t.Context(), stored(t, key, data), key)
	if err == nil && readErr != nil {
		t.Errorf("ParseDirectory accepts what ReadDirectory refuses: %v", readErr)
	}
	if err == nil && readErr == nil {
		if diff := cmp.Diff(d, read); diff != "" {
			t.Errorf("ParseDirectory and ReadDirectory differ: %s", diff)
		}
	}
	return d, err
}

func anyInfo() *rapid.Generator[segments.BatchInfo] {
	timestamp := rapid.OneOf(rapid.Int64(), rapid.Int64Range(1_700_000_000_000, 1_700_000_100_000))
	return rapid.Custom(func(t *rapid.T) segments.BatchInfo {
		info := plain(rapid.Int32Range(1, math.MaxInt32).Draw(t, "offsets"))
		info.CRC = rapid.Uint32().Draw(t, "crc")
		info.MinTimestamp, info.MaxTimestamp = timestamp.Draw(t, "min"), timestamp.Draw(t, "max")
		info.LastTimestamp = timestamp.Draw(t, "last")
		if rapid.Bool().Draw(t, "compacted") {
			info.Records = rapid.Int32Range(0, math.MaxInt32).Draw(t, "records")
		}
		if rapid.Bool().Draw(t, "has producer") {
			info.ProducerID = rapid.Int64().Draw(t, "producer")
			info.ProducerEpoch = rapid.Int16().Draw(t, "epoch")
			info.BaseSequence = rapid.Int32().Draw(t, "sequence")
		}
		if rapid.Bool().Draw(t, "buffered") {
			info.Ack = segments.AckBuffered
		}
		if rapid.Bool().Draw(t, "conditional") {
			info.ExpectedOffset = rapid.Int64Range(0, math.MaxInt64).Draw(t, "expected offset")
		}
		if info.HasFencingToken = rapid.Bool().Draw(t, "has token"); info.HasFencingToken {
			info.FencingToken = rapid.SampledFrom([]string{"", "a", "b", strings.Repeat("t", 256)}).Draw(t, "token")
		}
		return info
	})
}

// What is built is read back, spans and batches tile the object, and the bytes are
// where the directory says.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		number := rapid.Uint64Range(1, math.MaxUint64).Draw(r, "number")
		b := segments.NewBuilder(testCluster, testGateway, number)
		want := map[segments.SpanID][]string{}
		for i := range rapid.IntRange(1, 60).Draw(r, "batches") {
			id := segments.SpanID{
				Topic:     topic(byte(rapid.IntRange(0, 3).Draw(r, "topic")), 0),
				Partition: rapid.SampledFrom([]int32{0, 1, 2, 9, 1000, math.MaxInt32}).Draw(r, "partition"),
			}
			data := fmt.Sprintf("%d:%s", i, strings.Repeat("x", rapid.IntRange(0, 300).Draw(r, "size")))
			if err := b.Add(id, []byte(data), anyInfo().Draw(r, "info")); err != nil {
				r.Fatal(err)
			}
			want[id] = append(want[id], data)
		}
		previous := map[segments.SpanID]uint64{}
		object, err := b.Build(func(id segments.SpanID) uint64 {
			previous[id] = rapid.Uint64Range(0, number-1).Draw(r, "previous")
			return previous[id]
		})
		if err != nil {
			r.Fatal(err)
		}
		data := segments.Bytes(object)
		d, err := parses(t, object.Key(), data)
		if err != nil {
			r.Fatal(err)
		}
		if diff := cmp.Diff(&object.Directory, d); diff != "" {
			r.Fatalf("read back: %s", diff)
		}
		checkTiles(r, d, data, want, previous)
	})
}

func checkTiles(t *rapid.T, d *segments.Directory, data []byte, want map[segments.SpanID][]string, previous map[segments.SpanID]uint64) {
	if len(d.Spans) != len(want) || !slices.IsSortedFunc(d.Spans, func(a, b segments.Span) int { return a.Compare(b.SpanID) }) {
		t.Fatalf("%d spans of %d, sorted?", len(d.Spans), len(want))
	}
	position := int64(16)
	for id, b := range d.Batches() {
		if string(data[b.Position:b.Position+int64(b.Size)]) != want[id][0] {
			t.Fatalf("Batches starts with %v at %d", id, b.Position)
		}
		break
	}
	for _, span := range d.Spans {
		if span.Position != position || span.Previous != previous[span.SpanID] {
			t.Fatalf("span %v at %d, previous %d; want %d, %d", span.SpanID, span.Position, span.Previous, position, previous[span.SpanID])
		}
		var got []string
		for _, b := range span.Batches {
			if b.Position != position {
				t.Fatalf("batch of %v at %d, want %d", span.SpanID, b.Position, position)
			}
			position += int64(b.Size)
			got = append(got, string(data[b.Position:position]))
		}
		if span.Position+span.Length != position || !slices.Equal(got, want[span.SpanID]) {
			t.Fatalf("span %v ends at %d with %q", span.SpanID, span.Position+span.Length, got)
		}
		if found, ok := d.Span(span.SpanID); !ok || found.Position != span.Position {
			t.Fatalf("Span(%v) = %v, %v", span.SpanID, found, ok)
		}
	}
}

// Each flipped byte of header, directory and footer is noticed, whatever it is
// flipped to.
func TestFlippedBytes(t *testing.T) {
	for name, batches := range samples() {
		object := buildSample(t, batches)
		good := segments.Bytes(object)
		last := object.Directory.Spans[len(object.Directory.Spans)-1]
		end := last.Position + last.Length
		for i := range good {
			if i >= 16 && int64(i) < end {
				continue // batches have checksums of their own
			}
			for _, flip := range []byte{1, 0x80, 0xff} {
				bad := bytes.Clone(good)
				bad[i] ^= flip
				_, err := parses(t, object.Key(), bad)
				if !errors.Is(err, segments.ErrCorrupt) && !errors.Is(err, segments.ErrVersion) {
					t.Errorf("%s: byte %d of %d ^ %#x: %v", name, i, len(good), flip, err)
				}
			}
		}
	}
}

// An object that ends early, or goes on, is damaged.
func TestWrongSize(t *testing.T) {
	object := buildSample(t, samples()["many"])
	good := segments.Bytes(object)
	for n := range good {
		if _, err := parses(t, object.Key(), good[:n]); !errors.Is(err, segments.ErrCorrupt) {
			t.Errorf("first %d bytes: %v", n, err)
		}
		if n == 0 {
			continue
		}
		if _, err := parses(t, object.Key(), good[n:]); !errors.Is(err, segments.ErrCorrupt) {
			t.Errorf("without the first %d bytes: %v", n, err)
		}
	}
	for _, bad := range [][]byte{append(bytes.Clone(good), 0), append(make([]byte, 1), good...), append(bytes.Clone(good), good...)} {
		if _, err := parses(t, object.Key(), bad); !errors.Is(err, segments.ErrCorrupt) {
			t.Errorf("%d bytes instead of %d: %v", len(bad), len(good), err)
		}
	}
}

// Lies that carry right checksums are refused too.
func TestRefusedDirectories(t *testing.T) {
	start := func(number ...byte) []byte {
		return append([]byte("\x01c\x01g"), number...)
	}
	topicOne := string(bytes.Repeat([]byte{1}, 16))
	const batch = "\x00\x05\x01\x00\x00\x00CRC_"
	good := string(start(9)) + "\x01" + topicOne + "\x01\x00\x00\x01" + batch
	tests := []struct {
		name, directory string
		spans, batches  int
		want            string // "" accepts
	}{
		{"good", good, 1, 1, ""},
		{"empty", "", 0, 0, "ends early"},
		{"left over", good + "\x00", 1, 1, "left over"},
		{"number 0", strings.Replace(good, "\x09", "\x00", 1), 1, 1, "number is 0"},
		{"long number", strings.Replace(good, "\x09", "\x89\x00", 1), 1, 1, "shortest"},
		{"huge number", strings.Replace(good, "\x09", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", 1), 1, 1, "shortest"},
		{"bad cluster", strings.Replace(good, "c", "/", 1), 1, 1, "cluster id"},
		{"bad gateway", strings.Replace(good, "g", ".", 1), 1, 1, "gateway id"},
		{"no cluster", strings.Replace(good, "\x01c", "\x00", 1), 1, 1, "cluster id"},
		{"long cluster", "\x41" + strings.Repeat("c", 65) + good[2:], 1, 1, "length of cluster id"},
		{"no topics", string(start(9)) + "\x00" + strings.Repeat("x", 40), 0, 0, "count of topics is 0"},
		{"many topics", string(start(9)) + "\x7f" + good[6:], 1, 1, "count of topics"},
		{"fewer spans", good, 0, 0, "spans"},
		{"more spans", good, 2, 2, "spans"},
		{"more batches", good, 1, 2, "footer counts"},
		{"span of its own future", strings.Replace(good, topicOne+"\x01\x00\x00", topicOne+"\x01\x00\x09", 1), 1, 1, "distance"},
		{"span without batches", strings.Replace(good, topicOne+"\x01\x00\x00\x01", topicOne+"\x01\x00\x00\x00", 1), 1, 1, "batches is 0"},
		{"many batches", strings.Replace(good, topicOne+"\x01\x00\x00\x01", topicOne+"\x01\x00\x00\x7f", 1), 1, 1, "count of batches"},
		{"unknown flag", strings.Replace(good, batch, "\x40"+batch[1:], 1), 1, 1, "flags"},
		{"new token without token", strings.Replace(good, batch, "\x10"+batch[1:], 1), 1, 1, "flags"},
		{"token before any", strings.Replace(good, batch, "\x08"+batch[1:], 1), 1, 1, "before one was given"},
		{"empty batch", strings.Replace(good, batch, "\x00\x00"+batch[2:], 1), 1, 1, "size of a batch is 0"},
		{"smaller batch", strings.Replace(good, batch, "\x00\x04"+batch[2:], 1), 1, 1, "spans end at 20"},
		{"larger batch", strings.Replace(good, batch, "\x00\x06"+batch[2:], 1), 1, 1, "spans end at 22"},
		{"no offsets", strings.Replace(good, batch, "\x00\x05\x00"+batch[3:], 1), 1, 1, "offsets of a batch is 0"},
		{"records as offsets", strings.Replace(good, batch, "\x20\x05\x01\x01"+batch[3:], 1), 1, 1, "no other number"},
		{"no producer", strings.Replace(good, batch, "\x02"+batch[1:]+"\x01\x01\x01", 1), 1, 1, "it is none"},
		{"producer", strings.Replace(good, batch, "\x02"+batch[1:]+"\x00\x00\x00", 1), 1, 1, ""},
		{"epoch out of range", strings.Replace(good, batch, "\x02"+batch[1:]+"\x00\x80\x80\x04\x00", 1), 1, 1, "epoch"},
		{"negative expected offset", strings.Replace(good, batch, "\x04"+batch[1:]+"\x01", 1), 1, 1, "expected offset"},
		{"long token", strings.Replace(good, batch, "\x18"+batch[1:]+"\x81\x02", 1), 1, 1, "fencing token"},
		{"same token again", strings.Replace(good, "\x01"+batch, "\x02\x18"+batch[1:]+"\x01t\x18"+batch[1:]+"\x01t", 1), 1, 2, "twice"},
		{"same topic again", strings.Replace(good, "\x09\x01", "\x09\x02", 1) + good[6:], 2, 2, "out of order"},
		{"partition too high", strings.Replace(good, topicOne+"\x01\x00", topicOne+"\x01\x80\x80\x80\x80\x08", 1), 1, 1, "partition"},
		{"second partition too high", strings.Replace(good, topicOne+"\x01\x00", topicOne+"\x02\xff\xff\xff\xff\x07", 1) + "\x00\x00\x01" + batch, 2, 2, "partition"},
		{"cut in a token", strings.Replace(good, batch, "\x18"+batch[1:]+"\x05t", 1), 1, 1, "ends early"},
	}
	for _, test := range tests {
		object := wrap([]byte(test.directory), test.spans, test.batches)
		_, err := segments.ParseDirectory(object)
		if test.want == "" {
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if !errors.Is(err, segments.ErrCorrupt) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want ErrCorrupt with %q", test.name, err, test.want)
		}
	}
}

// wrap makes a segment with five bytes of batches around a directory, with right
// checksums.
func wrap(directory []byte, spans, batches int) []byte {
	out := append([]byte("VARVESEG\x00\x00\x00\x01\x00\x00\x00\x00"), "batch"...)
	position := len(out)
	out = append(out, directory...)
	table := crc32.MakeTable(crc32.Castagnoli)
	var footer []byte
	footer = binary.BigEndian.AppendUint64(footer, uint64(position))
	footer = binary.BigEndian.AppendUint32(footer, uint32(len(directory)))
	footer = binary.BigEndian.AppendUint32(footer, crc32.Checksum(directory, table))
	footer = binary.BigEndian.AppendUint32(footer, uint32(spans))
	footer = binary.BigEndian.AppendUint32(footer, uint32(batches))
	footer = binary.BigEndian.AppendUint64(footer, uint64(len(out)+48))
	end := []byte("\x00\x00\x00\x01VARVEEND")
	sum := crc32.Checksum(append(bytes.Clone(footer), end...), table)
	return append(out, append(binary.BigEndian.AppendUint32(footer, sum), end...)...)
}

// A footer that contradicts itself is refused even if its checksum is right.
func TestRefusedFooters(t *testing.T) {
	object := buildSample(t, samples()["one"])
	tests := []struct {
		name   string
		offset int // in the footer
		value  uint64
		size   int
		want   string
	}{
		{"position early", 0, 15, 8, "does not end at the footer"},
		{"position late", 0, 24, 8, "does not end at the footer"},
		{"position huge", 0, math.MaxUint64, 8, "does not end at the footer"},
		{"length short", 8, 5, 4, "does not end at the footer"},
		{"length huge", 8, 16<<20 + 1, 4, "the most is 16777216"},
		{"more spans than batches", 16, 2, 4, "2 spans and 1 batches"},
		{"too many batches", 20, 1<<20 + 1, 4, "1048577 batches"},
		{"size", 24, 1, 8, "says the object has 1 bytes"},
		{"version 0", 36, 0, 4, "version 0"},
	}
	for _, test := range tests {
		data := segments.Bytes(object)
		footer := data[len(data)-48:]
		copy(footer[test.offset:], binary.BigEndian.AppendUint64(nil, test.value)[8-test.size:])
		table := crc32.MakeTable(crc32.Castagnoli)
		binary.BigEndian.PutUint32(footer[32:], crc32.Update(crc32.Checksum(footer[:32], table), table, footer[36:]))
		if _, err := parses(t, object.Key(), data); !errors.Is(err, segments.ErrCorrupt) || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestNewerVersion(t *testing.T) {
	object := buildSample(t, samples()["one"])
	data := segments.Bytes(object)
	data[len(data)-9] = 7
	_, err := parses(t, object.Key(), data)
	if !errors.Is(err, segments.ErrVersion) || errors.Is(err, segments.ErrCorrupt) ||
		!strings.Contains(err.Error(), "version 7") || !strings.Contains(err.Error(), "up to 1") {
		t.Errorf("newer footer: %v", err)
	}
}

func TestMisplacedObject(t *testing.T) {
	object := buildSample(t, samples()["one"])
	for _, key := range []string{
		segments.ObjectKey(testCluster, testGateway, 42), segments.ObjectKey("other", testGateway, 41),
		segments.ObjectKey(testCluster, "other", 41), "anywhere",
	} {
		_, err := segments.ReadDirectory(t.Context(), stored(t, key, segments.Bytes(object)), key)
		if !errors.Is(err, segments.ErrCorrupt) || !strings.Contains(err.Error(), object.Key()) {
			t.Errorf("under %s: %v, want ErrCorrupt that names %s", key, err, object.Key())
		}
	}
}

// One read opens a segment of few batches, two one of many; a short answer is not
// damage.
func TestReads(t *testing.T) {
	for _, test := range []struct{ spans, reads int }{{1, 1}, {1000, 1}, {5000, 2}} {
		object := manySpans(t, test.spans, 1)
		store := storetest.NewFaulty(stored(t, object.Key(), segments.Bytes(object)))
		d, err := segments.ReadDirectory(t.Context(), store, object.Key())
		if err != nil || len(d.Spans) != test.spans || store.Calls(storetest.Get) != test.reads {
			t.Errorf("%d spans: %d reads, %v; want %d", test.spans, store.Calls(storetest.Get), err, test.reads)
		}
		for read := range test.reads {
			store.Next(storetest.Get, make([]storetest.Fault, read)...)
			store.Next(storetest.Get, storetest.Fault{Data: func(data []byte) []byte { return data[:len(data)-1] }})
			if _, err := segments.ReadDirectory(t.Context(), store, object.Key()); !errors.Is(err, segments.ErrUnavailable) {
				t.Errorf("%d spans, read %d is short: %v", test.spans, read, err)
			}
		}
	}
	if _, err := segments.ReadDirectory(t.Context(), memstore.New(), "c/g/1.seg"); !errors.Is(err, segments.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
}

// What a batch and a span cost in the directory; the limits are those that
// docs/segment-format.md and docs/performance.md name.
func TestDirectorySize(t *testing.T) {
	size := func(spans, batches int, change func(i int, info *segments.BatchInfo)) int {
		b := segments.NewBuilder(testCluster, testGateway, 1000)
		for i := range spans * batches {
			info := plain(100)
			info.MaxTimestamp += int64(i)
			info.LastTimestamp += int64(i)
			change(i, &info)
			if err := b.Add(segments.SpanID{Topic: topic(1, 1), Partition: int32(i % spans)}, make([]byte, 20_000), info); err != nil {
				t.Fatal(err)
			}
		}
		object, err := b.Build(func(segments.SpanID) uint64 { return 990 })
		if err != nil {
			t.Fatal(err)
		}
		last := object.Directory.Spans[spans-1]
		return int(object.Size() - last.Position - last.Length - 48)
	}
	none := func(int, *segments.BatchInfo) {}
	producer := func(i int, info *segments.BatchInfo) {
		info.ProducerID, info.ProducerEpoch, info.BaseSequence = int64(1000+i%50), 0, int32(i*100)
	}
	const n = 1000
	one := size(1, 1, none)
	perBatch := float64(size(1, n, none)-one) / (n - 1)
	perProducerBatch := float64(size(1, n, producer)-one) / (n - 1)
	perSpan := float64(size(n, 1, none)-one)/(n-1) - perBatch
	t.Logf("bytes: %d for one batch, %.1f a plain batch, %.1f with a producer, %.1f more a span", one, perBatch, perProducerBatch, perSpan)
	if perBatch > 18 || perProducerBatch > 25 || perSpan > 4 {
		t.Error("the directory has grown")
	}
}

// Building and reading the largest flush takes linear time.
func TestManySpans(t *testing.T) {
	start := time.Now()
	object := manySpans(t, 10_000, 4)
	if _, err := segments.ParseDirectory(segments.Bytes(object)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("10,000 spans of 4 batches took %v", took)
	}
}

func TestBuilderRefuses(t *testing.T) {
	id := segments.SpanID{Topic: topic(1, 1)}
	change := func(f func(*segments.BatchInfo)) segments.BatchInfo {
		info := plain(1)
		f(&info)
		return info
	}
	for name, add := range map[string]func(*segments.Builder) error{
		"no bytes":           func(b *segments.Builder) error { return b.Add(id, nil, plain(1)) },
		"negative partition": func(b *segments.Builder) error { return b.Add(segments.SpanID{Partition: -1}, []byte("x"), plain(1)) },
		"no offsets":         func(b *segments.Builder) error { return b.Add(id, []byte("x"), plain(0)) },
		"negative records": func(b *segments.Builder) error {
			return b.Add(id, []byte("x"), change(func(i *segments.BatchInfo) { i.Records = -1 }))
		},
		"unknown ack": func(b *segments.Builder) error {
			return b.Add(id, []byte("x"), change(func(i *segments.BatchInfo) { i.Ack = 2 }))
		},
		"expected offset": func(b *segments.Builder) error {
			return b.Add(id, []byte("x"), change(func(i *segments.BatchInfo) { i.ExpectedOffset = -2 }))
		},
		"long token": func(b *segments.Builder) error {
			return b.Add(id, []byte("x"), change(func(i *segments.BatchInfo) {
				i.HasFencingToken, i.FencingToken = true, strings.Repeat("t", 257)
			}))
		},
		"token without flag": func(b *segments.Builder) error {
			return b.Add(id, []byte("x"), change(func(i *segments.BatchInfo) { i.FencingToken = "t" }))
		},
	} {
		b := segments.NewBuilder(testCluster, testGateway, 1)
		if add(b) == nil || b.Batches() != 0 || b.Spans() != 0 || b.Bytes() != 0 {
			t.Errorf("%s: added; %d batches", name, b.Batches())
		}
	}
	none := func(segments.SpanID) uint64 { return 0 }
	for name, build := range map[string]func() (*segments.Object, error){
		"empty": func() (*segments.Object, error) {
			return segments.NewBuilder(testCluster, testGateway, 1).Build(none)
		},
		"number":  func() (*segments.Object, error) { return oneBatch(testCluster, testGateway, 0).Build(none) },
		"cluster": func() (*segments.Object, error) { return oneBatch("", testGateway, 1).Build(none) },
		"gateway": func() (*segments.Object, error) { return oneBatch(testCluster, "a/b", 1).Build(none) },
		"previous": func() (*segments.Object, error) {
			return oneBatch(testCluster, testGateway, 1).Build(func(segments.SpanID) uint64 { return 1 })
		},
	} {
		if _, err := build(); err == nil {
			t.Errorf("%s: built", name)
		}
	}
}

func oneBatch(cluster segments.ClusterID, gateway segments.GatewayID, number uint64) *segments.Builder {
	b := segments.NewBuilder(cluster, gateway, number)
	if err := b.Add(segments.SpanID{}, []byte("x"), plain(1)); err != nil {
		panic(err)
	}
	return b
}

// A full segment says so, and what it holds can still be built.
func TestBuilderFull(t *testing.T) {
	b := segments.NewBuilder(testCluster, testGateway, math.MaxUint64)
	data := []byte("x")
	for {
		i := b.Batches()
		info := plain(math.MaxInt32)
		info.Records, info.HasFencingToken = 1, true
		info.FencingToken = fmt.Sprintf("%0256d", i)
		info.MinTimestamp, info.LastTimestamp = math.MinInt64, math.MinInt64
		info.MaxTimestamp = math.MaxInt64 >> (i % 2 * 63)
		id := segments.SpanID{Topic: segments.TopicID(binary.BigEndian.AppendUint64(make([]byte, 8), uint64(i)))}
		if err := b.Add(id, data, info); err != nil {
			if !errors.Is(err, segments.ErrTooLarge) {
				t.Fatal(err)
			}
			break
		}
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return 1 })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := segments.ParseDirectory(segments.Bytes(object)); err != nil {
		t.Errorf("segment of %d batches, %d bytes: %v", b.Batches(), object.Size(), err)
	}
}

// Whatever the bytes: no panic, memory in proportion to them, and what is accepted
// is what the builder would write.
func FuzzParseDirectory(f *testing.F) {
	for _, batches := range samples() {
		data := segments.Bytes(buildSample(f, batches))
		d, err := segments.ParseDirectory(data)
		if err != nil {
			f.Fatal(err)
		}
		last := d.Spans[len(d.Spans)-1]
		f.Add(data[last.Position+last.Length:len(data)-48], uint16(len(d.Spans)), uint16(d.BatchCount()))
	}
	f.Fuzz(func(t *testing.T, directory []byte, spans, batches uint16) {
		object := wrap(directory, int(spans), int(batches))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := segments.ParseDirectory(object)
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > 20*uint64(len(object))+64<<10 {
			t.Errorf("%d bytes took %d of memory", len(object), used)
		}
		if err != nil && !errors.Is(err, segments.ErrCorrupt) {
			t.Errorf("%v is not ErrCorrupt", err)
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	for _, spans := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprint(spans), func(b *testing.B) {
			for b.Loop() {
				manySpans(b, spans, 4)
			}
		})
	}
}
