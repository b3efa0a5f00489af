package batch_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/varvelog/varve/segments/batch"
)

// Every bit of a batch is flipped, one at a time. Each flip must be found, and found
// as what it is, but for the fields that are not covered by the CRC.
func TestEveryFlippedBitIsFound(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			good := build(t, c, batch.BuildOptions{ProducerID: 7, ProducerEpoch: 1, BaseSequence: 9}, dozen()[:6]...)
			for bit := range len(good) * 8 {
				b := bytes.Clone(good)
				b[bit/8] ^= 1 << (bit % 8)
				want := kindOfFlip(good, b, bit/8)

				_, validate := batch.Validate(b, batch.Limits{})
				_, check := batch.Check(b)
				_, records := decode(b, batch.Limits{})
				for name, err := range map[string]error{"Validate": validate, "Check": check, "Records": records} {
					if !errors.Is(err, want) {
						t.Errorf("bit %d of byte %d: %s says %v, want %v", bit%8, bit/8, name, err, want)
					}
				}
			}
		})
	}
}

// kindOfFlip says which error a flip in the byte at that offset must give.
func kindOfFlip(good, flipped []byte, at int) error {
	switch {
	case at < 8, at >= 12 && at < 16: // base offset, leader epoch
		return nil
	case at < 12: // length
		if int32(binary.BigEndian.Uint32(flipped[8:])) > int32(len(good)-12) {
			return batch.ErrTruncated
		}
		return batch.ErrCorrupt
	case at == 16: // magic
		return batch.ErrUnsupported
	}
	return batch.ErrCorrupt
}

// The same flips made by whoever wrote the batch, with a CRC to match: some are
// another good batch, the others must be refused, and Validate and Records agree.
func TestFlippedBitsUnderATrueCRC(t *testing.T) {
	kinds := []error{batch.ErrInvalid, batch.ErrTooLarge, batch.ErrUnsupported}
	for _, c := range codecs {
		t.Run(c.String(), func(t *testing.T) {
			good := build(t, c, batch.NoProducer, dozen()[:6]...)
			for bit := 21 * 8; bit < len(good)*8; bit++ {
				b := bytes.Clone(good)
				b[bit/8] ^= 1 << (bit % 8)
				reseal(b)
				info, err := batch.Validate(b, batch.Limits{})
				records, readErr := decode(b, batch.Limits{})
				if err == nil && (readErr != nil || len(records) != int(info.Count)) {
					t.Errorf("bit %d of byte %d: accepted with %d records, read %d: %v", bit%8, bit/8, info.Count, len(records), readErr)
				}
				if err != nil && !oneOf(err, kinds) {
					t.Errorf("bit %d of byte %d: %v", bit%8, bit/8, err)
				}
			}
		})
	}
}

func oneOf(err error, kinds []error) bool {
	for _, k := range kinds {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

func TestTruncated(t *testing.T) {
	good := build(t, batch.None, batch.NoProducer, dozen()...)
	for n := range good {
		_, validate := batch.Validate(good[:n], batch.Limits{})
		_, check := batch.Check(good[:n])
		_, records := decode(good[:n], batch.Limits{})
		for name, err := range map[string]error{"Validate": validate, "Check": check, "Records": records} {
			if !errors.Is(err, batch.ErrTruncated) {
				t.Errorf("%s of %d bytes: %v, want ErrTruncated", name, n, err)
			}
		}
		if _, err := batch.ParseHeader(good[:n]); (n < batch.HeaderSize) != errors.Is(err, batch.ErrTruncated) {
			t.Errorf("ParseHeader of %d bytes: %v", n, err)
		}
	}
}

func TestSplit(t *testing.T) {
	var log []byte
	var want [][]byte
	for _, c := range codecs {
		b := build(t, c, batch.NoProducer, dozen()...)
		want = append(want, b)
		log = append(log, b...)
	}
	split := func(b []byte) (got [][]byte, err error) {
		for one, err := range batch.Split(b) {
			if err != nil {
				return got, err
			}
			got = append(got, one)
		}
		return got, nil
	}

	got, err := split(log)
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Fatalf("error %v, batches (-want +got):\n%s", err, diff)
	}
	if cap(got[0]) != len(got[0]) {
		t.Error("appending to a batch would overwrite the next one")
	}
	if got, err := split(nil); len(got) != 0 || err != nil {
		t.Errorf("of nothing: %d batches, %v", len(got), err)
	}
	for n := len(log) - len(want[4]) + 1; n < len(log); n++ {
		got, err := split(log[:n])
		if len(got) != 4 || !errors.Is(err, batch.ErrTruncated) {
			t.Fatalf("of %d bytes of %d: %d batches, %v, want 4 and ErrTruncated", n, len(log), len(got), err)
		}
	}
	for range batch.Split(log) {
		break // must not yield again
	}
}

// A message set of the formats before ours is shorter than a header.
func TestOlderMagicIsNamed(t *testing.T) {
	old := make([]byte, 30)
	old[16] = 1
	if _, err := batch.ParseHeader(old); !errors.Is(err, batch.ErrUnsupported) {
		t.Errorf("%v, want ErrUnsupported", err)
	}
}
