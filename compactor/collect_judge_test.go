package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/memstore"
)

func TestJudge(t *testing.T) {
	const gateway, merger = metadata.GatewayID("g1"), metadata.GatewayID("g1-m")
	of := func(state metadata.GatewayState) standing { return standing{state: state, floor: 5, mergeFloor: 3} }
	heard := of(metadata.GatewayClosed)
	heard.heard = true
	for _, c := range []struct {
		what     string
		s        standing
		uploader metadata.GatewayID
		number   uint64
		want     Reason
	}{
		{"settled", of(metadata.GatewayLive), gateway, 4, ""},
		{"at the floor", of(metadata.GatewayLive), gateway, 5, KeptUnsettled},
		{"draining", of(metadata.GatewayDraining), gateway, 5, KeptUnsettled},
		{"sealed, settled before", of(metadata.GatewaySealed), gateway, 4, ""},
		{"sealed: its disk may come back", of(metadata.GatewaySealed), gateway, 5, KeptUnsettled},
		{"a merge that is settled", of(metadata.GatewayLive), merger, 2, ""},
		{"a merge in flight, below the other floor", of(metadata.GatewayLive), merger, 3, KeptUnsettled},
		{"of a gateway that never merged", standing{state: metadata.GatewayLive, floor: 5}, merger, 1, KeptUnsettled},
		{"closed, settled before", of(metadata.GatewayClosed), gateway, 4, ""},
		{"closed, and not everybody knows", of(metadata.GatewayClosed), gateway, 5, KeptUnheard},
		{"a merge of it", of(metadata.GatewayClosed), merger, 9, KeptUnheard},
		{"closed, and everybody knows", heard, gateway, 1 << 40, ""},
		{"a merge of that", heard, merger, 1 << 40, ""},
		{"no row, and nothing else", standing{}, gateway, 1, KeptUnknown},
		{"no row, and a seal", standing{ended: true}, gateway, 1, ""},
	} {
		if got := c.s.judge(c.uploader, c.number); got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestLimits(t *testing.T) {
	l := limits{maxShare: 0.3, fewObjects: 100, fewBytes: 1 << 30}
	for _, c := range []struct {
		objects, bytes, of int64
		want               bool
	}{
		{100, 1 << 40, 1 << 40, true},
		{101, 1 << 30, 1 << 30, true},
		{101, 3 << 30, 10 << 30, true},
		{101, 4 << 30, 10 << 30, false},
		{1 << 30, 1<<30 + 1, 1 << 31, false},
	} {
		if got := l.share(c.objects, c.bytes, c.of); got != c.want {
			t.Errorf("%d objects, %d of %d bytes: %v", c.objects, c.bytes, c.of, got)
		}
	}
}

// answers is gateways of which some are silent.
type answers struct {
	silent map[metadata.GatewayID]bool
	asked  func(metadata.GatewayID)
}

func (a *answers) Acknowledge(_ context.Context, id metadata.GatewayID) error {
	if a.silent[id] {
		return errors.New("no answer")
	}
	a.asked(id)
	return nil
}

// TestHeard holds what a collector takes for heard, over several collections in which gateways come, are sealed and closed, and
// answer or not, against brute force: a closing is heard of when each gateway that lives has answered after it.
func TestHeard(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		ctx, table := r.Context(), memtable.New()
		gateways := &answers{}
		c, err := NewCollector(CollectConfig{Store: memstore.New(), Table: table, Gateways: gateways})
		must := func(err error) {
			if err != nil {
				r.Fatalf("%v", err)
			}
		}
		must(err)
		state := make(map[metadata.GatewayID]metadata.GatewayState)
		clock, closedAt, answeredAt := 0, make(map[metadata.GatewayID]int), make(map[metadata.GatewayID]int)
		var mu sync.Mutex
		gateways.asked = func(id metadata.GatewayID) {
			mu.Lock()
			defer mu.Unlock()
			answeredAt[id] = clock
		}
		var ids []metadata.GatewayID
		for range rapid.IntRange(1, 6).Draw(r, "collections") {
			for range rapid.IntRange(0, 5).Draw(r, "events") {
				clock++
				if len(ids) == 0 || rapid.Bool().Draw(r, "comes") {
					id := metadata.GatewayID(fmt.Sprintf("g%02d", len(ids)))
					_, err := metadata.RegisterGateway(ctx, table, metadata.Gateway{ID: id, Floor: 1})
					must(err)
					ids = append(ids, id)
					state[id], answeredAt[id] = metadata.GatewayLive, clock // it reads the rows when it begins
					continue
				}
				id := rapid.SampledFrom(ids).Draw(r, "who")
				if rapid.Bool().Draw(r, "closed") {
					must(metadata.MarkClosed(ctx, table, id))
					if state[id] != metadata.GatewayClosed {
						state[id], closedAt[id] = metadata.GatewayClosed, clock
					}
				} else if state[id] == metadata.GatewayLive {
					must(metadata.MarkSealed(ctx, table, id, time.Now()))
					state[id] = metadata.GatewaySealed
				}
			}
			clock++
			gateways.silent = make(map[metadata.GatewayID]bool)
			for _, id := range ids {
				gateways.silent[id] = rapid.IntRange(0, 3).Draw(r, "silent") == 0
			}
			p := newCollecting(c, CollectOptions{})
			must(p.readGateways(ctx))
			must(p.ask(ctx))
			for _, id := range ids {
				if state[id] != metadata.GatewayClosed {
					continue
				}
				want := !slices.ContainsFunc(ids, func(other metadata.GatewayID) bool {
					return state[other] == metadata.GatewayLive && answeredAt[other] <= closedAt[id]
				})
				// A collector knows only of answers that it got: it may ask once more than it would need to.
				if got := p.standings[id].heard; got && !want {
					r.Fatalf("%s was closed at %d; the gateways answered at %v, are %v, and that counts as heard", id, closedAt[id], answeredAt, state)
				} else if !got && want && len(p.report.Unasked) == 0 {
					r.Fatalf("%s was closed at %d; the gateways answered at %v, are %v, and that does not count as heard", id, closedAt[id], answeredAt, state)
				}
			}
		}
	})
}

// TestPeriods holds the look at some periods of an index against brute force.
func TestPeriods(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var spans []held
		for range rapid.IntRange(1, 8).Draw(r, "spans") {
			least := rapid.Int64Range(0, 50).Draw(r, "least")
			spans = append(spans, held{least: least, max: least + rapid.Int64Range(0, 10).Draw(r, "more")})
		}
		s := &search{periods: periods(spans)}
		for range 20 {
			least := rapid.Int64Range(-2, 62).Draw(r, "child")
			c := metadata.Child{MinTimestamp: least, MaxTimestamp: least + rapid.Int64Range(0, 12).Draw(r, "to")}
			want := slices.ContainsFunc(spans, func(h held) bool { return h.least <= c.MaxTimestamp && h.max >= c.MinTimestamp })
			if s.meets(&c) != want {
				r.Fatalf("%v: %d to %d: %v", s.periods, c.MinTimestamp, c.MaxTimestamp, !want)
			}
		}
	})
}

// TestEachReasonIsLookedAtAgain: whatever keeps an object, another collection follows without more garbage.
func TestEachReasonIsLookedAtAgain(t *testing.T) {
	for _, why := range []Reason{KeptUnsettled, KeptUnheard, KeptUnknown, KeptForGrace, KeptNamed, KeptUnclear, KeptUnreadable, KeptTooMany, KeptRefused} {
		r := &Collection{}
		r.keep(why, 1)
		var a after
		a.note(r, true)
		if !a.again {
			t.Errorf("%s: it waits for other garbage", why)
		}
	}
}
