package batch_test

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/snappy/xerial"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/varvelog/varve/segments/batch"
	"pgregory.net/rapid"
)

// kgo holds milliseconds as nanoseconds, which end in the year 2262.
const kgoMaxTimestamp = 9_000_000_000_000

var genKgoRecords = rapid.Map(genRecords, func(records []batch.Record) []batch.Record {
	for i := range records {
		records[i].Timestamp %= kgoMaxTimestamp
	}
	return records
})

var kgoDecompressor = kgo.DefaultDecompressor()

// kgoDecode decodes batches as kgo's consumer does.
func kgoDecode(b []byte) ([]batch.Record, error) {
	partition, _ := kgo.ProcessFetchPartition(
		kgo.ProcessFetchPartitionOpts{Topic: "topic"},
		&kmsg.FetchResponseTopicPartition{RecordBatches: b},
		kgoDecompressor, nil)
	var records []batch.Record
	for _, r := range partition.Records {
		records = append(records, fromKgo(r))
	}
	return records, partition.Err
}

func fromKgo(r *kgo.Record) batch.Record {
	rec := batch.Record{Offset: r.Offset, Timestamp: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value}
	for _, h := range r.Headers {
		rec.Headers = append(rec.Headers, batch.RecordHeader{Key: h.Key, Value: h.Value})
	}
	return rec
}

func TestKgoReadsWhatWeBuild(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		records := genKgoRecords.Draw(t, "records")
		b := batch.NewBuilder(rapid.SampledFrom(codecs).Draw(t, "codec"))
		for i, r := range records {
			if err := b.Append(r); err != nil {
				t.Fatal(err)
			}
			records[i].Offset = 1000 + int64(i)
		}
		out, err := b.Build(genProducer.Draw(t, "producer"))
		if err != nil {
			t.Fatal(err)
		}
		batch.SetBaseOffset(out, 1000, 3)
		got, err := kgoDecode(out)
		if diff := cmp.Diff(records, got); diff != "" || err != nil {
			t.Fatalf("kgo: %v, records (-want +got):\n%s", err, diff)
		}
	})
}

// The stamps are judged by kgo too: what they write must be what it reads.
func TestKgoReadsStampedBatches(t *testing.T) {
	b := build(t, batch.Zstd, batch.NoProducer, dozen()...)
	batch.SetBaseOffset(b, 40, 2)
	batch.SetAppendTime(b, 1_800_000_000_000)
	got, err := kgoDecode(b)
	if err != nil || len(got) != 12 {
		t.Fatalf("kgo reads %d records: %v", len(got), err)
	}
	for i, r := range got {
		if r.Offset != 40+int64(i) || r.Timestamp != 1_800_000_000_000 {
			t.Errorf("record %d: offset %d, timestamp %d", i, r.Offset, r.Timestamp)
		}
	}
}

// kmsgBatch makes a batch with franz-go's encoder and a compressor of the caller.
func kmsgBatch(records []batch.Record, codec batch.Codec, compress func([]byte) []byte) []byte {
	var body []byte
	maxTimestamp := records[0].Timestamp
	for i, r := range records {
		rec := kmsg.Record{
			TimestampDelta64: r.Timestamp - records[0].Timestamp,
			OffsetDelta:      int32(i),
			Key:              r.Key,
			Value:            r.Value,
		}
		for _, h := range r.Headers {
			rec.Headers = append(rec.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		rec.Length = int32(len(rec.AppendTo(nil))) - 1 // without its own byte, which is 0 so far
		body = rec.AppendTo(body)
		maxTimestamp = max(maxTimestamp, r.Timestamp)
	}
	return sealKmsg(kmsg.RecordBatch{
		Attributes:      int16(codec),
		LastOffsetDelta: int32(len(records) - 1),
		FirstTimestamp:  records[0].Timestamp,
		MaxTimestamp:    maxTimestamp,
		ProducerID:      -1,
		ProducerEpoch:   -1,
		FirstSequence:   -1,
		NumRecords:      int32(len(records)),
		Records:         compress(body),
	})
}

// sealKmsg sets magic, length and CRC.
func sealKmsg(rb kmsg.RecordBatch) []byte {
	rb.Magic = 2
	rb.Length = int32(49 + len(rb.Records))
	rb.CRC = int32(crc32.Checksum(rb.AppendTo(nil)[21:], crc32.MakeTable(crc32.Castagnoli)))
	return rb.AppendTo(nil)
}

type compressor struct {
	name     string // for failures
	codec    batch.Codec
	compress func([]byte) []byte
}

func TestWeReadWhatKmsgEncodes(t *testing.T) {
	compressors := rapid.SampledFrom([]compressor{
		{"none", batch.None, func(b []byte) []byte { return b }},
		{"gzip", batch.Gzip, kgoCompress(t, kgo.GzipCompression())},
		{"snappy", batch.Snappy, kgoCompress(t, kgo.SnappyCompression())},
		{"snappy xerial", batch.Snappy, func(b []byte) []byte { return xerial.Encode(nil, b) }},
		{"lz4", batch.LZ4, kgoCompress(t, kgo.Lz4Compression())},
		{"zstd", batch.Zstd, kgoCompress(t, kgo.ZstdCompression())},
	})
	rapid.Check(t, func(t *rapid.T) {
		records := genRecords.Draw(t, "records")
		c := compressors.Draw(t, "compressor")
		b := kmsgBatch(records, c.codec, c.compress)
		if _, err := batch.Validate(b, batch.Limits{}); err != nil {
			t.Fatal(err)
		}
		for i := range records {
			records[i].Offset = int64(i)
		}
		got, err := decode(b, batch.Limits{})
		if diff := cmp.Diff(records, got); diff != "" || err != nil {
			t.Fatalf("%v, records (-want +got):\n%s", err, diff)
		}
	})
}

func kgoCompress(t *testing.T, c kgo.CompressionCodec) func([]byte) []byte {
	compressor, err := kgo.DefaultCompressor(c)
	if err != nil {
		t.Fatal(err)
	}
	return func(b []byte) []byte {
		out, _ := compressor.Compress(new(bytes.Buffer), b)
		return bytes.Clone(out)
	}
}

// A real kgo producer sends to a broker that only listens: its batches, with its own
// choices of framing and streaming, must pass and decode.
func TestWeReadWhatAKgoProducerSends(t *testing.T) {
	for name, codec := range map[string]kgo.CompressionCodec{
		"none":   kgo.NoCompression(),
		"gzip":   kgo.GzipCompression(),
		"snappy": kgo.SnappyCompression(),
		"lz4":    kgo.Lz4Compression(),
		"zstd":   kgo.ZstdCompression(),
	} {
		t.Run(name, func(t *testing.T) {
			broker := newListeningBroker()
			client, err := kgo.NewClient(
				kgo.SeedBrokers("broker:9092"), kgo.Dialer(broker.dial), kgo.MaxVersions(brokerVersions),
				kgo.DefaultProduceTopic("topic"), kgo.ProducerBatchCompression(codec), kgo.ProducerLinger(5*time.Millisecond), kgo.MetadataMinAge(10*time.Millisecond))
			if err != nil {
				t.Fatal(err)
			}
			var sent []*kgo.Record
			for i := range 500 {
				sent = append(sent, &kgo.Record{
					Timestamp: time.UnixMilli(1_700_000_000_000 + int64(i*7919%1000)),
					Key:       []byte{byte(i)},
					Value:     bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 150),
					Headers:   []kgo.RecordHeader{{Key: "n", Value: []byte{byte(i)}}},
				})
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if err := client.ProduceSync(ctx, sent...).FirstErr(); err != nil {
				t.Fatal(errors.Join(err, broker.failed()))
			}
			client.Close()
			compareWithSent(t, sent, broker.taken())
		})
	}
}

func compareWithSent(t *testing.T, sent []*kgo.Record, batches [][]byte) {
	var want, got []batch.Record
	for _, r := range sent {
		r.Offset = int64(len(want))
		want = append(want, fromKgo(r))
	}
	for _, b := range batches {
		info, err := batch.Validate(b, batch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if info.ProducerID != brokerProducerID || int(info.BaseSequence) != len(got) {
			t.Errorf("producer id %d, base sequence %d, want %d, %d", info.ProducerID, info.BaseSequence, brokerProducerID, len(got))
		}
		batch.SetBaseOffset(b, int64(len(got)), 0)
		records, err := decode(b, batch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, records...)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
}
