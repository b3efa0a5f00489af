package batch_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/varvelog/varve/segments/batch"
)

var update = flag.Bool("update", false, "write the golden files again")

// golden are the batches of testdata. The files are kept for ever: bytes that a
// reader understood once, it must always understand. -update is for new ones.
func golden(t *testing.T) map[string][]byte {
	records := []batch.Record{
		{Timestamp: 1_700_000_000_000, Key: []byte("quake-1"), Value: []byte(`{"mag":4.2,"place":"off the coast"}`)},
		{Timestamp: 1_700_000_000_250, Key: []byte("quake-2"), Value: nil},
		{Timestamp: 1_699_999_999_999, Key: nil, Value: []byte{}, Headers: []batch.RecordHeader{{Key: "source", Value: []byte("usgs")}, {Key: "", Value: nil}}},
		{Timestamp: 1_700_000_060_000, Key: []byte{}, Value: bytes.Repeat([]byte("strata "), 40)},
	}
	producer := batch.BuildOptions{ProducerID: 4242, ProducerEpoch: 3, BaseSequence: 100}
	files := map[string][]byte{"snappy-xerial": kmsgBatch(records, batch.Snappy, func(b []byte) []byte { return xerial.Encode(nil, b) })}
	for _, c := range codecs {
		b := build(t, c, producer, records...)
		batch.SetBaseOffset(b, 1_000_000, 7)
		files[c.String()] = b
	}
	appended := build(t, batch.None, batch.NoProducer, records...)
	batch.SetAppendTime(appended, 1_800_000_000_000)
	files["append-time"] = appended
	untimed := bytes.Clone(build(t, batch.None, batch.NoProducer, batch.Record{Timestamp: batch.NoTimestamp, Value: []byte("when?")}))
	files["untimed"] = untimed
	files["sealed"] = bytes.Clone(build(t, batch.None, producer, records...))
	batch.SealPlace(files["sealed"], 1_000_000)
	return files
}

func TestGoldenFiles(t *testing.T) {
	for name, built := range golden(t) {
		path := filepath.Join("testdata", name+".batch")
		if *update {
			write(t, path, built)
			write(t, path+".txt", []byte(dump(t, built)))
		}
		stored, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(path + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), dump(t, stored)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		// Compressors may change how they pack, not what they hold.
		if h, _ := batch.ParseHeader(stored); h.Codec() == batch.None && !bytes.Equal(built, stored) {
			t.Errorf("%s: the builder writes other bytes than it did", name)
		}
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// dump writes out a batch for people.
func dump(t *testing.T, b []byte) string {
	t.Helper()
	info, err := batch.Validate(b, batch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "base offset %d, leader epoch %d, size %d, CRC %08x, content sum %016x\n", info.BaseOffset, info.LeaderEpoch, info.Size(), info.CRC, batch.ContentSum(info.Header))
	if info.CheckPlace() == nil {
		fmt.Fprintf(&s, "sealed at its base offset\n")
	}
	fmt.Fprintf(&s, "codec %s, inflated %d, append time %t, untimed %t\n", info.Codec(), info.InflatedBytes, info.AppendTime(), info.Untimed)
	fmt.Fprintf(&s, "count %d, last offset delta %d\n", info.Count, info.LastOffsetDelta)
	fmt.Fprintf(&s, "timestamps: base %d, least %d, last %d, max %d\n", info.BaseTimestamp, info.MinTimestamp, info.LastTimestamp, info.MaxTimestamp)
	fmt.Fprintf(&s, "producer id %d, epoch %d, base sequence %d\n", info.ProducerID, info.ProducerEpoch, info.BaseSequence)
	for r, err := range batch.Records(b, batch.Limits{}) {
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&s, "\noffset %d, timestamp %d\n  key   %s\n  value %s\n", r.Offset, r.Timestamp, quote(r.Key), quote(r.Value))
		for _, h := range r.Headers {
			fmt.Fprintf(&s, "  header %q: %s\n", h.Key, quote(h.Value))
		}
	}
	return s.String()
}

func quote(b []byte) string {
	if b == nil {
		return "null"
	}
	return fmt.Sprintf("%q", b)
}
