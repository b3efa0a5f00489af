package batch_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/varvelog/varve/segments/batch"
)

// plain is a batch of two records with timestamps 5 and 7 as kmsg fields, to be bent.
func plain() kmsg.RecordBatch {
	return kmsg.RecordBatch{
		LastOffsetDelta: 1,
		FirstTimestamp:  5,
		MaxTimestamp:    7,
		ProducerID:      -1,
		ProducerEpoch:   -1,
		FirstSequence:   -1,
		NumRecords:      2,
		Records:         append(rawRecord(0, 0, "\x02a\x02b\x00"), rawRecord(2, 1, "\x01\x01\x00")...),
	}
}

// rawRecord encodes a record whose deltas are small and not negative, with the rest
// (key, value, headers) as given.
func rawRecord(timestampDelta, offsetDelta byte, rest string) []byte {
	body := append([]byte{0, timestampDelta << 1, offsetDelta << 1}, rest...)
	return append(binary.AppendVarint(nil, int64(len(body))), body...)
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		name string
		bend func(*kmsg.RecordBatch)
		want error  // nil: accepted
		says string // in the error's text
	}{
		{"as it is", func(*kmsg.RecordBatch) {}, nil, ""},
		{"no records", func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta, b.Records = 0, 0, nil }, batch.ErrInvalid, "no records"},
		{"count negative", func(b *kmsg.RecordBatch) { b.NumRecords = -1 }, batch.ErrInvalid, "count of records is -1"},
		{"count too small", func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = 1, 0 }, batch.ErrInvalid, "follow record 0"},
		{"count too large", func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = 3, 2 }, batch.ErrInvalid, "2 records where the header says 3"},
		{"count huge", func(b *kmsg.RecordBatch) { b.NumRecords, b.LastOffsetDelta = 1<<31-1, 1<<31-2 }, batch.ErrTooLarge, "limit"},
		{"last offset delta off", func(b *kmsg.RecordBatch) { b.LastOffsetDelta = 2 }, batch.ErrInvalid, "dense"},
		{"last offset delta negative", func(b *kmsg.RecordBatch) { b.LastOffsetDelta = -1 }, batch.ErrInvalid, "last offset delta is -1"},
		{"offset gap", func(b *kmsg.RecordBatch) {
			b.Records = append(rawRecord(0, 0, "\x01\x01\x00"), rawRecord(2, 2, "\x01\x01\x00")...)
		}, batch.ErrInvalid, "record 1 at byte 7"},
		{"offset twice", func(b *kmsg.RecordBatch) {
			b.Records = append(rawRecord(0, 0, "\x01\x01\x00"), rawRecord(2, 0, "\x01\x01\x00")...)
		}, batch.ErrInvalid, "offset delta is 0"},
		{"max timestamp too large", func(b *kmsg.RecordBatch) { b.MaxTimestamp = 8 }, batch.ErrInvalid, "largest timestamp of the records is 7"},
		{"max timestamp too small", func(b *kmsg.RecordBatch) { b.MaxTimestamp = 5 }, batch.ErrInvalid, "largest timestamp"},
		{"max timestamp none", func(b *kmsg.RecordBatch) { b.MaxTimestamp = -1 }, batch.ErrInvalid, "largest timestamp"},
		{"timestamp negative", func(b *kmsg.RecordBatch) { b.FirstTimestamp = -2 }, batch.ErrInvalid, "record 0 at byte 0"},
		{"timestamp overflows", func(b *kmsg.RecordBatch) { b.FirstTimestamp = 1<<63 - 2 }, batch.ErrInvalid, "timestamp is -9223372036854775808"},
		{"append time", func(b *kmsg.RecordBatch) { b.Attributes, b.MaxTimestamp = 8, 99 }, nil, ""},
		{"append time negative", func(b *kmsg.RecordBatch) { b.Attributes, b.MaxTimestamp = 8, -9 }, batch.ErrInvalid, "timestamp"},
		{"transactional", func(b *kmsg.RecordBatch) { b.Attributes = 16 }, batch.ErrInvalid, "transactional"},
		{"control", func(b *kmsg.RecordBatch) { b.Attributes = 32 }, batch.ErrInvalid, "control"},
		{"delete horizon", func(b *kmsg.RecordBatch) { b.Attributes = 64 }, batch.ErrUnsupported, "0x0040"},
		{"unknown attribute", func(b *kmsg.RecordBatch) { b.Attributes = -1 << 15 }, batch.ErrUnsupported, "0x8000"},
		{"unknown codec", func(b *kmsg.RecordBatch) { b.Attributes = 5 }, batch.ErrUnsupported, "codec 5"},
		{"producer id below none", func(b *kmsg.RecordBatch) { b.ProducerID = -2 }, batch.ErrInvalid, "producer id is -2"},
		{"producer without sequence", func(b *kmsg.RecordBatch) { b.ProducerID, b.ProducerEpoch = 1, 0 }, batch.ErrInvalid, "base sequence -1"},
		{"producer", func(b *kmsg.RecordBatch) { b.ProducerID, b.ProducerEpoch, b.FirstSequence = 1, 0, 0 }, nil, ""},
		{"none with epoch", func(b *kmsg.RecordBatch) { b.ProducerEpoch, b.FirstSequence = 0, 0 }, nil, ""},
		{"bytes after the records", func(b *kmsg.RecordBatch) { b.Records = append(b.Records, 0) }, batch.ErrInvalid, "1 bytes follow record 1"},
		{"record cut short", func(b *kmsg.RecordBatch) { b.Records = b.Records[:len(b.Records)-1] }, batch.ErrInvalid, "record 1 at byte 9"},
		{"gzip that is none", func(b *kmsg.RecordBatch) { b.Attributes = 1 }, batch.ErrInvalid, "gzip"},
		{"snappy that is none", func(b *kmsg.RecordBatch) { b.Attributes = 2 }, batch.ErrInvalid, "snappy"},
		{"lz4 that is none", func(b *kmsg.RecordBatch) { b.Attributes = 3 }, batch.ErrInvalid, "lz4"},
		{"zstd that is none", func(b *kmsg.RecordBatch) { b.Attributes = 4 }, batch.ErrInvalid, "zstd"},
		{"gzip of nothing", func(b *kmsg.RecordBatch) { b.Attributes, b.Records = 1, nil }, batch.ErrInvalid, "gzip"},
		{"zstd of nothing", func(b *kmsg.RecordBatch) { b.Attributes, b.Records = 4, nil }, batch.ErrInvalid, "0 records"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rb := plain()
			c.bend(&rb)
			_, err := batch.Validate(sealKmsg(rb), batch.Limits{})
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not say %q", err, c.says)
			}
		})
	}
}

// What may be wrong inside one record, each as the only record of a batch.
func TestRecordRules(t *testing.T) {
	for _, c := range []struct{ name, body, says string }{
		{"key size below null", "\x00\x00\x00\x03\x01\x00", "do not fit"},
		{"key past the end", "\x00\x00\x00\x08a\x01\x00", "do not fit"},
		{"value past the end", "\x00\x00\x00\x01\x08a\x00", "do not fit"},
		{"bytes after the headers", "\x00\x00\x00\x01\x01\x00\x00", "1 of its 7 bytes follow"},
		{"header count negative", "\x00\x00\x00\x01\x01\x01", "do not fit"},
		{"header count lies", "\x00\x00\x00\x01\x01\x04\x00\x01", "do not fit"},
		{"header count huge", "\x00\x00\x00\x01\x01\xfe\xff\xff\xff\x0f", "do not fit"},
		{"header key null", "\x00\x00\x00\x01\x01\x02\x01\x01", "do not fit"},
		{"varint without end", "\x00\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80", "do not fit"},
		{"offset delta over 32 bits", "\x00\x00\x80\x80\x80\x80\x80\x01\x01\x01\x00", "do not fit"},
		{"empty", "", "do not fit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := oneRecord(append(binary.AppendVarint(nil, int64(len(c.body))), c.body...))
			_, err := batch.Validate(b, batch.Limits{})
			if !errors.Is(err, batch.ErrInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Validate: %v, want ErrInvalid and %q", err, c.says)
			}
			if _, err := decode(b, batch.Limits{}); !errors.Is(err, batch.ErrInvalid) {
				t.Errorf("Records: %v, want ErrInvalid", err)
			}
		})
	}
	for name, encoded := range map[string]string{"size negative": "\x01", "size past the end": "\x7e\x00", "size without end": "\x80"} {
		if _, err := batch.Validate(oneRecord([]byte(encoded)), batch.Limits{}); !errors.Is(err, batch.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func oneRecord(encoded []byte) []byte {
	rb := plain()
	rb.NumRecords, rb.LastOffsetDelta, rb.MaxTimestamp = 1, 0, rb.FirstTimestamp
	rb.Records = encoded
	return sealKmsg(rb)
}

func TestBytesAfterTheBatch(t *testing.T) {
	b := append(build(t, batch.None, batch.NoProducer, dozen()...), 0)
	if _, err := batch.Validate(b, batch.Limits{}); !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("Validate: %v, want ErrInvalid", err)
	}
	if _, err := decode(b, batch.Limits{}); !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("Records: %v, want ErrInvalid", err)
	}
	if _, err := batch.Check(b); err != nil {
		t.Errorf("Check, which looks at the first batch only: %v", err)
	}
}

// Each limit holds exactly: at its value all is well, one below is too large.
func TestLimits(t *testing.T) {
	records := []batch.Record{{Value: make([]byte, 100)}, {Value: make([]byte, 1000)}}
	for _, c := range codecs {
		b := build(t, c, batch.NoProducer, records...)
		info, err := batch.Validate(b, batch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		const largest = 1 + 1 + 1 + 1 + 2 + 1000 + 1 // attributes, deltas, key, value and its size, headers
		exact := batch.Limits{MaxBatchBytes: len(b), MaxInflatedBytes: info.InflatedBytes, MaxRecordBytes: largest, MaxRecords: 2}
		if _, err := batch.Validate(b, exact); err != nil {
			t.Errorf("%s: at its limits: %v", c, err)
		}
		if _, err := decode(b, exact); err != nil {
			t.Errorf("%s: read at its limits: %v", c, err)
		}
		for name, field := range map[string]func(*batch.Limits) *int{
			"MaxBatchBytes":    func(l *batch.Limits) *int { return &l.MaxBatchBytes },
			"MaxInflatedBytes": func(l *batch.Limits) *int { return &l.MaxInflatedBytes },
			"MaxRecordBytes":   func(l *batch.Limits) *int { return &l.MaxRecordBytes },
			"MaxRecords":       func(l *batch.Limits) *int { return &l.MaxRecords },
		} {
			l := exact
			*field(&l)--
			if _, err := batch.Validate(b, l); !errors.Is(err, batch.ErrTooLarge) {
				t.Errorf("%s: below %s: %v, want ErrTooLarge", c, name, err)
			}
			if _, err := decode(b, l); name != "MaxBatchBytes" && !errors.Is(err, batch.ErrTooLarge) {
				t.Errorf("%s: read below %s: %v, want ErrTooLarge", c, name, err)
			}
		}
	}
}

// Compaction leaves batches with gaps, or empty: to be read, but not to be sent.
func TestRecordsReadsCompactedBatches(t *testing.T) {
	gap := plain()
	gap.FirstOffset, gap.LastOffsetDelta = 100, 9
	gap.Records = append(rawRecord(0, 3, "\x01\x01\x00"), rawRecord(2, 7, "\x01\x01\x00")...)
	got, err := decode(sealKmsg(gap), batch.Limits{})
	want := []batch.Record{{Offset: 103, Timestamp: 5}, {Offset: 107, Timestamp: 7}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("with gaps: %v, records (-want +got):\n%s", err, diff)
	}

	empty := plain()
	empty.NumRecords, empty.Records = 0, nil
	if got, err := decode(sealKmsg(empty), batch.Limits{}); len(got) != 0 || err != nil {
		t.Errorf("empty: %d records, %v", len(got), err)
	}

	backwards := gap
	backwards.Records = append(rawRecord(0, 7, "\x01\x01\x00"), rawRecord(2, 3, "\x01\x01\x00")...)
	if got, err := decode(sealKmsg(backwards), batch.Limits{}); len(got) != 1 || !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("backwards: %d records, %v, want 1 and ErrInvalid", len(got), err)
	}
	twice := gap
	twice.Records = append(rawRecord(0, 3, "\x01\x01\x00"), rawRecord(2, 3, "\x01\x01\x00")...)
	if got, err := decode(sealKmsg(twice), batch.Limits{}); len(got) != 1 || !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("one offset twice: %d records, %v, want 1 and ErrInvalid", len(got), err)
	}
	beyond := gap
	beyond.LastOffsetDelta = 6
	if _, err := decode(sealKmsg(beyond), batch.Limits{}); !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("past the last offset: %v, want ErrInvalid", err)
	}
}
