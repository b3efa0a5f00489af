package verify

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// batchesOf finds the batches that an entry is made of, or says why there are none.
func batchesOf(d *segments.Directory, r reference) ([]segments.BatchInfo, string) {
	span, found := d.Span(segments.SpanID{Topic: segments.TopicID(r.p.id.Topic), Partition: r.p.id.Number})
	if !found {
		return nil, "the directory has no span of the partition"
	}
	at := func(position int64) (int, bool) {
		if position == span.Position+span.Length {
			return len(span.Batches), true
		}
		return slices.BinarySearchFunc(span.Batches, position, func(b segments.BatchInfo, p int64) int { return cmp.Compare(b.Position, p) })
	}
	end := r.e.Position + r.e.Length
	first, begins := at(r.e.Position)
	last, ends := at(end)
	if !begins || !ends || first >= last {
		return nil, fmt.Sprintf("the index entry has bytes %d to %d, which are no batches of the span at bytes %d to %d",
			r.e.Position, end-1, span.Position, span.Position+span.Length-1)
	}
	return span.Batches[first:last], ""
}

// sparse says that key compaction took records out of an entry: then offsets may be missing between its batches.
func sparse(e *metadata.Entry) bool { return e.Records != e.End-e.First }

// compareEntry says in which way an entry differs from its batches; empty: in none.
func compareEntry(e *metadata.Entry, batches []segments.BatchInfo) string {
	want := summaryOf(batches)
	if sparse(e) && want.offsets < e.End-e.First {
		want.offsets = e.End - e.First
	}
	for _, c := range []struct {
		what      string
		says, are int64
	}{
		{"offsets", e.End - e.First, want.offsets},
		{"records", e.Records, want.records},
		{"least timestamp", e.MinTimestamp, want.least},
		{"largest timestamp", e.MaxTimestamp, want.largest},
		{"last timestamp", e.LastTimestamp, want.last},
	} {
		if c.says != c.are {
			return fmt.Sprintf("%s: the index entry says %d, the directory %d", c.what, c.says, c.are)
		}
	}
	return comparePoints(e, batches)
}

// summary is what batches say together.
type summary struct{ offsets, records, least, largest, last int64 }

func summaryOf(batches []segments.BatchInfo) summary {
	s := summary{least: batches[0].MinTimestamp, largest: batches[0].MaxTimestamp}
	for i := range batches {
		b := &batches[i]
		s.offsets += int64(b.Offsets)
		s.records += int64(b.Records)
		s.least, s.largest, s.last = min(s.least, b.MinTimestamp), max(s.largest, b.MaxTimestamp), b.LastTimestamp
	}
	return s
}

// comparePoints checks that each chunk of an entry is made of whole batches and dated right.
func comparePoints(e *metadata.Entry, batches []segments.BatchInfo) string {
	if len(e.Points) == 0 {
		return ""
	}
	offset := e.First
	for _, chunk := range e.Chunks() {
		n, length := 0, int64(0)
		for n < len(batches) && length < chunk.Length {
			length += int64(batches[n].Size)
			n++
		}
		if n == 0 || length != chunk.Length || chunk.First != offset {
			return fmt.Sprintf("the chunk at byte %d, offset %d, is not made of whole batches", chunk.Position, chunk.First)
		}
		s := summaryOf(batches[:n])
		if chunk.Sparse && s.offsets < chunk.End-chunk.First {
			s.offsets = chunk.End - chunk.First
		}
		if chunk.End-chunk.First != s.offsets || chunk.MaxTimestamp != s.largest || chunk.LastTimestamp != s.last {
			return fmt.Sprintf("the chunk at offset %d says %d offsets, largest timestamp %d and last %d, the directory %d, %d and %d",
				chunk.First, chunk.End-chunk.First, chunk.MaxTimestamp, chunk.LastTimestamp, s.offsets, s.largest, s.last)
		}
		offset, batches = chunk.End, batches[n:]
	}
	if len(batches) > 0 {
		return fmt.Sprintf("the batch at byte %d is in no chunk", batches[0].Position)
	}
	return ""
}

// counted says that the batches' offsets follow each other, so that the directory tells where each begins.
func counted(e *metadata.Entry, batches []segments.BatchInfo) bool {
	return !sparse(e) || summaryOf(batches).offsets == e.End-e.First
}

// contentSum adds up batches, as the directory has them, at their offsets.
func contentSum(e *metadata.Entry, batches []segments.BatchInfo) uint64 {
	var sum uint64
	offset := e.First
	for i := range batches {
		b := &batches[i]
		sum += batch.ContentSum(batch.Header{BaseOffset: offset, CRC: b.CRC, Length: b.Size - framePrefix,
			LastOffsetDelta: b.Offsets - 1, Count: b.Records})
		offset += int64(b.Offsets)
	}
	return sum
}

// framePrefix is what a batch's own length leaves out: base offset and length.
const framePrefix = 12
