package metadata_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
)

// TestFenceRacers: of many who know the same token and offset one sets its own, however often
// each of them tries; the others learn who won.
func TestFenceRacers(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		l := newTimeline(rt)
		l.append(rt, 100, []int64{1})
		current, expected := "", int64(1)
		var with *int64
		if rapid.Bool().Draw(rt, "with offset") {
			with = &expected
		}
		winner := ""
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, 5), 2, 20).Draw(rt, "tries") {
			token := fmt.Sprintf("racer %d", i)
			change, err := l.state.JudgeFence(token, &current, with)
			l.apply(rt, change)
			var conflict *metadata.FenceConflict
			switch {
			case winner == "":
				if winner = token; change == nil || err != nil {
					rt.Fatalf("the first: %v %v", change, err)
				}
			case token == winner:
				if change != nil || err != nil {
					rt.Fatalf("the winner again: %v %v", change, err)
				}
			case change != nil || !errors.As(err, &conflict) || conflict.Token != winner || conflict.Next != 1:
				rt.Fatalf("a loser: %v %v, %q won", change, err, winner)
			}
		}
	})
}

// TestFenceAcrossTakeover: a token outlives its owner, by journal and by checkpoint, and
// appends are held against it; one that was never committed is none.
func TestFenceAcrossTakeover(t *testing.T) {
	for _, how := range []string{"folded", "checkpointed", "released"} {
		table := memtable.New()
		first := arrive(t, table, "g1")
		change, err := first.state.JudgeFence("mine", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		first.decide(t, change)
		if how != "folded" {
			first.checkpoint(t, table, how == "released")
		}
		second := arrive(t, table, "g2")
		with := func(token string) metadata.Batch {
			b := plain()
			b.FencingToken, b.HasFencingToken = token, true
			return b
		}
		v := second.refer(t, reference(1, with("mine"), with("other"), with(""), plain()))
		want := []metadata.Outcome{metadata.Accepted, metadata.FenceMismatch, metadata.FenceMismatch, metadata.Accepted}
		if got := outcomes(v); !slices.Equal(got, want) || second.state.Fence() != "mine" {
			t.Errorf("%s: token %q, outcomes %v", how, second.state.Fence(), got)
		}
		// The first owner, paused meanwhile, lets somebody else win: that is no commit.
		current := "mine"
		change, err = first.state.JudgeFence("late", &current, nil)
		if err != nil || change == nil {
			t.Fatalf("%v %v", change, err)
		}
		if how != "released" {
			if _, err := first.journal.Append(t.Context(), entryOf(change)); !errors.Is(err, metadata.ErrFenced) {
				t.Errorf("%s: the paused owner commits a token: %v", how, err)
			}
		}
		if v, err := metadata.ReadView(t.Context(), table, timelinePartition); err != nil || v.Fence != "mine" {
			t.Errorf("%s: readers find %+v %v", how, v, err)
		}
	}
}

func TestFenceConflictNamesBoth(t *testing.T) {
	l := newTimeline(t)
	l.append(t, 100, []int64{1, 2})
	wrong := int64(7)
	_, err := l.state.JudgeFence("x", nil, &wrong)
	if want := `the fencing token is "" and the next offset 2`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	change, err := l.state.JudgeFence("x", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	l.apply(t, change)
	// The same token again may be a retry, whatever the log did since.
	if change, err := l.state.JudgeFence("x", new(string), &wrong); change != nil || err != nil {
		t.Errorf("set already: %v %v", change, err)
	}
}
