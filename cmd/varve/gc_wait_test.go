package main

import (
	"testing"

	"github.com/varvelog/varve/client"
)

// TestWentElsewhere: what waited for the grace was deleted by who was asked, stays, or went by another collector.
func TestWentElsewhere(t *testing.T) {
	for _, c := range []struct {
		waited, deleted, stays, want int64
	}{{0, 0, 0, 0}, {3, 3, 0, 0}, {3, 1, 0, 2}, {3, 0, 0, 3}, {3, 1, 2, 0}, {3, 5, 1, 0}} {
		now := &client.Collection{Kept: map[string]int64{"grace": c.waited, "unsettled": 7}}
		later := &client.Collection{Deleted: c.deleted, Kept: map[string]int64{"refused": c.stays}}
		if got := wentElsewhere(now, later); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
