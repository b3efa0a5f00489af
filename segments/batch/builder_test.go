package batch_test

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"github.com/varvelog/varve/segments/batch"
	"pgregory.net/rapid"
)

func TestRoundTrip(t *testing.T) {
	builders := make([]*batch.Builder, len(codecs))
	for i, c := range codecs {
		builders[i] = batch.NewBuilder(c)
	}
	rapid.Check(t, func(t *rapid.T) {
		checkRoundTrip(t, rapid.SampledFrom(builders).Draw(t, "builder"))
	})
}

// checkRoundTrip uses a builder again and again, as the client does.
func checkRoundTrip(t *rapid.T, builder *batch.Builder) {
	records := genRecords.Draw(t, "records")
	producer := genProducer.Draw(t, "producer")
	offset := rapid.Int64Range(0, 1<<62).Draw(t, "offset")
	epoch := rapid.Int32().Draw(t, "leader epoch")

	builder.Reset()
	for _, r := range records {
		want := builder.SizeWith(r)
		if err := builder.Append(r); err != nil {
			t.Fatal(err)
		}
		if got := builder.UncompressedSize(); got != want {
			t.Fatalf("size is %d after Append, SizeWith said %d", got, want)
		}
	}
	b, err := builder.Build(producer)
	if err != nil {
		t.Fatal(err)
	}
	batch.SetBaseOffset(b, offset, epoch)

	info, err := batch.Validate(b, batch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	want := infoOf(records, producer)
	want.Keyless = slices.ContainsFunc(records, func(r batch.Record) bool { return r.Key == nil })
	want.BaseOffset, want.LeaderEpoch = offset, epoch
	want.Length, want.CRC, want.Attributes = int32(len(b)-12), info.CRC, info.Attributes
	want.InflatedBytes = builder.UncompressedSize() - batch.HeaderSize
	if diff := cmp.Diff(want, info); diff != "" {
		t.Fatalf("info (-want +got):\n%s", diff)
	}
	if info.EndOffset() != offset+int64(len(records)) || info.Size() != len(b) {
		t.Fatalf("end offset %d, size %d", info.EndOffset(), info.Size())
	}

	got, err := decode(b, batch.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range records {
		records[i].Offset = offset + int64(i)
	}
	if diff := cmp.Diff(records, got); diff != "" {
		t.Fatalf("records (-want +got):\n%s", diff)
	}
}

// infoOf says by brute force what Validate should find.
func infoOf(records []batch.Record, o batch.BuildOptions) batch.Info {
	n := int32(len(records))
	info := batch.Info{MinTimestamp: records[0].Timestamp, LastTimestamp: records[n-1].Timestamp}
	info.Magic, info.Count, info.LastOffsetDelta = 2, n, n-1
	info.BaseTimestamp = records[0].Timestamp
	info.ProducerID, info.ProducerEpoch, info.BaseSequence = o.ProducerID, o.ProducerEpoch, o.BaseSequence
	info.MaxTimestamp = records[0].Timestamp
	for _, r := range records {
		info.MinTimestamp = min(info.MinTimestamp, r.Timestamp)
		info.MaxTimestamp = max(info.MaxTimestamp, r.Timestamp)
	}
	return info
}

func TestBuilderRefuses(t *testing.T) {
	b := batch.NewBuilder(batch.None)
	if _, err := b.Build(batch.NoProducer); !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("Build without records: %v, want ErrInvalid", err)
	}
	if err := b.Append(batch.Record{Timestamp: -2}); !errors.Is(err, batch.ErrInvalid) {
		t.Errorf("Append with timestamp -2: %v, want ErrInvalid", err)
	}
	if b.Count() != 0 || b.UncompressedSize() != batch.HeaderSize {
		t.Errorf("a refused record stays: count %d, size %d", b.Count(), b.UncompressedSize())
	}
	if err := b.Append(batch.Record{}); err != nil {
		t.Fatal(err)
	}
	for _, o := range []batch.BuildOptions{{ProducerID: -2}, {ProducerEpoch: -1}, {BaseSequence: -1}} {
		if _, err := b.Build(o); !errors.Is(err, batch.ErrInvalid) {
			t.Errorf("Build with %+v: %v, want ErrInvalid", o, err)
		}
	}
	unknown := batch.NewBuilder(5)
	if err := unknown.Append(batch.Record{}); err != nil {
		t.Fatal(err)
	}
	if _, err := unknown.Build(batch.NoProducer); !errors.Is(err, batch.ErrUnsupported) {
		t.Errorf("Build with codec 5: %v, want ErrUnsupported", err)
	}
}

// Build must not hand out memory that the builder writes to later.
func TestBuiltBatchIsItsOwn(t *testing.T) {
	for _, c := range codecs {
		b := batch.NewBuilder(c)
		for _, r := range dozen() {
			if err := b.Append(r); err != nil {
				t.Fatal(err)
			}
		}
		first, err := b.Build(batch.NoProducer)
		if err != nil {
			t.Fatal(err)
		}
		b.Reset()
		if err := b.Append(batch.Record{Value: []byte("another")}); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Build(batch.NoProducer); err != nil {
			t.Fatal(err)
		}
		if _, err := batch.Validate(first, batch.Limits{}); err != nil {
			t.Errorf("%s: the first batch changed: %v", c, err)
		}
	}
}

// Coders are shared by the whole program. Simulations run in synctest bubbles, where
// channels of a bubble must not be used outside of it.
func TestCodersCrossBubbles(t *testing.T) {
	use := func(t *testing.T) {
		for _, c := range codecs {
			if _, err := batch.Validate(build(t, c, batch.NoProducer, dozen()...), batch.Limits{}); err != nil {
				t.Error(err)
			}
		}
	}
	synctest.Test(t, use)
	use(t)
	synctest.Test(t, use)
}

func TestParseCodec(t *testing.T) {
	for _, c := range codecs {
		if got, err := batch.ParseCodec(c.String()); got != c || err != nil {
			t.Errorf("ParseCodec(%q) = %v, %v", c, got, err)
		}
	}
	for _, name := range []string{"", "GZIP", "codec(5)", "brotli"} {
		if c, err := batch.ParseCodec(name); !errors.Is(err, batch.ErrUnsupported) {
			t.Errorf("ParseCodec(%q) = %v, %v, want ErrUnsupported", name, c, err)
		}
	}
	if got := batch.Codec(7).String(); got != "codec(7)" {
		t.Errorf("Codec(7) is %q", got)
	}
}
