package gateway

import (
	"bytes"
	"errors"
	"testing"

	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// storedBatches are three of two records each, at offsets 10, 14 and 20; sparse: sealed there, as key compaction leaves them, otherwise
// at 10, 12 and 14, as producers send them.
func storedBatches(t *testing.T, sparse bool) []byte {
	t.Helper()
	var data []byte
	for i, offset := range []int64{10, 14, 20} {
		b := batch.NewBuilder(batch.None)
		for n := range int64(2) {
			if err := b.Append(batch.Record{Timestamp: 1000*int64(i) + n, Value: []byte{byte(i), byte(n)}}); err != nil {
				t.Fatal(err)
			}
		}
		one, err := b.Build(batch.NoProducer)
		if err != nil {
			t.Fatal(err)
		}
		if sparse {
			batch.SealPlace(one, offset)
		}
		data = append(data, one...)
	}
	return data
}

// TestFlippedHeaders flips each bit of the headers of stored batches: what a reader gets has the offsets and the records that
// were stored, or the place of the damage. Where a batch's base offset means nothing, and in its leader epoch, a bit may be another one.
func TestFlippedHeaders(t *testing.T) {
	g := startGateway(t, Config{Exclusive: true}, memory())
	for _, sparse := range []bool{false, true} {
		good := storedBatches(t, sparse)
		w := wanted{chunk: metadata.Chunk{Gateway: "g1-m", Number: 1, Length: int64(len(good)), First: 8, End: 25, Sparse: true}, length: int64(len(good))}
		if !sparse {
			w.chunk.First, w.chunk.End, w.chunk.Sparse = 10, 16, false
		}
		want, _, err := g.reader.stamp(w, bytes.Clone(good), filter{from: 0, until: 100}, nil)
		if err != nil {
			t.Fatal(err)
		}
		size := len(good) / 3
		for at := range good {
			if at%size >= batch.HeaderSize {
				continue
			}
			free := !sparse && (at%size < 8 || at%size >= 12 && at%size < 16)
			for bit := range 8 {
				data := bytes.Clone(good)
				data[at] ^= 1 << bit
				got, reached, err := g.reader.stamp(w, data, filter{from: 0, until: 100}, data[:0])
				switch {
				case free && (err != nil || !bytes.Equal(got, want)):
					t.Fatalf("sparse %v, byte %d, bit %d: %d bytes, %v", sparse, at, bit, len(got), err)
				case free:
				case err == nil:
					t.Errorf("sparse %v, byte %d, bit %d: nothing is found", sparse, at, bit)
				case !errors.Is(err, segments.ErrCorrupt) || connect.CodeOf(classified(err)) != connect.CodeDataLoss:
					t.Errorf("sparse %v, byte %d, bit %d: %v", sparse, at, bit, err)
				case !bytes.Equal(got, want[:len(got)]):
					t.Errorf("sparse %v, byte %d, bit %d: other bytes go out", sparse, at, bit)
				case reached > 20:
					t.Errorf("sparse %v, byte %d, bit %d: goes on at %d", sparse, at, bit, reached)
				}
			}
		}
	}
}
