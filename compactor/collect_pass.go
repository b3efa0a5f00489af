package compactor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/varvelog/varve/internal/seeded"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// collecting is one collection under way.
type collecting struct {
	c *Collector
	CollectConfig
	CollectOptions
	report  *Collection
	cluster *metadata.Cluster
	raised  bool // the generation, before anything was deleted
	// generations are those that the bucket had; generation is this pass's, once it was raised in the table.
	generations []uint64
	generation  uint64

	gateways  []metadata.Gateway // as they were before anything else was read
	standings map[metadata.GatewayID]standing
	topics    map[metadata.TopicID]*metadata.Topic

	named           metadata.SegmentSet
	unclearJournals map[metadata.GatewayID]error

	mu       sync.Mutex
	unclear  map[metadata.PartitionID]bool
	needed   map[metadata.GatewayID]bool  // by a lease
	objects  map[metadata.GatewayID]int64 // that are left, by the gateway that wrote them
	leftover map[metadata.Key]metadata.Stamp
	strays   map[metadata.PartitionID]bool // of deleted topics, with rows that came late

	found []candidate // by this pass
	// removed are topics of which it is known that somebody deleted them.
	removed sync.Map
}

func newCollecting(c *Collector, o CollectOptions) *collecting {
	return &collecting{c: c, CollectConfig: c.config, CollectOptions: o, report: &Collection{DryRun: o.DryRun},
		standings: make(map[metadata.GatewayID]standing), unclearJournals: make(map[metadata.GatewayID]error), unclear: make(map[metadata.PartitionID]bool),
		needed: make(map[metadata.GatewayID]bool), objects: make(map[metadata.GatewayID]int64), leftover: make(map[metadata.Key]metadata.Stamp),
		strays: make(map[metadata.PartitionID]bool)}
}

// run is a whole collection. The order of what it reads is what it rests on: who has settled what, then what is named,
// journals before lease rows before pages, then what there is.
func (p *collecting) run(ctx context.Context) error {
	for _, step := range []func(context.Context) error{p.prepare, p.mark, p.list, p.reap, p.sweep} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// prepare reads what the judgement rests on.
func (p *collecting) prepare(ctx context.Context) error {
	for _, step := range []func(context.Context) error{p.checkGeneration, p.beat, p.readGateways, p.ask, p.readTopics} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

const (
	generationFolder = "generation/"
	// listPage is how many keys are listed at once.
	listPage = 1000
)

// each lists what is below a prefix.
func (p *collecting) each(ctx context.Context, prefix string, visit func(segments.ObjectInfo)) error {
	after := ""
	for {
		page, err := p.Store.List(ctx, prefix, after, listPage)
		if err != nil {
			return fmt.Errorf("list %s in %s: %w", prefix, p.Store, err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, o := range page {
			visit(o)
		}
		after = page[len(page)-1].Key
	}
}

// ErrRolledBack says that the table is an older copy: what it does not name may be named by the newer one.
var ErrRolledBack = errors.New("compactor: the table was rolled back")

// checkGeneration refuses a table that is older than the bucket. First the bucket is listed, then the table read.
func (p *collecting) checkGeneration(ctx context.Context) error {
	var err error
	if p.cluster, err = metadata.ReadCluster(ctx, p.Table); err != nil {
		return fmt.Errorf("cluster of %s: %w", p.Table, err)
	}
	p.report.ClusterID = p.cluster.ID
	if err := segments.CheckStore(ctx, p.Store, segments.ClusterID(p.cluster.ID)); err != nil {
		return err
	}
	highest := uint64(0)
	prefix := p.cluster.ID + "/" + generationFolder
	err = p.each(ctx, prefix, func(o segments.ObjectInfo) {
		if number, err := strconv.ParseUint(strings.TrimPrefix(o.Key, prefix), 10, 64); err == nil {
			highest = max(highest, number)
			p.generations = append(p.generations, number)
		}
	})
	if err != nil {
		return err
	}
	known, err := p.cluster.Generation(ctx)
	if err == nil && highest > known {
		err = fmt.Errorf("%w: the bucket has seen generation %d, the table is at %d: restore the newest copy", ErrRolledBack, highest, known)
	}
	return err
}

// raise raises the generation before the first delete of a collection: should the table be restored from a copy that is
// older than it, and names what went, that is noticed. A bucket that is full does not take it: then it is called again when something
// went. Until there is room for it an older copy would not be noticed; but nobody else makes room.
func (p *collecting) raise(ctx context.Context) error {
	if p.raised {
		return nil
	}
	if p.generation == 0 {
		number, err := p.cluster.RaiseGeneration(ctx)
		if err != nil {
			return err
		}
		p.generation = number
	}
	key := func(n uint64) string { return fmt.Sprintf("%s/%s%020d", p.cluster.ID, generationFolder, n) }
	err := p.Store.Put(ctx, key(p.generation), segments.NewBody([]byte("collector")))
	switch {
	case errors.Is(err, segments.ErrFull):
		p.Log.Warn("the bucket is full: garbage goes before it is noted that some went; restore no older copy of the table before there is room", "error", err)
		return nil
	case err != nil && !errors.Is(err, segments.ErrExists):
		return fmt.Errorf("raise the generation: %w", err)
	}
	p.raised = true
	// A gateway may have raised it since they were listed.
	if before := p.generation - 1; !slices.Contains(p.generations, before) {
		p.generations = append(p.generations, before)
	}
	for _, old := range p.generations {
		if err := p.Store.Delete(ctx, key(old)); err != nil {
			p.Log.Warn("an older generation stays in the bucket", "error", err)
		}
	}
	return nil
}

// beat has the gateway say what it has settled, if there is one here: a collection that follows a commit at once knows of it.
func (p *collecting) beat(ctx context.Context) error {
	if b, ok := p.Gateways.(Beating); ok {
		return b.Beat(ctx)
	}
	return nil
}

// readGateways takes the gateways as they are before anything that they name is read: what lies below their floors is
// decided by now.
func (p *collecting) readGateways(ctx context.Context) error {
	var err error
	if p.gateways, err = metadata.ListGateways(ctx, p.Table, metadata.Strong, nil); err != nil {
		return err
	}
	for _, g := range p.gateways {
		p.standings[g.ID] = standing{state: g.State, floor: g.Floor, mergeFloor: g.MergeFloor}
	}
	return nil
}

// ask asks the gateways that live whether they know of those that are closed. Only what was closed before they were asked
// counts: the rows are read already. One that starts later reads the rows before it judges anything.
func (p *collecting) ask(ctx context.Context) error {
	var closed, living []metadata.GatewayID
	for _, g := range p.gateways {
		switch g.State {
		case metadata.GatewayClosed:
			closed = append(closed, g.ID)
		case metadata.GatewayLive, metadata.GatewayDraining:
			living = append(living, g.ID)
		}
	}
	p.forgetHeard(closed)
	if seeded.Has(seeded.ForgetClosedEarly) {
		living = nil
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	asked := slices.DeleteFunc(slices.Clone(living), func(id metadata.GatewayID) bool { // whoever has told all there is
		return !slices.ContainsFunc(closed, func(other metadata.GatewayID) bool { return !p.c.heard[other][id] })
	})
	for _, id := range asked {
		all.Go(func() {
			limit, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			err := p.Gateways.Acknowledge(limit, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				p.Log.Warn("a gateway does not say what it knows: nothing goes of gateways that were closed since it did last", "gateway", id, "error", err)
				p.report.Unasked = append(p.report.Unasked, id)
				return
			}
			for _, other := range closed {
				if p.c.heard[other] == nil {
					p.c.heard[other] = make(map[metadata.GatewayID]bool)
				}
				p.c.heard[other][id] = true
			}
		})
	}
	all.Wait()
	slices.Sort(p.report.Unasked)
	for _, id := range closed {
		s := p.standings[id]
		s.heard = !slices.ContainsFunc(living, func(by metadata.GatewayID) bool { return !p.c.heard[id][by] })
		p.standings[id] = s
	}
	return context.Cause(ctx)
}

// forgetHeard drops what was heard about ids whose rows are gone.
func (p *collecting) forgetHeard(closed []metadata.GatewayID) {
	for id := range p.c.heard {
		if !slices.Contains(closed, id) {
			delete(p.c.heard, id)
		}
	}
}

// standing is what is known of an uploader. One without a row in the list began later, or its row was removed.
func (p *collecting) standing(ctx context.Context, uploader metadata.GatewayID) (standing, error) {
	owner := uploader.Owner()
	p.mu.Lock()
	s, known := p.standings[owner]
	p.mu.Unlock()
	if known {
		return s, nil
	}
	_, err := p.Table.Get(ctx, owner.RowKey(), metadata.Strong)
	switch {
	case err == nil:
		s.state = metadata.GatewayLive // began later: nothing is known of its floor
	case errors.Is(err, metadata.ErrNotFound):
		if s.ended, err = metadata.Ended(ctx, p.Table, owner); err != nil && !errors.Is(err, metadata.ErrCorrupt) {
			return s, err
		}
	default:
		return s, fmt.Errorf("gateway %s: %w", owner, err)
	}
	p.mu.Lock()
	p.standings[owner] = s
	p.mu.Unlock()
	return s, nil
}

// mark finds out what is named.
func (p *collecting) mark(ctx context.Context) error {
	err := p.survey(ctx, p.markPartition)
	for id := range p.unclear {
		p.report.Unclear = append(p.report.Unclear, id)
	}
	slices.SortFunc(p.report.Unclear, func(a, b metadata.PartitionID) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	return err
}

// markPartition marks what a partition names. One that moves meanwhile is read again.
func (p *collecting) markPartition(ctx context.Context, g *glimpse) error {
	for attempt := 0; ; attempt++ {
		if err := p.excuse(ctx, g); err != nil {
			return err
		}
		if p.deleted(g) || g.lease == nil && g.fault == nil {
			return nil
		}
		err := g.fault
		if err == nil {
			var rows []metadata.Row
			if rows, err = markIndex(ctx, p.Table, g, &p.named); err == nil {
				return p.note(ctx, g, rows)
			}
		}
		switch {
		case errors.Is(err, metadata.ErrIndexMoved), errors.Is(err, metadata.ErrCorrupt), errors.Is(err, metadata.ErrHole):
		default:
			return err
		}
		if attempt == attempts {
			p.Log.Error("a partition cannot be read: objects with records of it stay", "partition", g.id.String(), "error", err)
			p.mu.Lock()
			p.unclear[g.id] = true
			p.mu.Unlock()
			return nil
		}
		if err := rest(ctx, min(attempt, attempts-1)); err != nil {
			return err
		}
		if g, err = lookAfresh(ctx, p.Table, g.id, &journals{}); err != nil {
			return err
		}
	}
}

// note notes what a partition needs of gateways, and rows of it that nothing names and never will.
func (p *collecting) note(ctx context.Context, g *glimpse, rows []metadata.Row) error {
	folded := metadata.Stamp{Epoch: g.stored.Epoch, Sequence: g.lease.Through}
	leftover := make(map[metadata.Key]metadata.Stamp)
	for _, row := range rows {
		uploader, number, err := metadata.RowWriter(row.Value)
		if err != nil {
			continue
		}
		if uploader == "" { // a checkpoint's: one that is not older than the last belongs to the next
			if row.Stamp.Compare(folded) < 0 {
				leftover[row.Key] = row.Stamp
			}
			continue
		}
		s, err := p.standing(ctx, uploader)
		if err != nil {
			return err
		}
		if s.judge(uploader, number) == "" {
			leftover[row.Key] = row.Stamp
		}
	}
	p.mu.Lock() // not before: who a row is of may have to be read
	defer p.mu.Unlock()
	maps.Copy(p.leftover, leftover)
	if !g.lease.Released {
		p.needed[g.lease.Source()], p.needed[g.lease.Journal] = true, true
	}
	return nil
}

// list lists the bucket and finds the candidates. It comes last: what was settled when the gateways' rows were read has been
// seen by now, if anything names it.
func (p *collecting) list(ctx context.Context) error {
	since := make(map[candidate]time.Time, len(p.c.candidates))
	for _, c := range p.c.candidates {
		since[candidate{uploader: c.uploader, number: c.number}] = c.since
	}
	now := time.Now()
	var found []candidate
	var failed error
	names := make(map[metadata.GatewayID]metadata.GatewayID) // one copy of each
	err := p.each(ctx, p.cluster.ID+"/", func(o segments.ObjectInfo) {
		_, gateway, number, err := segments.ParseObjectKey(o.Key)
		if err != nil || failed != nil {
			return // not Varve's, or a generation
		}
		uploader := metadata.GatewayID(gateway)
		if one, known := names[uploader]; known {
			uploader = one
		} else {
			names[uploader] = uploader
		}
		p.report.Objects, p.report.ObjectBytes = p.report.Objects+1, p.report.ObjectBytes+o.Size
		p.objects[uploader.Owner()]++
		if p.named.Has(uploader, number) {
			p.report.Named++
			return
		}
		var s standing
		if s, failed = p.standing(ctx, uploader); failed != nil {
			return
		}
		if why := s.judge(uploader, number); why != "" {
			p.report.keep(why, 1)
			return
		}
		c := candidate{uploader: uploader, number: number}
		first, known := since[c]
		if !known {
			first = now
		}
		c.size, c.since = o.Size, first
		found = append(found, c)
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	p.found = found
	if !p.DryRun {
		p.c.candidates, p.c.listed = found, p.report.ObjectBytes
	}
	return nil
}
