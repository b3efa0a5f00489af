package batch_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/varvelog/varve/segments/batch"
)

// fuzzLimits are small, so that whoever breaks them shows.
var fuzzLimits = batch.Limits{MaxBatchBytes: 64 << 10, MaxInflatedBytes: 256 << 10, MaxRecordBytes: 32 << 10, MaxRecords: 1000}

func addGolden(f *testing.F) {
	paths, err := filepath.Glob("testdata/*.batch")
	if err != nil || len(paths) == 0 {
		f.Fatalf("no golden files: %v", err)
	}
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// sealed makes length, magic and CRC right, without which nothing gets past the front.
func sealed(b []byte) []byte {
	if len(b) < batch.HeaderSize {
		return b
	}
	b = append([]byte(nil), b...)
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-12))
	b[16] = 2
	return reseal(b)
}

// FuzzValidate looks for panics, and for batches that are accepted but cannot be
// kept to what Info says.
func FuzzValidate(f *testing.F) {
	addGolden(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, b := range [][]byte{in, sealed(in)} {
			info, err := batch.Validate(b, fuzzLimits)
			if err != nil {
				continue
			}
			if info.Size() != len(b) || len(b) > fuzzLimits.MaxBatchBytes || info.InflatedBytes > fuzzLimits.MaxInflatedBytes {
				t.Fatalf("limits passed: %+v of %d bytes", info, len(b))
			}
			records, err := decode(b, fuzzLimits)
			if err != nil || len(records) != int(info.Count) {
				t.Fatalf("accepted with %d records, read %d: %v", info.Count, len(records), err)
			}
			checkInfo(t, info, records)
		}
	})
}

func checkInfo(t *testing.T, info batch.Info, records []batch.Record) {
	least, largest := records[0].Timestamp, records[0].Timestamp
	for i, r := range records {
		if r.Offset != info.BaseOffset+int64(i) {
			t.Fatalf("record %d has offset %d", i, r.Offset)
		}
		least, largest = min(least, r.Timestamp), max(largest, r.Timestamp)
	}
	last := records[len(records)-1].Timestamp
	if least != info.MinTimestamp || largest != info.MaxTimestamp || last != info.LastTimestamp || info.Untimed != (least == batch.NoTimestamp) {
		t.Fatalf("least %d, largest %d, last %d in %+v", least, largest, last, info)
	}
}

// FuzzRecords looks for panics and for records that are larger than the limits.
func FuzzRecords(f *testing.F) {
	addGolden(f)
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, b := range [][]byte{in, sealed(in)} {
			records, _ := decode(b, fuzzLimits)
			total := 0
			for _, r := range records {
				total += len(r.Key) + len(r.Value)
				for _, h := range r.Headers {
					total += len(h.Key) + len(h.Value)
				}
			}
			if len(records) > fuzzLimits.MaxRecords || total > fuzzLimits.MaxInflatedBytes {
				t.Fatalf("%d records of %d bytes", len(records), total)
			}
			for one, err := range batch.Split(b) {
				if err == nil && len(one) < batch.HeaderSize {
					t.Fatalf("a batch of %d bytes", len(one))
				}
			}
		}
	})
}
