package gateway

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/varvelog/varve/metadata"
)

// Upkeep is what a gateway offers to those who look after its log in the background: retention, the removal of
// deleted topics. Work is shared as sequencing is: a partition is looked after by the gateway that should sequence it.
type Upkeep struct {
	g *Gateway
	// changes counts the changes of topics that were made here; others see it in this gateway's row.
	changes atomic.Uint64
	warned  atomic.Bool // of a clock that is ahead
	// Set before Run:
	onCommit  []func(*metadata.View)
	onCatalog []func()
}

func newUpkeep(g *Gateway) *Upkeep { return &Upkeep{g: g} }

// Upkeep is for those who look after the log.
func (g *Gateway) Upkeep() *Upkeep { return g.upkeep }

// Topics is the catalog.
func (u *Upkeep) Topics() *metadata.Topics { return u.g.topics }

// Table is the table, with retries.
func (u *Upkeep) Table() metadata.Table { return u.g.table }

// OnCommit has f called with each new view of the partitions that this gateway sequences. f must not block. Before Run.
func (u *Upkeep) OnCommit(f func(*metadata.View)) { u.onCommit = append(u.onCommit, f) }

// OnCatalog has f called when topics were made, changed or removed, here or by another gateway. f must not block. Before Run.
func (u *Upkeep) OnCatalog(f func()) { u.onCatalog = append(u.onCatalog, f) }

func (u *Upkeep) committed(v *metadata.View) {
	for _, f := range u.onCommit {
		f(v)
	}
}

// changed notes that this gateway changed a topic, or tried to.
func (u *Upkeep) changed() {
	u.changes.Add(1)
	u.catalogChanged()
}

func (u *Upkeep) catalogChanged() {
	for _, f := range u.onCatalog {
		f()
	}
}

// Members calls f when gateways come or go, until ctx ends.
func (u *Upkeep) Members(ctx context.Context, f func()) error {
	for {
		changed := u.g.members.watch()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
			f()
		}
	}
}

// Mine says whether this gateway looks after a partition, as things are now.
func (u *Upkeep) Mine(id metadata.PartitionID) bool { return u.g.members.winner(id) == u.g.ID() }

// Expired says what of a partition goes under a retention, by its newest view. A partition that nobody here has
// asked for is read without being remembered: a topic may have a million of them.
func (u *Upkeep) Expired(ctx context.Context, id metadata.PartitionID, r metadata.Retention, now int64) (*metadata.View, metadata.Expired, error) {
	view := func(ctx context.Context, id metadata.PartitionID) (*metadata.View, error) {
		if p := u.g.partitions.peek(id); p != nil {
			return u.g.viewOf(ctx, p)
		}
		v, _, err := u.g.journals.View(ctx, id)
		return v, err
	}
	for try := 0; ; try++ {
		v, err := view(ctx, id)
		if err != nil {
			return nil, metadata.Expired{}, err
		}
		e, err := v.Expired(ctx, u.g.reader.index, r, now)
		if errors.Is(err, metadata.ErrIndexMoved) && try < 8 {
			if u.g.partitions.peek(id) != nil {
				view = u.g.viewNow
			}
			continue
		}
		return v, e, err
	}
}

// Trim moves a log start up, as a version of the topic has it: metadata.ErrConflict when there is a newer one where it is decided,
// however late that is.
func (u *Upkeep) Trim(ctx context.Context, topic *metadata.Topic, id metadata.PartitionID, offset int64) error {
	_, err := u.g.router.decide(ctx, id, decision{trim: &offset, under: &settings{topic.Name, topic.Stamp}})
	return err
}

// Delete goes on with the deletion of a topic that is marked, from wherever it was left.
func (u *Upkeep) Delete(ctx context.Context, topic *metadata.Topic) error {
	return u.g.deletions.join(topic).wait(ctx)
}

// clockAhead is how far a wall clock may be ahead of the others' before theirs is believed.
const clockAhead = time.Minute

// Clock is the time by which records are too old: the wall clock, unless it is far ahead of the lower median of
// all living gateways' clocks, its own among them. A host whose clock is a day ahead would remove a day's records too
// early; one that is behind removes them late, which does no harm.
func (u *Upkeep) Clock() time.Time {
	own := u.g.now()
	clocks := append(u.g.members.clocks(), own)
	slices.SortFunc(clocks, time.Time.Compare)
	median := clocks[(len(clocks)-1)/2]
	if own.Sub(median) <= clockAhead {
		return own
	}
	if u.warned.CompareAndSwap(false, true) {
		u.g.log.Warn("the clock of this host is far ahead of those of other gateways: retention goes by theirs; set it right",
			"ahead", own.Sub(median).Round(time.Second))
	}
	return median
}

// clocks are the wall clocks of the other living gateways as they must be by now: what each one's row said when it
// was seen to change, and what has passed since on our own monotonic clock. They are late by a beat at most.
func (m *members) clocks() []time.Time {
	own, now := m.g.ID(), time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []time.Time
	for id, s := range m.seen {
		lives := s.row.State == metadata.GatewayLive || s.row.State == metadata.GatewayDraining
		if id != own && lives && !m.isDeadLocked(id) && s.row.Clock > 0 {
			list = append(list, time.UnixMilli(s.row.Clock).Add(now.Sub(s.at)))
		}
	}
	return list
}
