package gateway

import (
	"testing"

	"github.com/varvelog/varve/metadata"
)

// TestNeighbours: ranges of a segment are joined unless more is left out between them than they have.
func TestNeighbours(t *testing.T) {
	at := func(number uint64, from, to int64) wanted {
		return wanted{chunk: metadata.Chunk{Gateway: "g", Number: number, Position: from}, length: to - from}
	}
	joined := neighbours([]wanted{at(2, 40, 50), at(1, 0, 10), at(2, 0, 10), at(2, 20, 30), at(1, 90, 100)})
	want := []wanted{at(2, 0, 50), at(1, 0, 10), at(1, 90, 100)}
	want[0].asked, want[1].asked, want[2].asked = 30, 10, 10
	if len(joined) != len(want) {
		t.Fatalf("%d ranges: %v", len(joined), joined)
	}
	for i := range want {
		if joined[i] != want[i] {
			t.Errorf("range %d: %v, want %v", i, joined[i], want[i])
		}
	}
}

// TestDensity: whole segments are fetched for a reader of half of each, and not for one of an eighth.
func TestDensity(t *testing.T) {
	for partitions, want := range map[int64]bool{1: false, 2: false, 3: true, 4: true, 8: true} {
		var d density
		dense := false
		for number := range uint64(40) {
			for i := range partitions {
				w := wanted{chunk: metadata.Chunk{Gateway: "g", Number: number, Position: i << 20}, length: 1 << 20}
				dense = d.note(neighbours([]wanted{w}))
			}
		}
		if dense != want {
			t.Errorf("%d partitions of 8: %v", partitions, dense)
		}
		if len(d.asked) > denseSegments || len(d.order) != len(d.asked) {
			t.Errorf("%d segments are remembered, %d in order", len(d.asked), len(d.order))
		}
	}
}

// TestWiden: a range grows to where fetches begin and end.
func TestWiden(t *testing.T) {
	w := []wanted{{chunk: metadata.Chunk{Position: 3 << 20}, length: fetchBytes}}
	widen(w)
	if w[0].chunk.Position != 0 || w[0].length != 2*fetchBytes {
		t.Errorf("from %d, %d bytes", w[0].chunk.Position, w[0].length)
	}
}
