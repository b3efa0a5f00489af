package batch_test

import (
	"hash/crc32"
	"math/rand/v2"
	"testing"

	"github.com/varvelog/varve/segments/batch"
)

// mebibyte returns records of 1 KiB, of text-like bytes, that make up 1 MiB.
func mebibyte() []batch.Record {
	rnd := rand.New(rand.NewPCG(1, 2))
	records := make([]batch.Record, 1<<10)
	for i := range records {
		value := make([]byte, 1<<10)
		for at := 0; at < len(value); {
			word := noise(rnd.Uint64N(200))
			at += copy(value[at:], word[:min(len(word), 12)])
			if at < len(value) {
				value[at] = ' '
				at++
			}
		}
		records[i] = batch.Record{Timestamp: 1_700_000_000_000 + int64(i), Value: value}
	}
	return records
}

func TestValidateAllocatesNothingForAPlainBatch(t *testing.T) {
	b := build(t, batch.None, batch.NoProducer, dozen()...)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := batch.Validate(b, batch.Limits{}); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a call", n)
	}
}

// Pools may be emptied at any time, so a call may allocate its scratch, but never
// something a record.
func TestValidateAllocatesNothingARecord(t *testing.T) {
	records := mebibyte()
	for _, c := range codecs[1:] {
		b := build(t, c, batch.NoProducer, records...)
		if n := testing.AllocsPerRun(10, func() {
			if _, err := batch.Validate(b, batch.Limits{}); err != nil {
				t.Fatal(err)
			}
		}); n > 64 {
			t.Errorf("%s: %v allocations a call of %d records", c, n, len(records))
		}
	}
}

func BenchmarkValidate(b *testing.B) {
	records := mebibyte()
	for _, c := range codecs {
		in := build(b, c, batch.NoProducer, records...)
		b.Run(c.String(), func(b *testing.B) {
			b.SetBytes(1 << 20) // of records, so that codecs can be compared
			b.ReportAllocs()
			for b.Loop() {
				if _, err := batch.Validate(in, batch.Limits{}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(in))/(1<<20), "ratio")
		})
	}
}

// BenchmarkCRC is the floor of BenchmarkValidate/none.
func BenchmarkCRC(b *testing.B) {
	in := build(b, batch.None, batch.NoProducer, mebibyte()...)
	table := crc32.MakeTable(crc32.Castagnoli)
	b.SetBytes(1 << 20)
	for b.Loop() {
		crc32.Checksum(in, table)
	}
}

func BenchmarkRecords(b *testing.B) {
	records := mebibyte()
	for _, c := range codecs {
		in := build(b, c, batch.NoProducer, records...)
		b.Run(c.String(), func(b *testing.B) {
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range batch.Records(in, batch.Limits{}) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func BenchmarkBuild(b *testing.B) {
	records := mebibyte()
	for _, c := range codecs {
		builder := batch.NewBuilder(c)
		b.Run(c.String(), func(b *testing.B) {
			b.SetBytes(1 << 20)
			b.ReportAllocs()
			for b.Loop() {
				builder.Reset()
				for _, r := range records {
					if err := builder.Append(r); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := builder.Build(batch.NoProducer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
