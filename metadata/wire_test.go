package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func drawWireBatch(rt *rapid.T, position int64) Batch {
	b := Batch{Position: position, Size: rapid.Int32Range(1, math.MaxInt32).Draw(rt, "size"), Offsets: rapid.Int32Range(1, math.MaxInt32).Draw(rt, "offsets"),
		MinTimestamp: rapid.Int64().Draw(rt, "min"), MaxTimestamp: rapid.Int64().Draw(rt, "max"), LastTimestamp: rapid.Int64().Draw(rt, "last"),
		CRC: rapid.Uint32().Draw(rt, "crc"), ProducerID: NoProducer, ExpectedOffset: NoOffset,
		// Without a producer these say nothing, and validation lets anything pass.
		ProducerEpoch: rapid.SampledFrom([]int16{-1, 0, math.MinInt16}).Draw(rt, "no epoch"), BaseSequence: rapid.SampledFrom([]int32{-1, 0, math.MinInt32}).Draw(rt, "no sequence")}
	b.Records = b.Offsets
	if rapid.Bool().Draw(rt, "sparse") {
		b.Records = rapid.Int32Range(0, b.Offsets).Draw(rt, "records")
	}
	if rapid.Bool().Draw(rt, "idempotent") {
		b.ProducerID = rapid.Int64Range(0, math.MaxInt64).Draw(rt, "producer")
		b.ProducerEpoch = rapid.Int16Range(0, math.MaxInt16).Draw(rt, "epoch")
		b.BaseSequence = rapid.Int32Range(0, math.MaxInt32).Draw(rt, "sequence")
	}
	if rapid.Bool().Draw(rt, "expected") {
		b.ExpectedOffset = rapid.Int64().Draw(rt, "expected offset")
	}
	if rapid.Bool().Draw(rt, "fenced") {
		b.FencingToken, b.HasFencingToken = rapid.SampledFrom([]string{"", "a", "a longer token"}).Draw(rt, "token"), true
	}
	return b
}

func drawReferences(rt *rapid.T) []*Reference {
	refs := []*Reference{}
	for range rapid.IntRange(0, 5).Draw(rt, "references") {
		ref := &Reference{Partition: PartitionID{TopicID{rapid.Byte().Draw(rt, "topic")}, rapid.Int32Range(0, math.MaxInt32).Draw(rt, "partition")},
			Uploader: GatewayID(rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "uploader")), Number: rapid.Uint64Range(1, math.MaxUint64).Draw(rt, "number"),
			Previous: rapid.Uint64().Draw(rt, "previous"), ByNumber: rapid.Bool().Draw(rt, "by number")}
		position := wide(rt, "position")
		for range rapid.IntRange(0, 4).Draw(rt, "batches") {
			b := drawWireBatch(rt, position)
			ref.Batches = append(ref.Batches, b)
			position = b.end() + rapid.Int64Range(0, 9).Draw(rt, "hole")
		}
		refs = append(refs, ref)
	}
	return refs
}

func TestReferencesRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		refs := drawReferences(rt)
		got, err := DecodeReferences(EncodeReferences(refs))
		if diff := cmp.Diff(refs, got); err != nil || diff != "" {
			rt.Fatalf("%v\n%s", err, diff)
		}
	})
}

// segmentReferences are those of a segment with a batch for each of so many partitions.
func segmentReferences(partitions int) []*Reference {
	var refs []*Reference
	for n := range partitions {
		refs = append(refs, &Reference{Partition: PartitionID{TopicID{1}, int32(n)}, Uploader: goldenUploader, Number: 1234, Previous: 1230, Batches: []Batch{{
			Position: int64(n) * 800, Size: 800, Offsets: 4, Records: 4, MinTimestamp: goldenTime.UnixMilli() + int64(n%100), MaxTimestamp: goldenTime.UnixMilli() + int64(n%100) + 150,
			LastTimestamp: goldenTime.UnixMilli() + int64(n%100) + 150, CRC: uint32(n) * 2654435761, ProducerID: NoProducer, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: NoOffset}}})
	}
	return refs
}

func BenchmarkReferences(b *testing.B) {
	refs := segmentReferences(10_000)
	for b.Loop() {
		if _, err := DecodeReferences(EncodeReferences(refs)); err != nil {
			b.Fatal(err)
		}
	}
}

// TestManyReferences: those of one segment are a message of moderate size.
func TestManyReferences(t *testing.T) {
	refs := segmentReferences(10_000)
	data := EncodeReferences(refs)
	got, err := DecodeReferences(data)
	if diff := cmp.Diff(refs, got); err != nil || diff != "" {
		t.Fatalf("%v\n%s", err, diff)
	}
	t.Logf("10,000 references of a batch: %d bytes", len(data))
	if len(data) > 220_000 {
		t.Errorf("10,000 references take %d bytes", len(data))
	}
	// The bound on batches holds on both sides of it.
	refs = refs[:1]
	for len(refs[0].Batches) < MaxReferenceBatches {
		next := refs[0].Batches[0]
		next.Position += int64(len(refs[0].Batches)) * 800
		refs[0].Batches = append(refs[0].Batches, next)
	}
	if _, err := DecodeReferences(EncodeReferences(refs)); err != nil {
		t.Errorf("as many batches as can be: %v", err)
	}
	next := refs[0].Batches[0]
	next.Position += 1 << 40
	refs[0].Batches = append(refs[0].Batches, next)
	if _, err := DecodeReferences(EncodeReferences(refs)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("one batch more: %v", err)
	}
}

// TestImplausibleReferences: what a broken peer may say, and no sequencer may judge.
func TestImplausibleReferences(t *testing.T) {
	for name, spoil := range map[string]func(*Reference){
		"partition below zero":       func(r *Reference) { r.Partition.Number = -1 },
		"no uploader":                func(r *Reference) { r.Uploader = "" },
		"no segment":                 func(r *Reference) { r.Number = 0 },
		"before the object":          func(r *Reference) { r.Batches[0].Position = -1 },
		"beyond all bytes":           func(r *Reference) { r.Batches[1].Position = math.MaxInt64 },
		"no bytes":                   func(r *Reference) { r.Batches[1].Size = 0 },
		"size below zero":            func(r *Reference) { r.Batches[1].Size = -1 },
		"no offsets":                 func(r *Reference) { r.Batches[1].Offsets = 0 },
		"offsets below zero":         func(r *Reference) { r.Batches[1].Offsets = -1 },
		"records below zero":         func(r *Reference) { r.Batches[1].Records = -1 },
		"more records than offsets":  func(r *Reference) { r.Batches[1].Records++ },
		"batches out of order":       func(r *Reference) { r.Batches[1].Position = r.Batches[0].Position },
		"producer below none":        func(r *Reference) { r.Batches[0].ProducerID = -2 },
		"producer epoch below zero":  func(r *Reference) { r.Batches[0].ProducerEpoch = -1 },
		"sequence number below zero": func(r *Reference) { r.Batches[0].BaseSequence = -1 },
	} {
		ref := goldenReferences()[0]
		if _, err := DecodeReferences(EncodeReferences([]*Reference{ref})); err != nil {
			t.Fatal(err)
		}
		spoil(ref)
		if _, err := DecodeReferences(EncodeReferences([]*Reference{ref})); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerdictRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		v := Verdict{Status: Status(rapid.IntRange(1, 4).Draw(rt, "status")), Start: wide(rt, "start")}
		v.Next = v.Start + wide(rt, "length")
		if rapid.IntRange(0, 3).Draw(rt, "told") > 0 {
			v.Batches = []BatchVerdict{} // none, which is not the same as forgotten ones
		}
		for range rapid.IntRange(0, 9).Draw(rt, "batches") {
			b := BatchVerdict{Outcome: Outcome(rapid.IntRange(1, 8).Draw(rt, "outcome")), Offset: NoOffset, Actual: NoOffset}
			if b.Outcome.placed() {
				b.Offset = wide(rt, "offset")
			} else {
				b.Actual = rapid.Int64Range(-1, 2).Draw(rt, "actual")
			}
			v.Batches = append(v.Batches, b)
		}
		got, err := DecodeVerdict(EncodeVerdict(v))
		if diff := cmp.Diff(v, got); err != nil || diff != "" {
			rt.Fatalf("%v\n%s", err, diff)
		}
	})
}

// TestImplausibleVerdicts: a broken peer cannot make its asker hold more than a reference's verdicts.
func TestImplausibleVerdicts(t *testing.T) {
	refused := make([]BatchVerdict, MaxReferenceBatches)
	for i := range refused {
		refused[i] = BatchVerdict{Outcome: FenceMismatch, Offset: NoOffset, Actual: 5}
	}
	good := EncodeVerdict(Verdict{Status: Judged, Batches: refused})
	if v, err := DecodeVerdict(good); err != nil || len(v.Batches) != MaxReferenceBatches || len(good) > 20 {
		t.Errorf("%d verdicts in %d bytes: %v", len(v.Batches), len(good), err)
	}
	for name, v := range map[string]Verdict{
		"no status":            {},
		"status of the future": {Status: Refused + 1},
		"ends before it began": {Status: Judged, Start: 5, Next: 4},
		"begins below zero":    {Status: Judged, Start: -1},
		"one batch too many":   {Status: Judged, Batches: append(refused, refused[0])},
		"no outcome":           {Status: Judged, Batches: []BatchVerdict{{}}},
		"outcome unknown":      {Status: Judged, Batches: []BatchVerdict{{Outcome: UnknownProducer + 1}}},
		"offset below zero":    {Status: Judged, Batches: []BatchVerdict{{Outcome: Accepted, Offset: -1, Actual: NoOffset}}},
	} {
		if _, err := DecodeVerdict(EncodeVerdict(v)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	runs := []byte{formatV1, byte(Judged), 0, 0, 1, 3, byte(FenceMismatch), 0, 0} // a run of none
	if _, err := DecodeVerdict(runs); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a run without batches: %v", err)
	}
}

// TestImplausibleViews: a view that would send readers where nothing is.
func TestImplausibleViews(t *testing.T) {
	for name, spoil := range map[string]func(*View){
		"ends before it began":        func(v *View) { v.Start = v.Next + 1 },
		"begins below zero":           func(v *View) { v.Start = -1 },
		"bytes below zero":            func(v *View) { v.Bytes = -1 },
		"its entries end early":       func(v *View) { v.Next++ },
		"gap between entries":         func(v *View) { v.Tail[0].End-- },
		"entry without offsets":       func(v *View) { v.Tail[1].First, v.Tail[1].Records = v.Next, 0; v.Tail[0].End = v.Next },
		"page behind its tail":        func(v *View) { v.Levels = [][]Child{{{First: v.Next}}} },
		"nodes behind pages":          func(v *View) { v.Tail = v.Tail[1:]; v.Levels = [][]Child{{{First: 0}}, {{First: 5}}} },
		"tree higher than it can be":  func(v *View) { v.Levels = make([][]Child, maxLevels+1) },
		"level longer than it can be": func(v *View) { v.Levels = [][]Child{make([]Child, fanOut+1)} },
	} {
		v := twoEntries()
		if _, err := DecodeView(v.Partition, v.Encode()); err != nil {
			t.Fatal(err)
		}
		spoil(v)
		if _, err := DecodeView(v.Partition, v.Encode()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func twoEntries() *View {
	_, v, _ := goldenViews()
	v.Levels = nil
	v.Tail = []Entry{{First: 0, End: 10, Records: 10, Gateway: "g", Number: 1, Length: 500}, {First: 10, End: 20, Records: 10, Gateway: "g", Number: 2, Length: 500}}
	return v
}

// TestImplausibleDeltas: a change that does not lead from the view to a later one.
func TestImplausibleDeltas(t *testing.T) {
	const head = 3 // format, no gateways, flags; then the stamp and end that it follows on
	was := NewPartition(goldenPartition).View()
	delta := func(sequence, start, length, bytes uint64) []byte {
		b := []byte{formatV1, 0, 0, 0, 0, 0}
		for _, n := range []uint64{sequence, start, length, bytes} {
			b = binary.AppendUvarint(b, n)
		}
		return append(b, 0) // no entries
	}
	if v, err := was.Follow(delta(7, 0, 0, 0)); err != nil || v.Stamp != (Stamp{0, 7}) {
		t.Fatalf("%+v %v", v, err)
	}
	for name, bad := range map[string][]byte{
		"start behind the end":     delta(7, 1, 0, 0),
		"offsets without an entry": delta(7, 0, 1, 0),
		"end beyond all offsets":   delta(7, 0, math.MaxUint64, 0),
		"sequence that falls":      delta(math.MaxUint64, 0, 0, 0),
		"bytes below zero":         delta(7, 0, 0, math.MaxUint64),
	} {
		later := *was
		later.Stamp.Sequence = 0
		if name == "sequence that falls" {
			later.Stamp.Sequence = 3
			bad[head+1] = 3
		}
		if _, err := later.Follow(bad); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := *was
	other.Stamp.Sequence = 1
	if _, err := other.Follow(delta(7, 0, 0, 0)); !errors.Is(err, ErrIndexMoved) {
		t.Errorf("a change of another view: %v", err)
	}
}

// TestFollowedTwice: two that follow on the same view do not see each other's entries, and
// what a view shows never changes.
func TestFollowedTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		views := []*View{NewPartition(goldenPartition).View()}
		texts := []string{viewText(views[0])}
		for step := range rapid.IntRange(1, 30).Draw(rt, "steps") {
			was := views[rapid.IntRange(max(0, len(views)-4), len(views)-1).Draw(rt, "follow")]
			next := *was
			next.Stamp.Sequence++
			next.Tail = append([]Entry(nil), was.Tail...)
			for range rapid.IntRange(0, 2).Draw(rt, "entries") {
				next.Tail = append(next.Tail, Entry{First: next.Next, End: next.Next + 1, Records: 1, Gateway: GatewayID(fmt.Sprint(step))})
				next.Next++
			}
			next.Start = rapid.Int64Range(was.Start, next.Next).Draw(rt, "start")
			delta, ok := next.Since(was)
			if !ok {
				rt.Fatalf("no delta from %s to %s", viewText(was), viewText(&next))
			}
			got, err := was.Follow(delta)
			next.Tail = next.Tail[findEntry(next.Tail, next.Start):]
			if err != nil || viewText(got) != viewText(&next) {
				rt.Fatalf("%v: %s, want %s", err, viewText(got), viewText(&next))
			}
			views, texts = append(views, got), append(texts, viewText(got))
			for i, v := range views {
				if viewText(v) != texts[i] {
					rt.Fatalf("view %d became %s, was %s", i, viewText(v), texts[i])
				}
			}
		}
	})
}

// BenchmarkFollow is a commit that reaches a reader whose view has 256 entries in its tail.
func BenchmarkFollow(b *testing.B) {
	entry := func(n int64) Entry {
		return Entry{First: n, End: n + 1, Records: 1, Gateway: goldenGateway, Number: uint64(n)}
	}
	base := &View{Partition: goldenPartition, Next: 256}
	for n := range int64(256) {
		base.Tail = append(base.Tail, entry(n))
	}
	next := *base
	next.Stamp.Sequence, next.Next = 1, 257
	next.Tail = append(base.Tail[:256:256], entry(256))
	delta, _ := next.Since(base)
	b.Run("copied", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := base.Follow(delta); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("in a row", func(b *testing.B) {
		b.ReportAllocs()
		v := base
		for b.Loop() {
			end := v.Next
			next := View{Partition: v.Partition, Stamp: v.Stamp, Next: end + 1, Start: end - 255, Tail: []Entry{entry(end)}}
			next.Stamp.Sequence++
			delta, _ := next.Since(&View{Partition: v.Partition, Stamp: v.Stamp, Next: end})
			var err error
			if v, err = v.Follow(delta); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// TestNoDelta: what a delta cannot say.
func TestNoDelta(t *testing.T) {
	for name, spoil := range map[string]func(was, v *View){
		"another partition":     func(was, v *View) { was.Partition.Number++ },
		"another epoch":         func(was, v *View) { was.Stamp.Epoch-- },
		"newer":                 func(was, v *View) { was.Stamp.Sequence = v.Stamp.Sequence + 1 },
		"entries lie in a page": func(was, v *View) { was.Next = 5; v.Tail = v.Tail[1:] },
		"start fell":            func(was, v *View) { was.Start = v.Start + 1 },
		"end fell":              func(was, v *View) { was.Next = v.Next + 1 },
	} {
		was, v := *twoEntries(), twoEntries()
		was.Next, was.Tail = 10, was.Tail[:1]
		if _, ok := v.Since(&was); !ok {
			t.Fatal("no delta at all")
		}
		spoil(&was, v)
		if _, ok := v.Since(&was); ok {
			t.Errorf("%s: there is a delta", name)
		}
	}
	if _, ok := twoEntries().Since(nil); ok {
		t.Error("a delta from nothing")
	}
}
