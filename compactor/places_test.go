package compactor

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"connectrpc.com/connect/v2"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
	"github.com/varvelog/varve/verify"
)

// TestFlippedPlaces flips each byte of the headers of batches between which offsets are missing, as they lie in the bucket: a merge and
// key compaction find the damage, or make of it what it was.
func TestFlippedPlaces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := draw(t, true)
		e := &d.entries[partitionID(0)][0]
		key := segments.ObjectKey(testCluster, segments.GatewayID(e.Gateway), e.Number)
		object, _, err := d.store.Get(t.Context(), key, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		good := object[e.Position : e.Position+e.Length]
		whole, err := place(e, bytes.Clone(good))
		if err != nil {
			t.Fatal(err)
		}
		at := 0
		for i := rapid.IntRange(0, len(whole)-1).Draw(t, "batch"); i > 0; i-- {
			at += len(whole[i-1].data)
		}
		for n := range batch.HeaderSize {
			data := bytes.Clone(good)
			data[at+n] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			if list, err := place(e, bytes.Clone(data)); err == nil {
				for i := range list {
					if !bytes.Equal(list[i].data, whole[i].data) || list[i].offset != whole[i].offset {
						t.Fatalf("byte %d: another batch is merged", n)
					}
				}
			} else if !errors.Is(err, segments.ErrCorrupt) {
				t.Fatal(err)
			}
			r := entryReader{store: rangeStore{d.store, data, e.Position}, cluster: testCluster, pace: d.merger().pace}
			i, wrong := 0, false
			err := r.read(t.Context(), e, func(b []byte) error {
				h, err := batch.ParseHeader(b)
				wrong = wrong || i >= len(whole) || h.BaseOffset != whole[i].offset
				i++
				return err
			})
			if err == nil && (wrong || i != len(whole)) || err != nil && !errors.As(err, new(*damageError)) {
				t.Fatalf("byte %d: %v", n, err)
			}
		}
	})
}

// rangeStore has other bytes in an object.
type rangeStore struct {
	segments.Store
	data     []byte
	position int64
}

func (s rangeStore) Get(_ context.Context, _ string, offset, length int64) ([]byte, int64, error) {
	from := offset - s.position
	return bytes.Clone(s.data[from : from+length]), 1 << 30, nil
}

// TestMovedBatch: where records are missing, the stored base offset is all that says where a batch is. One with another base offset,
// that would fit as well, is told to readers as damage, found by verify, and set aside by the next compaction.
func TestMovedBatch(t *testing.T) {
	w := newWorld(t)
	config := map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0"}
	w.fillKeys("a", 1, 60, 12, config)
	c := w.compactor(func(c *Config, _ *Dependencies) { c.KeyTailBytes = -1 })
	w.compact(c)
	e, position, offset := w.gapBefore("a", 0)
	if err := w.readOne("a", 0, offset); err != nil {
		t.Fatal(err)
	}
	w.change(segments.ObjectKey(segments.ClusterID(w.g.ClusterID()), segments.GatewayID(e.Gateway), e.Number), func(data []byte) []byte {
		data[position+7]-- // the last byte of its base offset
		return data
	})
	w.stop()
	w.start() // nothing is in memory
	if err := w.readOne("a", 0, offset-1); connect.CodeOf(err) != connect.CodeDataLoss {
		t.Errorf("a read of a batch with another base offset: %v", err)
	}
	found := 0
	_, err := verify.Run(t.Context(), verify.Config{Store: w.store, Table: w.table, Deep: true}, func(f verify.Finding) {
		if !f.Kind.Break() {
			return // a page that was replaced, and not collected yet
		}
		if found++; f.Kind != verify.BatchCorrupt {
			t.Errorf("verify: %+v", f)
		}
	})
	w.must(err)
	if found != 1 {
		t.Errorf("verify has %d findings", found)
	}
	w.fillKeys("a", 1, 20, 12, nil)
	r := w.compact(w.compactor(func(c *Config, _ *Dependencies) { c.KeyTailBytes = -1 }))
	if len(r.SetAside) != 1 || r.SetAside[0].First != e.First {
		t.Errorf("the next pass came to %+v", r)
	}
}

// gapBefore finds a batch that an offset is missing before whose number is odd, so that it can be one less: its entry, byte and base offset.
func (w *world) gapBefore(topic string, partition int32) (metadata.Entry, int64, int64) {
	w.t.Helper()
	for _, e := range w.entries(topic, partition) {
		if e.Length == 0 || e.Records == e.End-e.First {
			continue
		}
		data, _, err := w.store.Get(w.t.Context(), segments.ObjectKey(segments.ClusterID(w.g.ClusterID()), segments.GatewayID(e.Gateway), e.Number), e.Position, e.Length)
		w.must(err)
		next, at := e.First, e.Position
		for b, err := range batch.Split(data) {
			w.must(err)
			h, err := batch.Check(b)
			w.must(err)
			if h.BaseOffset > next && h.BaseOffset&0xff > 0 {
				return e, at, h.BaseOffset
			}
			next, at = h.EndOffset(), at+int64(len(b))
		}
	}
	w.t.Fatal("no offset is missing before a batch")
	return metadata.Entry{}, 0, 0
}
