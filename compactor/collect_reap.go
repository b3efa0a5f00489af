package compactor

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

const (
	// batchSize is how many candidates are looked at once more, and then deleted, at a time.
	batchSize = 2000
	// refusals end the deleting for now when so many deletes have failed one after another.
	refusals = 20
)

// reap deletes the candidates whose grace is over, after a last look at the partitions that are in them.
func (p *collecting) reap(ctx context.Context) error {
	list := p.c.candidates
	if p.DryRun {
		list = slices.Clone(p.found)
	}
	now := time.Now()
	due := slices.Clone(list)
	due = slices.DeleteFunc(due, func(c candidate) bool { return !p.DryRun && now.Sub(c.since) < p.Grace })
	stay := slices.DeleteFunc(list, func(c candidate) bool { return p.DryRun || now.Sub(c.since) >= p.Grace })
	p.report.keep(KeptForGrace, int64(len(stay)))
	spared, err := p.tooMany(ctx, due)
	failures := &failing{}
	for batch := range slices.Chunk(due, batchSize) {
		if err != nil || ctx.Err() != nil {
			stay = append(stay, batch...)
			continue
		}
		var left []candidate
		left, err = p.reapBatch(ctx, batch, spared, failures)
		stay = append(stay, left...)
	}
	if !p.DryRun {
		p.c.candidates = stay
	}
	p.report.Refusal = failures.text()
	return errors.Join(err, context.Cause(ctx))
}

// tooMany says which of the candidates must be left since more would go at once than may. What the partitions in it have
// judged, or what was deleted with its topic, is accounted for and may always go.
func (p *collecting) tooMany(ctx context.Context, due []candidate) (map[candidate]bool, error) {
	bytes := int64(0)
	for i := range due {
		bytes += due[i].size
	}
	if p.Force || p.c.limits.share(int64(len(due)), bytes, p.c.listed+p.dryListed()) {
		return nil, nil
	}
	spared := make(map[candidate]bool)
	bytes = 0
	for batch := range slices.Chunk(due, batchSize) {
		looks, err := p.lookOnce(ctx, batch)
		if err != nil {
			return nil, err
		}
		for i, l := range looks {
			if l.why == "" && !l.gone && !l.accounted {
				spared[batch[i]] = true
				bytes += batch[i].size
			}
		}
	}
	if p.c.limits.share(int64(len(spared)), bytes, p.c.listed+p.dryListed()) {
		return nil, nil
	}
	return spared, nil
}

// dryListed is what a dry run listed, which the collector does not remember.
func (p *collecting) dryListed() int64 {
	if p.DryRun {
		return p.report.ObjectBytes - p.c.listed
	}
	return 0
}

// failing is how deletes fail.
type failing struct {
	mu    sync.Mutex
	first error
	row   atomic.Int64 // how many failed one after another
}

func (f *failing) note(err error) {
	if err == nil {
		f.row.Store(0)
		return
	}
	f.row.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.first == nil {
		f.first = err
	}
}

func (f *failing) text() string {
	if f.first == nil {
		return ""
	}
	return f.first.Error()
}

// reapBatch deletes what it can and returns the rest.
func (p *collecting) reapBatch(ctx context.Context, batch []candidate, spared map[candidate]bool, failures *failing) ([]candidate, error) {
	looks, err := p.lookOnce(ctx, batch)
	if err != nil {
		return batch, err
	}
	for i := range looks {
		if looks[i].why == "" && !looks[i].gone && spared[batch[i]] {
			looks[i].why = KeptTooMany
		}
	}
	if !p.DryRun && slices.ContainsFunc(looks, func(l lastLook) bool { return l.why == "" && !l.gone }) {
		if err := p.raise(ctx); err != nil {
			return batch, err
		}
	}
	group, deleting := errgroup.WithContext(ctx)
	group.SetLimit(p.Parallel)
	for i := range batch {
		if looks[i].why != "" || looks[i].gone || p.DryRun {
			continue
		}
		group.Go(func() error {
			if failures.row.Load() >= refusals {
				looks[i].why = KeptRefused
				return nil
			}
			err := p.Store.Delete(deleting, p.key(batch[i]))
			failures.note(err)
			if err != nil {
				looks[i].why = KeptRefused
			}
			return nil
		})
	}
	_ = group.Wait() // no error: each stays for itself
	// If there was no room for the generation, there may be by now.
	if p.generation != 0 {
		if err := p.raise(ctx); err != nil {
			p.Log.Warn("the generation was not raised; a table that is rolled back would be noticed later", "error", err)
		}
	}
	var left []candidate
	for i, l := range looks {
		switch {
		case l.gone:
			p.objects[batch[i].uploader.Owner()]--
		case l.why == "":
			p.objects[batch[i].uploader.Owner()]--
			p.report.Deleted, p.report.DeletedBytes = p.report.Deleted+1, p.report.DeletedBytes+batch[i].size
		default:
			p.report.keep(l.why, 1)
			batch[i].stuck = true
			left = append(left, batch[i])
		}
	}
	return left, nil
}

func (p *collecting) key(c candidate) string {
	return segments.ObjectKey(segments.ClusterID(p.cluster.ID), segments.GatewayID(c.uploader), c.number)
}

// lastLook is what was found just before an object is deleted.
type lastLook struct {
	why       Reason // it stays
	gone      bool   // somebody else deleted it
	accounted bool   // each partition in it judged it, or is deleted
}

// held is a span of a candidate.
type held struct {
	candidate  int
	least, max int64 // timestamps in it
}

// lookOnce looks at candidates once more: who wrote them, what is in them, and whether any of the partitions in them, as they
// are now, names them.
func (p *collecting) lookOnce(ctx context.Context, batch []candidate) ([]lastLook, error) {
	looks := make([]lastLook, len(batch))
	for i, c := range batch {
		s, err := p.standing(ctx, c.uploader)
		if err != nil {
			return nil, err
		}
		looks[i].why = s.judge(c.uploader, c.number)
	}
	within, err := p.openAll(ctx, batch, looks)
	if err != nil {
		return nil, err
	}
	for i := range looks {
		looks[i].accounted = true
	}
	var mu sync.Mutex
	shared := &journals{}
	group, working := errgroup.WithContext(ctx)
	group.SetLimit(p.Parallel)
	for id, spans := range within {
		group.Go(func() error {
			found, err := p.lookAt(working, id, batch, spans, shared)
			mu.Lock()
			defer mu.Unlock()
			for i, s := range spans {
				if err == nil {
					l := &looks[s.candidate]
					l.why = cmp.Or(l.why, found[i].why)
					l.accounted = l.accounted && found[i].accounted
				}
			}
			return err
		})
	}
	return looks, group.Wait()
}

// openAll reads the candidates' directories and lists the spans in them by partition.
func (p *collecting) openAll(ctx context.Context, batch []candidate, looks []lastLook) (map[metadata.PartitionID][]held, error) {
	within := make(map[metadata.PartitionID][]held)
	var mu sync.Mutex
	group, working := errgroup.WithContext(ctx)
	group.SetLimit(p.Parallel)
	for i, c := range batch {
		if looks[i].why != "" {
			continue
		}
		group.Go(func() error {
			d, err := segments.ReadDirectory(working, p.Store, p.key(c))
			if errors.Is(err, segments.ErrCorrupt) { // once more: the bytes may have suffered on their way
				d, err = segments.ReadDirectory(working, p.Store, p.key(c))
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, segments.ErrNotFound):
				looks[i].gone = true
			case errors.Is(err, segments.ErrCorrupt), errors.Is(err, segments.ErrVersion), err == nil && len(d.Spans) == 0:
				looks[i].why = KeptUnreadable
			case err != nil:
				return err
			default:
				for j := range d.Spans {
					span := &d.Spans[j]
					id := metadata.PartitionID{Topic: metadata.TopicID(span.Topic), Number: span.Partition}
					within[id] = append(within[id], spanOf(i, span))
				}
			}
			return nil
		})
	}
	return within, group.Wait()
}

func spanOf(candidate int, span *segments.Span) held {
	h := held{candidate: candidate, least: span.Batches[0].MinTimestamp, max: span.Batches[0].MaxTimestamp}
	for i := range span.Batches {
		h.least, h.max = min(h.least, span.Batches[i].MinTimestamp), max(h.max, span.Batches[i].MaxTimestamp)
	}
	return h
}

// lookAt looks for candidates in one partition's index as it is now.
func (p *collecting) lookAt(ctx context.Context, id metadata.PartitionID, batch []candidate, spans []held, shared *journals) ([]lastLook, error) {
	found := make([]lastLook, len(spans))
	all := func(l lastLook) []lastLook {
		for i := range found {
			found[i] = l
		}
		return found
	}
	if p.unclear[id] {
		return all(lastLook{why: KeptUnclear}), nil
	}
	for attempt := 0; ; attempt++ {
		g, err := lookAfresh(ctx, p.Table, id, shared)
		if err == nil {
			err = p.excuse(ctx, g)
		}
		switch {
		case err != nil:
			return nil, err
		case g.fault != nil:
			return all(lastLook{why: KeptUnclear}), nil
		case g.lease == nil: // its rows went with its topic, or it never had any
			removed, err := p.isRemoved(ctx, id.Topic)
			return all(lastLook{accounted: removed}), err
		case p.deleted(g):
			return all(lastLook{accounted: true}), nil
		}
		named, err := namedWithin(ctx, metadata.TableIndex{Table: p.Table}, g.view, spans)
		switch {
		case errors.Is(err, metadata.ErrCorrupt), errors.Is(err, metadata.ErrIndexMoved) && attempt == attempts-1:
			return all(lastLook{why: KeptUnclear}), nil
		case errors.Is(err, metadata.ErrIndexMoved):
			shared = &journals{}
			if err := rest(ctx, attempt); err != nil {
				return nil, err
			}
			continue
		case err != nil:
			return nil, err
		}
		for i, s := range spans {
			c := batch[s.candidate]
			last, known := g.lease.State().LastNumber(c.uploader)
			found[i].accounted = known && last >= c.number
			if named.Has(c.uploader, c.number) {
				p.Log.Error("a partition names an object that counted as garbage: it stays", "partition", id.String(), "object", p.key(c))
				found[i].why = KeptNamed
			}
		}
		return found, nil
	}
}

// isRemoved says whether somebody deleted a topic: there is a row about it then, which stays.
func (p *collecting) isRemoved(ctx context.Context, id metadata.TopicID) (bool, error) {
	if _, known := p.removed.Load(id); known {
		return true, nil
	}
	removed, err := metadata.IsRemoved(ctx, p.Table, id)
	if removed {
		p.removed.Store(id, true)
	}
	return removed, err
}

// period is a range of timestamps, both ends included.
type period struct{ from, to int64 }

// periods puts those of spans together, in order and apart from each other.
func periods(spans []held) []period {
	list := make([]period, len(spans))
	for i, s := range spans {
		list[i] = period{s.least, s.max}
	}
	slices.SortFunc(list, func(a, b period) int { return cmp.Compare(a.from, b.from) })
	merged := list[:1]
	for _, next := range list[1:] {
		if last := &merged[len(merged)-1]; next.from <= last.to {
			last.to = max(last.to, next.to)
		} else {
			merged = append(merged, next)
		}
	}
	return merged
}

// namedWithin reads those parts of an index whose timestamps meet those of the spans: an entry has the timestamps of the
// batches that it names. So a look costs a page or two, however long the log is.
func namedWithin(ctx context.Context, index metadata.Index, v *metadata.View, spans []held) (*metadata.SegmentSet, error) {
	s := &search{v: v, index: index, periods: periods(spans)}
	end := v.Next
	if len(v.Tail) > 0 {
		end = v.Tail[0].First
	}
	for level, children := range v.Levels {
		if len(children) == 0 {
			continue
		}
		if err := s.descend(ctx, level, children, end); err != nil {
			return nil, err
		}
		end = children[0].First
	}
	s.named.AddNamed(readable(v.Tail, v.Start))
	return &s.named, nil
}

// search looks through an index for what was written in some periods.
type search struct {
	v       *metadata.View
	index   metadata.Index
	periods []period
	named   metadata.SegmentSet
}

func (s *search) meets(c *metadata.Child) bool {
	i, _ := slices.BinarySearchFunc(s.periods, c.MinTimestamp, func(p period, least int64) int { return cmp.Compare(p.to, least) })
	return i < len(s.periods) && s.periods[i].from <= c.MaxTimestamp
}

func (s *search) descend(ctx context.Context, level int, children []metadata.Child, end int64) error {
	for i := range children {
		c, stop := &children[i], end
		if i+1 < len(children) {
			stop = children[i+1].First
		}
		if stop <= s.v.Start || !s.meets(c) {
			continue
		}
		if level == 0 {
			entries, err := s.index.Page(ctx, s.v.Partition, c.Place())
			if err != nil {
				return err
			}
			s.named.AddNamed(readable(entries, s.v.Start))
			continue
		}
		inner, err := s.index.Node(ctx, s.v.Partition, level, c.Place())
		if err != nil {
			return err
		}
		if err := s.descend(ctx, level-1, inner, stop); err != nil {
			return err
		}
	}
	return nil
}
