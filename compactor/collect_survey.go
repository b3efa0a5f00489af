package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
)

const (
	// attempts is how often a partition is read that moves while it is, with pauses that double from attemptPause:
	// 20 seconds in all. A checkpoint comes once in seconds at most.
	attempts     = 12
	attemptPause = 5 * time.Millisecond
)

// glimpse is a partition as of one moment.
type glimpse struct {
	id    metadata.PartitionID
	lease *metadata.Lease // nil: it has no rows
	// stored is what the lease row alone shows, view what the journal adds.
	stored, view *metadata.View
	more         bool  // it has rows beside the lease row
	headless     bool  // it has rows, and no lease row: a fault, unless its topic was deleted
	fault        error // it cannot be read
}

// head reads a partition's lease row, and whether it has other rows.
func head(ctx context.Context, t metadata.Table, id metadata.PartitionID) (*glimpse, error) {
	all := metadata.PartitionRows(id)
	all.Limit = 2
	rows, err := t.Range(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("rows of %s: %w", id, err)
	}
	g := &glimpse{id: id}
	switch {
	case len(rows) == 0:
	case rows[0].Key != id.LeaseKey():
		g.headless = true
		g.fault = fmt.Errorf("%w: %s has rows, and no lease row", metadata.ErrCorrupt, id)
	default:
		g.more = len(rows) > 1
		if g.lease, g.fault = metadata.DecodeLease(id, rows[0]); g.fault == nil {
			g.stored = g.lease.View()
			g.view = g.stored
		}
	}
	return g, nil
}

// excuse takes a partition without a lease row for gone when its topic was deleted: rows of swaps and checkpoints that were under way
// come after the sweep. Each partition was closed before the row about the deletion was written, and that row stays: nobody judges
// anything in it again, whatever else lies there.
func (p *collecting) excuse(ctx context.Context, g *glimpse) error {
	if !g.headless {
		return nil
	}
	removed, err := p.isRemoved(ctx, g.id.Topic)
	if err != nil || !removed {
		return err
	}
	g.fault = nil
	p.mu.Lock()
	defer p.mu.Unlock()
	p.strays[g.id] = true
	return nil
}

// fold adds what the journal holds, which was read before the lease row: so both together show the partition as of one
// moment.
func (g *glimpse) fold(journal *metadata.SealedJournal) {
	if g.fault != nil || g.lease == nil || g.lease.Released || seeded.Has(seeded.CollectStaleView) {
		return
	}
	if g.view, g.fault = g.lease.Folded(journal); g.fault != nil {
		g.fault = fmt.Errorf("the journal of %s does not follow on from %s: %w", journal.ID, g.id, g.fault)
	}
}

// survey shows each partition of the topics that are there, once, as of a moment after its begin. Journals are read one
// at a time, before the lease rows of the partitions in them; partitions that are in none are shown as their lease
// rows have them. A change goes from the journal to the lease row only, so none that was there at the begin is missed.
// visit is called by several goroutines.
func (p *collecting) survey(ctx context.Context, visit func(context.Context, *glimpse) error) error {
	shown := make(map[metadata.PartitionID]bool)
	for i := range p.gateways {
		if err := p.surveyJournal(ctx, p.gateways[i].ID, shown, visit); err != nil {
			return err
		}
	}
	for _, t := range p.topics {
		group, working := errgroup.WithContext(ctx)
		group.SetLimit(p.Parallel)
		for number := range t.Partitions {
			id := metadata.PartitionID{Topic: t.ID, Number: number}
			if shown[id] {
				continue
			}
			if working.Err() != nil {
				break
			}
			group.Go(func() error { return p.surveyAlone(working, id, visit) })
		}
		if err := errors.Join(group.Wait(), context.Cause(ctx)); err != nil {
			return err
		}
	}
	return nil
}

// readTopics reads the catalog: what lies in a topic that is not there by now is of one that was deleted, or of one that
// came later, of whose segments none was settled before.
func (p *collecting) readTopics(ctx context.Context) error {
	p.topics = make(map[metadata.TopicID]*metadata.Topic)
	for row, err := range metadata.Rows(ctx, p.Table, metadata.TopicRange()) {
		if err != nil {
			return fmt.Errorf("topics: %w", err)
		}
		t, err := metadata.DecodeTopic(row)
		if err != nil {
			return err // its partitions would all look unnamed
		}
		if !t.Removed() {
			p.topics[t.ID] = t
		}
	}
	return nil
}

// deleted says that a partition's records went with its topic. The catalog alone is not enough for that: the partition
// must say so, too.
func (p *collecting) deleted(g *glimpse) bool {
	return g.view != nil && g.view.Closed && p.topics[g.id.Topic] == nil
}

// surveyJournal shows the partitions that go on in a journal.
func (p *collecting) surveyJournal(ctx context.Context, id metadata.GatewayID, shown map[metadata.PartitionID]bool, visit func(context.Context, *glimpse) error) error {
	journal, err := metadata.ReadJournal(ctx, p.Table, id)
	if errors.Is(err, metadata.ErrHole) || errors.Is(err, metadata.ErrCorrupt) {
		p.unclearJournals[id] = err
		return nil
	}
	if err != nil {
		return err
	}
	var mu sync.Mutex
	group, working := errgroup.WithContext(ctx)
	group.SetLimit(p.Parallel)
	for partition := range journal.Partitions() {
		if working.Err() != nil {
			break
		}
		group.Go(func() error {
			g, err := head(working, p.Table, partition)
			if err != nil {
				return err
			}
			if g.fault == nil && (g.lease == nil || g.lease.Source() != id) {
				return nil // it goes on elsewhere, and has all of this
			}
			mu.Lock()
			shown[partition] = true
			mu.Unlock()
			g.fold(journal)
			return visit(working, g)
		})
	}
	return errors.Join(group.Wait(), context.Cause(ctx))
}

// surveyAlone shows a partition that no journal had changes of.
func (p *collecting) surveyAlone(ctx context.Context, id metadata.PartitionID, visit func(context.Context, *glimpse) error) error {
	g, err := head(ctx, p.Table, id)
	if err != nil {
		return err
	}
	if g.fault == nil && g.lease != nil && !g.lease.Released {
		g.fault = p.unclearJournals[g.lease.Source()]
	}
	return visit(ctx, g)
}

// journals are those that were read for a last look.
type journals struct {
	mu   sync.Mutex
	read map[metadata.GatewayID]*oneJournal
}

type oneJournal struct {
	done    chan struct{} // closed when it was read
	journal *metadata.SealedJournal
	err     error
}

// of reads a journal, once for all who ask.
func (js *journals) of(ctx context.Context, t metadata.Table, id metadata.GatewayID) (*metadata.SealedJournal, error) {
	js.mu.Lock()
	j, known := js.read[id]
	if !known {
		j = &oneJournal{done: make(chan struct{})}
		if js.read == nil {
			js.read = make(map[metadata.GatewayID]*oneJournal)
		}
		js.read[id] = j
	}
	js.mu.Unlock()
	if known {
		select {
		case <-j.done:
			return j.journal, j.err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer close(j.done)
	j.journal, j.err = metadata.ReadJournal(ctx, t, id)
	return j.journal, j.err
}

// lookAfresh reads one partition by strong reads, as of a moment after the journals were begun to be read: its lease row, the
// journal on which it goes on, and the lease row again, which must name that journal still.
func lookAfresh(ctx context.Context, t metadata.Table, id metadata.PartitionID, js *journals) (*glimpse, error) {
	for attempt := range attempts {
		g, err := head(ctx, t, id)
		if err != nil || g.fault != nil || g.lease == nil || g.lease.Released {
			return g, err
		}
		source := g.lease.Source()
		journal, err := js.of(ctx, t, source)
		switch {
		case errors.Is(err, metadata.ErrHole), errors.Is(err, metadata.ErrCorrupt):
			g.fault = err
		case err != nil:
			return nil, err
		}
		again, err := head(ctx, t, id)
		if err != nil {
			return nil, err
		}
		if again.fault == nil && again.lease != nil && again.lease.Source() == source {
			if again.fault = g.fault; again.fault == nil && journal.Has(id) {
				again.fold(journal)
			}
			return again, nil
		}
		if err := rest(ctx, attempt); err != nil {
			return nil, err
		}
	}
	return &glimpse{id: id, fault: errMoving}, nil
}

var errMoving = errors.New("compactor: it moves faster than it can be read")

// rest waits before a partition is read again.
func rest(ctx context.Context, attempt int) error {
	timer := time.NewTimer(attemptPause << attempt)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// rowName names a page (level 0) or a node of one partition.
type rowName struct {
	level int
	metadata.RowPlace
}

// use says for what a row of an index is needed.
type use struct {
	shown bool // what readers see now names it
	must  bool // it must be there: what it holds is not below the log start
}

// indexed is what a partition's index names, and what of its rows it does not.
type indexed struct {
	g        *glimpse
	nodes    map[rowName]metadata.Row
	uses     map[rowName]use
	leftover []metadata.Row
}

// markIndex adds the segments that a partition's index names, and lists index rows that nothing names: neither the lease
// row nor what the journal makes of it. metadata.ErrIndexMoved: it moved while it was read.
func markIndex(ctx context.Context, t metadata.Table, g *glimpse, named *metadata.SegmentSet) ([]metadata.Row, error) {
	x := &indexed{g: g, nodes: make(map[rowName]metadata.Row), uses: make(map[rowName]use)}
	if g.more {
		if err := x.readNodes(ctx, t); err != nil {
			return nil, err
		}
	}
	views := []*metadata.View{g.view}
	if g.stored != g.view {
		views = append(views, g.stored)
	}
	for _, v := range views {
		end := v.Next
		if len(v.Tail) > 0 {
			end = v.Tail[0].First
		}
		for level, children := range v.Levels { // from the newest on: each piece ends where the one after it begins
			if len(children) == 0 {
				continue
			}
			if err := x.expand(level, children, end, v == g.view); err != nil {
				return nil, err
			}
			end = children[0].First
		}
	}
	for name, row := range x.nodes {
		if _, used := x.uses[name]; !used {
			x.leftover = append(x.leftover, row)
		}
	}
	if g.more {
		if err := x.readPages(ctx, t, named); err != nil {
			return nil, err
		}
	}
	for name, u := range x.uses {
		if name.level == 0 && u.shown && u.must {
			return nil, fmt.Errorf("%w: page %v of %s", metadata.ErrIndexMoved, name.RowPlace, g.id)
		}
	}
	named.AddNamed(readable(g.view.Tail, g.view.Start))
	return x.leftover, nil
}

func (x *indexed) readNodes(ctx context.Context, t metadata.Table) error {
	for row, err := range metadata.Rows(ctx, t, metadata.IndexRows(x.g.id, metadata.NodeRow)) {
		if err != nil {
			return fmt.Errorf("tree of %s: %w", x.g.id, err)
		}
		key, ok := metadata.ParseIndexKey(row.Sort)
		if !ok {
			return fmt.Errorf("%w: row %s", metadata.ErrCorrupt, row.Key)
		}
		x.nodes[rowName{key.Level, key.RowPlace}] = row
	}
	return nil
}

// expand notes the rows below children of a level, which end at an offset.
func (x *indexed) expand(level int, children []metadata.Child, end int64, shown bool) error {
	for i := range children {
		stop := end
		if i+1 < len(children) {
			stop = children[i+1].First
		}
		name := rowName{level, children[i].Place()}
		must := stop > x.g.view.Start
		was := x.uses[name]
		x.uses[name] = use{shown: was.shown || shown, must: was.must || must}
		if level == 0 {
			continue
		}
		row, found := x.nodes[name]
		if !found {
			if must && shown {
				return fmt.Errorf("%w: node %v of %s", metadata.ErrIndexMoved, name, x.g.id)
			}
			continue
		}
		inner, err := metadata.DecodeNode(row.Value)
		if err != nil {
			return fmt.Errorf("row %s: %w", row.Key, err)
		}
		if err := x.expand(level-1, inner, stop, shown); err != nil {
			return err
		}
	}
	return nil
}

// readPages goes over the pages: those that are used are taken out of uses.
func (x *indexed) readPages(ctx context.Context, t metadata.Table, named *metadata.SegmentSet) error {
	for row, err := range metadata.Rows(ctx, t, metadata.IndexRows(x.g.id, metadata.PageRow)) {
		if err != nil {
			return fmt.Errorf("pages of %s: %w", x.g.id, err)
		}
		key, ok := metadata.ParseIndexKey(row.Sort)
		if !ok {
			return fmt.Errorf("%w: row %s", metadata.ErrCorrupt, row.Key)
		}
		name := rowName{0, key.RowPlace}
		u, used := x.uses[name]
		if !used {
			x.leftover = append(x.leftover, row)
			continue
		}
		delete(x.uses, name)
		if !u.shown {
			continue // a swap replaced it, and the lease row does not say so yet
		}
		entries, err := metadata.DecodePage(row.Value)
		if err != nil {
			return fmt.Errorf("row %s: %w", row.Key, err)
		}
		named.AddNamed(readable(entries, x.g.view.Start))
	}
	return nil
}

// readable is those of the entries, in offset order, that readers can reach: nobody needs what lies below the log start.
func readable(entries []metadata.Entry, start int64) []metadata.Entry {
	i := slices.IndexFunc(entries, func(e metadata.Entry) bool { return e.End > start })
	if i < 0 {
		return nil
	}
	return entries[i:]
}
