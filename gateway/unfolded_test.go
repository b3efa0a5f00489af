package gateway

import "testing"

// TestFoldLimits: few partitions are checkpointed as soon as the journal has its least, very many when that is worth
// a row for each of them, and none later than at its most.
func TestFoldLimits(t *testing.T) {
	f := foldLimits{rows: 64, bytes: 4 << 20, most: 32 << 20}
	for partitions, want := range map[int]int{0: 4 << 20, 100: 4 << 20, 10_000: 10_000 * worthFolding, 1_000_000: 32 << 20} {
		if got := f.full(partitions); got != want {
			t.Errorf("%d partitions: %d bytes, want %d", partitions, got, want)
		}
	}
	if f = (foldLimits{rows: 1, bytes: 1, most: 8}); f.full(10_000) != 8 {
		t.Error("what is told to fold early waits")
	}
}
