package batch_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/varvelog/varve/segments/batch"
	"pgregory.net/rapid"
)

func TestSetBaseOffsetLeavesTheRest(t *testing.T) {
	good := build(t, batch.LZ4, batch.NoProducer, dozen()...)
	b := bytes.Clone(good)
	batch.SetBaseOffset(b, 1<<40, 17)
	h, err := batch.Check(b)
	if err != nil || h.BaseOffset != 1<<40 || h.LeaderEpoch != 17 || h.EndOffset() != 1<<40+12 {
		t.Fatalf("%+v, %v", h, err)
	}
	batch.SetBaseOffset(b, 0, -1)
	if !bytes.Equal(b, good) {
		t.Error("other bytes changed")
	}
}

// TestSealPlace: whatever byte of the header is another one, either the batch's own CRC or its place's says so.
func TestSealPlace(t *testing.T) {
	good := build(t, batch.Zstd, batch.NoProducer, dozen()...)
	batch.SealPlace(good, 1<<40)
	h, err := batch.Check(good)
	if err != nil || h.BaseOffset != 1<<40 || h.CheckPlace() != nil {
		t.Fatalf("%+v, %v, %v", h, err, h.CheckPlace())
	}
	for at := range batch.HeaderSize {
		for bit := range 8 {
			b := bytes.Clone(good)
			b[at] ^= 1 << bit
			h, err := batch.Check(b)
			if err == nil {
				err = h.CheckPlace()
			}
			if err == nil {
				t.Errorf("bit %d of byte %d is another one, and nothing is found", bit, at)
			}
		}
	}
	batch.SetBaseOffset(good, 1<<40, 0)
	if h, err := batch.Check(good); err != nil || !errors.Is(h.CheckPlace(), batch.ErrCorrupt) {
		t.Errorf("a batch without a seal: %v, %v", err, h.CheckPlace())
	}
}

func TestSetAppendTime(t *testing.T) {
	for _, c := range codecs {
		b := build(t, c, batch.NoProducer, dozen()...)
		before, err := batch.ParseHeader(b)
		if err != nil {
			t.Fatal(err)
		}
		batch.SetAppendTime(b, 123_456)
		info, err := batch.Validate(b, batch.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if !info.AppendTime() || info.MinTimestamp != 123_456 || info.LastTimestamp != 123_456 || info.MaxTimestamp != 123_456 {
			t.Errorf("%s: %+v", c, info)
		}
		if info.Codec() != c || info.BaseTimestamp != before.BaseTimestamp || info.CRC == before.CRC {
			t.Errorf("%s: from %+v to %+v", c, before, info.Header)
		}
		records, err := decode(b, batch.Limits{})
		if err != nil || records[7].Timestamp != 123_456 {
			t.Errorf("%s: %v, %v", c, records[7], err)
		}
	}
}

func TestUntimedBatches(t *testing.T) {
	for _, c := range []struct {
		timestamps     []int64
		untimed        bool
		least, largest int64
	}{
		{[]int64{-1}, true, -1, -1},
		{[]int64{-1, -1, -1}, true, -1, -1},
		{[]int64{5, -1, 3}, true, -1, 5},
		{[]int64{-1, 9}, true, -1, 9},
		{[]int64{0, 0}, false, 0, 0},
	} {
		var records []batch.Record
		for _, ts := range c.timestamps {
			records = append(records, batch.Record{Timestamp: ts})
		}
		info, err := batch.Validate(build(t, batch.None, batch.NoProducer, records...), batch.Limits{})
		if err != nil || info.Untimed != c.untimed || info.MinTimestamp != c.least || info.MaxTimestamp != c.largest {
			t.Errorf("%v: %+v, %v", c.timestamps, info, err)
		}
	}
}

func TestRewrite(t *testing.T) {
	const now = 1_750_000_000_000
	rapid.Check(t, func(t *rapid.T) {
		records := genRecords.Draw(t, "records")
		b := batch.NewBuilder(rapid.SampledFrom(codecs).Draw(t, "codec"))
		for i := range records {
			if rapid.Bool().Draw(t, "untimed") {
				records[i].Timestamp = batch.NoTimestamp
			}
			if err := b.Append(records[i]); err != nil {
				t.Fatal(err)
			}
		}
		in, err := b.Build(genProducer.Draw(t, "producer"))
		if err != nil {
			t.Fatal(err)
		}
		batch.SetBaseOffset(in, 50, 4)
		kept := bytes.Clone(in)

		out, err := batch.Rewrite(in, batch.Limits{}, now)
		if err != nil {
			t.Fatal(err)
		}
		info, err := batch.Validate(out, batch.Limits{})
		if err != nil || info.Untimed {
			t.Fatalf("%+v, %v", info, err)
		}
		for i := range records {
			records[i].Offset = 50 + int64(i)
			if records[i].Timestamp == batch.NoTimestamp {
				records[i].Timestamp = now
			}
		}
		got, err := decode(out, batch.Limits{})
		if diff := cmp.Diff(records, got); diff != "" || err != nil {
			t.Fatalf("%v, records (-want +got):\n%s", err, diff)
		}
		was, _ := batch.ParseHeader(in)
		type same struct {
			attributes, epoch int16
			producer          int64
			sequence, leader  int32
		}
		pick := func(h batch.Header) same {
			return same{h.Attributes, h.ProducerEpoch, h.ProducerID, h.BaseSequence, h.LeaderEpoch}
		}
		if pick(was) != pick(info.Header) {
			t.Fatalf("from %+v to %+v", was, info.Header)
		}
		if !bytes.Equal(in, kept) {
			t.Fatal("the batch that was given changed")
		}
	})
}

func TestRewriteOfAppendTime(t *testing.T) {
	b := build(t, batch.Gzip, batch.NoProducer, dozen()...)
	for _, c := range []struct{ stamp, want int64 }{{7, 7}, {batch.NoTimestamp, 99}} {
		batch.SetAppendTime(b, c.stamp)
		out, err := batch.Rewrite(b, batch.Limits{}, 99)
		if err != nil {
			t.Fatal(err)
		}
		if info, err := batch.Validate(out, batch.Limits{}); err != nil || info.LastTimestamp != c.want {
			t.Errorf("stamp %d: %+v, %v, want %d", c.stamp, info, err, c.want)
		}
	}
}

func TestRewriteRefusesWhatValidateRefuses(t *testing.T) {
	if _, err := batch.Rewrite(build(t, batch.None, batch.NoProducer, dozen()...), batch.Limits{MaxRecords: 11}, 1); !errors.Is(err, batch.ErrTooLarge) {
		t.Errorf("%v, want ErrTooLarge", err)
	}
}

// The layout under the hash is stored for ever, in index entries.
func TestContentSum(t *testing.T) {
	h := batch.Header{BaseOffset: 0x0102030405060708, CRC: 0x11121314, Length: 0x21222324 - 12, LastOffsetDelta: 0x31323334, Count: 0x41424344}
	want := xxhash.Sum64String("\x01\x02\x03\x04\x05\x06\x07\x08\x11\x12\x13\x14\x21\x22\x23\x24\x31\x32\x33\x34\x41\x42\x43\x44")
	if got := batch.ContentSum(h); got != want {
		t.Errorf("%x, want %x", got, want)
	}
	for name, change := range map[string]func(*batch.Header){
		"base offset":       func(h *batch.Header) { h.BaseOffset++ },
		"CRC":               func(h *batch.Header) { h.CRC++ },
		"size":              func(h *batch.Header) { h.Length++ },
		"last offset delta": func(h *batch.Header) { h.LastOffsetDelta++ },
		"count":             func(h *batch.Header) { h.Count++ },
	} {
		other := h
		change(&other)
		if batch.ContentSum(other) == want {
			t.Errorf("another %s has the same sum", name)
		}
	}
}
