package batch_test

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/varvelog/varve/segments/batch"
	"pgregory.net/rapid"
)

var codecs = []batch.Codec{batch.None, batch.Gzip, batch.Snappy, batch.LZ4, batch.Zstd}

// genBytes draws null, empty, noise, and what compresses.
var genBytes = rapid.OneOf(
	rapid.Just([]byte(nil)),
	rapid.Just([]byte{}),
	rapid.Map(rapid.Uint64(), noise),
	rapid.Map(rapid.IntRange(1, 5000), func(n int) []byte { return make([]byte, n) }),
)

// noise returns up to 300 bytes that follow from seed: cheaper than to draw each.
func noise(seed uint64) []byte {
	rnd := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, rnd.IntN(300))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

// genTimestamp draws from few values, so that records share them, and from all of time.
var genTimestamp = rapid.OneOf(
	rapid.Int64Range(0, 3),
	rapid.Int64Range(1_700_000_000_000, 1_700_000_100_000),
	rapid.Int64Min(0),
)

var genHeader = rapid.Custom(func(t *rapid.T) batch.RecordHeader {
	return batch.RecordHeader{
		Key:   rapid.SampledFrom([]string{"", "h", "trace-id", "ключ", "\xff"}).Draw(t, "header key"),
		Value: genBytes.Draw(t, "header value"),
	}
})

var genRecord = rapid.Custom(func(t *rapid.T) batch.Record {
	r := batch.Record{
		Timestamp: genTimestamp.Draw(t, "timestamp"),
		Key:       genBytes.Draw(t, "key"),
		Value:     genBytes.Draw(t, "value"),
	}
	if h := rapid.SliceOfN(genHeader, 0, 3).Draw(t, "headers"); len(h) > 0 {
		r.Headers = h
	}
	return r
})

var genRecords = rapid.SliceOfN(genRecord, 1, 12)

var genProducer = rapid.OneOf(
	rapid.Just(batch.NoProducer),
	rapid.Custom(func(t *rapid.T) batch.BuildOptions {
		return batch.BuildOptions{
			ProducerID:    rapid.Int64Min(0).Draw(t, "producer id"),
			ProducerEpoch: rapid.Int16Min(0).Draw(t, "producer epoch"),
			BaseSequence:  rapid.Int32Min(0).Draw(t, "base sequence"),
		}
	}),
)

// build makes a batch or fails the test.
func build(t testing.TB, c batch.Codec, o batch.BuildOptions, records ...batch.Record) []byte {
	t.Helper()
	b := batch.NewBuilder(c)
	for _, r := range records {
		if err := b.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	out, err := b.Build(o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// decode returns the records of a batch and the error that ended them.
func decode(b []byte, l batch.Limits) (records []batch.Record, err error) {
	for r, err := range batch.Records(b, l) {
		if err != nil {
			return records, err
		}
		records = append(records, r)
	}
	return records, nil
}

// reseal makes the CRC of a batch true again after a change.
func reseal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[17:], crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// dozen is a plain batch of records for tests that need any.
func dozen() []batch.Record {
	records := make([]batch.Record, 12)
	for i := range records {
		records[i] = batch.Record{
			Timestamp: 1_700_000_000_000 + int64(i%5)*1000,
			Key:       []byte{'k', byte(i)},
			Value:     make([]byte, 20*i),
			Headers:   []batch.RecordHeader{{Key: "h", Value: []byte("v")}},
		}
	}
	records[3].Key, records[4].Value, records[5].Headers = nil, nil, nil
	return records
}
