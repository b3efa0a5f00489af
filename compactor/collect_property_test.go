package compactor_test

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/varvelog/varve/compactor"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// steppingStore and steppingTable have the forgery move before the collector's calls.
type steppingStore struct {
	segments.Store
	step   func()
	before func(key string) // a delete
}

func (s steppingStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	s.step()
	return s.Store.Get(ctx, key, offset, length)
}

func (s steppingStore) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	s.step()
	return s.Store.List(ctx, prefix, after, min(limit, 3))
}

func (s steppingStore) Delete(ctx context.Context, key string) error {
	s.step()
	s.before(key)
	return s.Store.Delete(ctx, key)
}

type steppingTable struct {
	metadata.Table
	step func()
}

func (s steppingTable) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	s.step()
	return s.Table.Get(ctx, key, c)
}

func (s steppingTable) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	s.step()
	return s.Table.Range(ctx, r)
}

func (s steppingTable) Delete(ctx context.Context, key metadata.Key, c metadata.Condition) error {
	s.step()
	return s.Table.Delete(ctx, key, c)
}

// TestCollectBetweenReads moves a cluster between any two calls of a collector: uploads, commits, checkpoints, trims, merges,
// hand-overs, deaths, closings with references and swaps on their way. Nothing that anybody names is ever deleted, and
// nothing that was deleted is ever named. When all is quiet, what nothing names goes, and only that.
func TestCollectBetweenReads(t *testing.T) {
	did := make(map[string]int)
	for range 4 {
		rapid.Check(t, func(r *rapid.T) { collectBetweenReads(r, did) })
	}
	t.Logf("%v", did)
	for _, what := range []string{"late reference refused", "swap outcome 1", "swap outcome 2", "deleted", "deleted beside", "gateway removed", "row removed"} {
		if did[what] == 0 {
			t.Errorf("never: %s", what)
		}
	}
}

func collectBetweenReads(r *rapid.T, did map[string]int) {
	w := newForgery(r)
	w.did = did
	draw := func(n int) int { return rapid.IntRange(0, n-1).Draw(r, "n") }
	w.begin()
	w.begin()
	living := func() *forged {
		var list []*forged
		for _, g := range w.all {
			if !g.dead {
				list = append(list, g)
			}
		}
		if len(list) == 0 {
			return w.begin()
		}
		return list[draw(len(list))]
	}
	any := func() *forged { return w.all[draw(len(w.all))] }
	steps := []func(){
		func() { living().upload(1+draw(2), 0, 1) },
		func() { living().upload(1, 2) },
		func() { any().settle(true) },
		func() { any().settle(true) },
		func() { any().settle(false) },
		func() {
			g := living()
			for range 66 {
				g.upload(1, 0)
				g.settle(false)
			}
			g.checkpoint(0, false)
		},
		func() { living().checkpoint(int32(draw(partitions)), false) },
		func() { living().checkpoint(int32(draw(partitions)), true) },
		func() { living().trim(int32(draw(partitions)), int64(draw(100))) },
		func() { living().trimJournal() },
		func() { living().merge(int32(draw(partitions)), draw) },
		func() {
			if len(w.swaps) > 0 {
				w.swaps[draw(len(w.swaps))].decide()
			}
		},
		func() {
			if g := any(); !g.dead {
				g.beat()
			}
		},
		func() { living().dead = true },
		func() {
			if g := any(); g.dead && !g.closed {
				g.end(living().id)
			}
		},
		func() { w.begin() },
		func() { living().leave() },
		func() { living().look() },
	}
	step := func() { steps[draw(len(steps))]() }
	for range rapid.IntRange(0, 40).Draw(r, "before") {
		step()
	}
	left := 40
	moves := func() {
		if left > 0 && rapid.IntRange(0, 7).Draw(r, "moves") == 0 {
			left--
			step()
		}
	}
	beside := true
	c := w.collector(func(config *compactor.CollectConfig) {
		config.Parallel = 1
		config.Store = steppingStore{w.store, moves, func(key string) {
			if slices.Contains(w.named(), key) {
				r.Fatalf("%s is deleted, and named", key)
			}
			if did["deleted"]++; beside && left > 0 {
				did["deleted beside"]++
			}
		}}
		config.Table = steppingTable{w.table, moves}
	})
	for range rapid.IntRange(1, 3).Draw(r, "collections") {
		if _, err := c.Collect(r.Context(), compactor.CollectOptions{Force: true}); err != nil {
			r.Fatalf("collect: %v", err)
		}
	}
	left, beside = 0, false
	w.quiet()
	for range 3 {
		report := w.collect(c, compactor.CollectOptions{Force: true})
		did["gateway removed"] += int(report.Gateways)
		did["row removed"] += int(report.Rows)
	}
	if diff := cmp.Diff(w.named(), w.objects()); diff != "" {
		r.Fatalf("when all is quiet (-named +there):\n%s", diff)
	}
}

// quiet lets everything come to its end: what is on its way arrives, who is dead is closed, who lives has beaten.
func (w *forgery) quiet() {
	g := w.begin()
	for len(w.swaps) > 0 {
		w.swaps[0].decide()
	}
	for _, other := range w.all {
		for len(other.flying) > 0 {
			other.settle(false)
		}
		switch {
		case other.dead && !other.closed:
			other.end(g.id)
		case !other.dead:
			other.beat()
		}
	}
	for partition := range int32(partitions) {
		for _, other := range w.all {
			if !other.dead && other.hold(partition) != nil {
				other.checkpoint(partition, false)
				break
			}
		}
	}
}
