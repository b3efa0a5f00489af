package batch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/varvelog/varve/segments/batch"
)

// streamed compresses in a stream, so that the size is not told up front.
func streamed(t *testing.T, c batch.Codec, parts ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	switch c {
	case batch.Gzip:
		w = gzip.NewWriter(&out)
	case batch.LZ4:
		w = lz4.NewWriter(&out)
	case batch.Zstd:
		encoder, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
		if err != nil {
			t.Fatal(err)
		}
		w = encoder
	default:
		t.Fatalf("%s has no stream", c)
	}
	for _, p := range parts {
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compressedBatch(c batch.Codec, count int32, records []byte) []byte {
	rb := plain()
	rb.Attributes, rb.NumRecords, rb.LastOffsetDelta, rb.Records = int16(c), count, count-1, records
	return sealKmsg(rb)
}

// A small batch that would inflate to 64 MiB is refused, and the memory on the way
// there follows the limit, not the bomb.
func TestDecompressionBombs(t *testing.T) {
	const bomb = 64 << 20
	zeros := make([]byte, 1<<20)
	parts := make([][]byte, bomb/len(zeros))
	for i := range parts {
		parts[i] = zeros
	}
	whole, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bombs := map[string]struct {
		codec batch.Codec
		bytes []byte
	}{
		"gzip":           {batch.Gzip, streamed(t, batch.Gzip, parts...)},
		"lz4":            {batch.LZ4, streamed(t, batch.LZ4, parts...)},
		"zstd unsized":   {batch.Zstd, streamed(t, batch.Zstd, parts...)},
		"zstd sized":     {batch.Zstd, whole.EncodeAll(bytes.Repeat(zeros, len(parts)), nil)},
		"zstd frames":    {batch.Zstd, bytes.Repeat(whole.EncodeAll(zeros, nil), len(parts))},
		"zstd claims":    {batch.Zstd, []byte("\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x7f\x01\x00\x00")},
		"snappy claims":  {batch.Snappy, []byte("\xff\xff\xff\xff\x0f\x00")},
		"snappy":         {batch.Snappy, s2.EncodeSnappy(nil, bytes.Repeat(zeros, len(parts)))},
		"snappy xerial":  {batch.Snappy, xerial.Encode(nil, bytes.Repeat(zeros, len(parts)))},
		"gzip members":   {batch.Gzip, bytes.Repeat(streamed(t, batch.Gzip, zeros), len(parts))},
		"lz4 frames":     {batch.LZ4, bytes.Repeat(streamed(t, batch.LZ4, zeros), len(parts))},
		"zstd no window": {batch.Zstd, bytes.Repeat(streamed(t, batch.Zstd, zeros), len(parts))},
	}
	limits := batch.Limits{MaxInflatedBytes: 4 << 20, MaxBatchBytes: bomb}
	for name, b := range bombs {
		t.Run(name, func(t *testing.T) {
			b := compressedBatch(b.codec, 2, b.bytes)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, validate := batch.Validate(b, limits)
			_, records := decode(b, limits)
			runtime.ReadMemStats(&after)
			if !errors.Is(validate, batch.ErrTooLarge) || !errors.Is(records, batch.ErrTooLarge) {
				t.Errorf("Validate: %v, Records: %v, want ErrTooLarge", validate, records)
			}
			// Two calls, each with a buffer that doubles up to the limit, and blocks
			// of the codec.
			if used := after.TotalAlloc - before.TotalAlloc; used > 2*3*4<<20+16<<20 {
				t.Errorf("allocated %d MiB for a limit of 4 MiB", used>>20)
			}
		})
	}
}

// Streams in several parts and without a size are legal for these codecs, and other
// libraries read them: so must we.
func TestFramesAndSizes(t *testing.T) {
	var body []byte
	const count = 2000
	for i := range count {
		rest := append(binary.AppendVarint([]byte("\x01"), 300), bytes.Repeat([]byte{byte(i)}, 300)...)
		record := append([]byte{0, 0}, binary.AppendVarint(nil, int64(i))...)
		record = append(append(record, rest...), 0)
		body = append(binary.AppendVarint(body, int64(len(record))), record...)
	}
	half := len(body) / 2
	for _, c := range []batch.Codec{batch.Gzip, batch.LZ4, batch.Zstd} {
		two := append(streamed(t, c, body[:half]), streamed(t, c, body[half:])...)
		for name, records := range map[string][]byte{"one": streamed(t, c, body), "two": two} {
			rb := plain()
			rb.Attributes, rb.NumRecords, rb.LastOffsetDelta, rb.Records = int16(c), count, count-1, records
			rb.MaxTimestamp = rb.FirstTimestamp
			b := sealKmsg(rb)
			// Twice empties the pools: room left by another batch must not be what
			// makes it work.
			runtime.GC()
			runtime.GC()
			info, err := batch.Validate(b, batch.Limits{MaxInflatedBytes: len(body)})
			if err != nil || info.InflatedBytes != len(body) {
				t.Errorf("%s, %s: %d bytes, %v, want %d", c, name, info.InflatedBytes, err, len(body))
			}
			if _, err := batch.Validate(b, batch.Limits{MaxInflatedBytes: len(body) - 1}); !errors.Is(err, batch.ErrTooLarge) {
				t.Errorf("%s, %s: below the size: %v, want ErrTooLarge", c, name, err)
			}
			if got, err := decode(b, batch.Limits{}); err != nil || len(got) != count {
				t.Errorf("%s, %s: %d records, %v", c, name, len(got), err)
			}
			if got, err := kgoDecode(b); err != nil || len(got) != count {
				t.Errorf("%s, %s: kgo, which should read it too: %d records, %v", c, name, len(got), err)
			}
		}
	}
}

func TestDamagedCompression(t *testing.T) {
	records := dozen()
	for _, c := range codecs[1:] {
		good := build(t, c, batch.NoProducer, records...)
		for n := batch.HeaderSize; n < len(good); n++ {
			rb := plain()
			rb.Attributes, rb.NumRecords, rb.LastOffsetDelta, rb.Records = int16(c), 12, 11, good[batch.HeaderSize:n]
			if _, err := batch.Validate(sealKmsg(rb), batch.Limits{}); !errors.Is(err, batch.ErrInvalid) {
				t.Errorf("%s cut to %d bytes: %v, want ErrInvalid", c, n-batch.HeaderSize, err)
			}
		}
	}
}

// What only some libraries read is refused.
func TestDialectsAreRefused(t *testing.T) {
	body := plain().Records
	var legacy bytes.Buffer
	w := lz4.NewWriter(&legacy)
	if err := w.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// A block of S2: "abcdefgh", then a copy with offset 0, which repeats the last
	// offset and which snappy does not have.
	repeat := "\x14\x1cabcdefgh\x11\x08\x11\x00"
	for name, c := range map[string]struct {
		codec batch.Codec
		bytes []byte
	}{
		"lz4 legacy":           {batch.LZ4, legacy.Bytes()},
		"s2 repeat":            {batch.Snappy, []byte(repeat)},
		"xerial without block": {batch.Snappy, []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00")},
		"xerial cut in size":   {batch.Snappy, []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00")},
		"xerial cut in block":  {batch.Snappy, []byte("\x82SNAPPY\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x09ab")},
	} {
		_, err := batch.Validate(compressedBatch(c.codec, 2, c.bytes), batch.Limits{})
		if !errors.Is(err, batch.ErrInvalid) || !strings.Contains(err.Error(), "do not inflate") {
			t.Errorf("%s: %v, want ErrInvalid: do not inflate", name, err)
		}
	}
}

// Coders and scratch are shared: callers at once must not see each other's bytes.
func TestConcurrentUse(t *testing.T) {
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 50 {
				value := bytes.Repeat([]byte{byte(g), byte(i)}, 500)
				b := build(t, codecs[(g+i)%len(codecs)], batch.NoProducer, batch.Record{Value: value}, batch.Record{Value: value})
				if _, err := batch.Validate(b, batch.Limits{}); err != nil {
					t.Error(err)
				}
				for r, err := range batch.Records(b, batch.Limits{}) {
					if err != nil || !bytes.Equal(r.Value, value) {
						t.Errorf("another value, or %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
}
