package batch_test

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/varvelog/varve/segments/batch"
	"pgregory.net/rapid"
)

// compaction is a batch, which records to keep, and what must come of it.
type compaction struct {
	batch   []byte
	keep    map[int64]bool
	horizon int64
	want    []batch.Record
}

func drawCompaction(t *rapid.T) compaction {
	records := genKgoRecords.Draw(t, "records")
	b := batch.NewBuilder(rapid.SampledFrom(codecs).Draw(t, "codec"))
	c := compaction{keep: make(map[int64]bool), horizon: math.MaxInt64}
	if rapid.Bool().Draw(t, "with horizon") {
		c.horizon = rapid.Int64Range(0, 2_000_000_000_000).Draw(t, "horizon")
	}
	base := rapid.Int64Range(0, 1<<40).Draw(t, "base")
	appendTime := rapid.Bool().Draw(t, "append time")
	for i, r := range records {
		if err := b.Append(r); err != nil {
			t.Fatal(err)
		}
		r.Offset = base + int64(i)
		if appendTime {
			r.Timestamp = 1_800_000_000_000
		}
		if rapid.Bool().Draw(t, "keep") {
			c.keep[r.Offset], c.want = true, append(c.want, r)
		}
	}
	var err error
	if c.batch, err = b.Build(genProducer.Draw(t, "producer")); err != nil {
		t.Fatal(err)
	}
	if appendTime {
		batch.SetAppendTime(c.batch, 1_800_000_000_000)
	}
	batch.SetBaseOffset(c.batch, base, 0)
	return c
}

func (c compaction) run(t *rapid.T, dst, b []byte) ([]byte, batch.Left) {
	out, left, err := batch.Compact(dst, b, batch.Limits{}, c.horizon, func(p *batch.Pick) bool { return c.keep[p.Offset] })
	if err != nil {
		t.Fatal(err)
	}
	return out, left
}

// What is left of a batch is what was wanted, as kgo reads it and as we do, and the
// header says the truth about it.
func TestCompactKeepsWhatIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := drawCompaction(t)
		before, err := batch.ParseHeader(c.batch)
		if err != nil {
			t.Fatal(err)
		}
		out, left := c.run(t, []byte("front"), bytes.Clone(c.batch))
		if !bytes.HasPrefix(out, []byte("front")) {
			t.Fatal("what was there is gone")
		}
		if out = out[len("front"):]; len(c.want) == 0 {
			if len(out) != 0 || left.Count != 0 || !left.Changed {
				t.Fatalf("%d bytes, %+v", len(out), left)
			}
			return
		}
		got, err := decode(out, batch.Limits{})
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Fatalf("%v, records (-want +got):\n%s", err, diff)
		}
		got, err = kgoDecode(out)
		if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
			t.Fatalf("kgo: %v, records (-want +got):\n%s", err, diff)
		}
		checkLeft(t, c, before, out, left)
	})
}

func checkLeft(t *rapid.T, c compaction, before batch.Header, out []byte, left batch.Left) {
	info, err := batch.Inspect(out, batch.Limits{})
	if diff := cmp.Diff(left.Info, info); diff != "" || err != nil {
		t.Fatalf("%v, said and inspected:\n%s", err, diff)
	}
	tombstones := 0
	for _, r := range c.want {
		if r.Key != nil && r.Value == nil {
			tombstones++
		}
	}
	horizon, marked := info.DeleteHorizon()
	if marked != (tombstones > 0 && c.horizon != math.MaxInt64) || marked && horizon != c.horizon || left.Tombstones != tombstones {
		t.Fatalf("%d tombstones: horizon %d, %v, %+v", tombstones, horizon, marked, left)
	}
	if left.Changed == bytes.Equal(out, c.batch) || left.LastOffset != c.want[len(c.want)-1].Offset {
		t.Fatalf("changed %v, last offset %d", left.Changed, left.LastOffset)
	}
	h := info.Header
	if h.BaseOffset != before.BaseOffset || h.LastOffsetDelta != before.LastOffsetDelta || h.Codec() != before.Codec() || h.AppendTime() != before.AppendTime() ||
		h.ProducerID != before.ProducerID || h.ProducerEpoch != before.ProducerEpoch || h.BaseSequence != before.BaseSequence {
		t.Fatalf("from %+v to %+v", before, h)
	}
	// Once more with the same wishes changes nothing, whatever horizon there is now.
	c.horizon -= 5
	if marked || tombstones == 0 {
		if again, left := c.run(t, nil, out); left.Changed || !bytes.Equal(again, out) {
			t.Fatalf("the second time: %+v", left)
		}
	}
}

// A producer may not claim a horizon: its base timestamp would be taken for one.
func TestValidateRefusesADeleteHorizon(t *testing.T) {
	b := build(t, batch.None, batch.NoProducer, batch.Record{Timestamp: 5, Key: []byte("k")})
	out, left, err := batch.Compact(nil, b, batch.Limits{}, 77, func(*batch.Pick) bool { return true })
	if err != nil || !left.Changed {
		t.Fatalf("%+v, %v", left, err)
	}
	if _, err := batch.Validate(out, batch.Limits{}); !errors.Is(err, batch.ErrUnsupported) {
		t.Errorf("Validate says %v", err)
	}
	if _, err := batch.Inspect(out, batch.Limits{}); err != nil {
		t.Errorf("Inspect says %v", err)
	}
}

func TestCompactRefusesDamage(t *testing.T) {
	all := func(*batch.Pick) bool { return true }
	good := build(t, batch.Zstd, batch.NoProducer, dozen()...)
	for _, c := range []struct {
		name   string
		damage func(b []byte) []byte
		limits batch.Limits
		want   error
	}{
		{"a flipped bit", func(b []byte) []byte { b[70] ^= 1; return b }, batch.Limits{}, batch.ErrCorrupt},
		{"a count that lies", func(b []byte) []byte { b[60] = 11; return reseal(b) }, batch.Limits{}, batch.ErrInvalid},
		{"more records than offsets", func(b []byte) []byte { b[26] = 10; return reseal(b) }, batch.Limits{}, batch.ErrInvalid},
		{"a control batch", func(b []byte) []byte { b[22] |= 0x20; return reseal(b) }, batch.Limits{}, batch.ErrUnsupported},
		{"too much inside", func(b []byte) []byte { return b }, batch.Limits{MaxInflatedBytes: 100}, batch.ErrTooLarge},
		{"bytes behind", func(b []byte) []byte { return append(b, 0) }, batch.Limits{}, batch.ErrInvalid},
	} {
		b := c.damage(bytes.Clone(good))
		if out, _, err := batch.Compact([]byte("x"), b, c.limits, math.MaxInt64, all); !errors.Is(err, c.want) || string(out) != "x" {
			t.Errorf("%s: %v, %d bytes", c.name, err, len(out))
		}
		if _, err := batch.Inspect(b, c.limits); !errors.Is(err, c.want) {
			t.Errorf("%s: Inspect says %v", c.name, err)
		}
	}
}
