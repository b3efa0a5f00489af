package compactor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// mostPartEntries is how many index entries one part of an index may have for its small ones to be merged: all of them
// are in memory then. Only nodes of a tree's third level have more.
const mostPartEntries = 32_768

// Report is what a pass came to.
type Report struct {
	// Partitions that were looked at, Merged those of which something was, or with DryRun would be, merged.
	Partitions, Merged int
	// Segments are the new ones, Bytes those of batches in them.
	Segments int
	Bytes    int64
	// Entries are the index entries that were replaced, Into those that took their place.
	Entries, Into int
	// Dropped are records that key compaction took out.
	Dropped int64
	// Moved are entries that changed meanwhile and stay as they are, until the next pass.
	Moved int
	// Failed are partitions of which something could not be read or written; they are tried again.
	Failed int
	// SetAside are spans that were found damaged.
	SetAside []Aside
}

// Aside is a span that cannot be merged, as its bytes are not there or not what the index says.
type Aside struct {
	Topic      string
	Partition  int32
	First, End int64 // offsets
	Object     string
	Problem    string
}

// pass looks at partitions, and merges what is small in them.
type pass struct {
	partitions []metadata.PartitionID
	// all says that age does not matter: somebody asked.
	all    bool
	dryRun bool

	topics map[metadata.TopicID]*metadata.Topic
	Report
	// chunk is what was gathered and is not merged yet, entries how many it has.
	chunk   []*stretch
	entries int
	merged  map[metadata.PartitionID]struct{}
	failed  map[metadata.PartitionID]struct{}
	// raw and again are offsets up to which more will be merged when it is older: see stretch.waiting.
	raw, again map[metadata.PartitionID]int64
	// told are the damaged spans that SetAside has.
	told map[spot]struct{}
	// young is after how long key compaction may go on with what was too young for it.
	young map[metadata.PartitionID]time.Duration
}

// pass runs one. What goes wrong with a partition is told and put off; the others go on.
func (c *Compactor) pass(ctx context.Context, p *pass) {
	p.merged, p.failed = make(map[metadata.PartitionID]struct{}), make(map[metadata.PartitionID]struct{})
	p.told = make(map[spot]struct{})
	p.raw, p.again = make(map[metadata.PartitionID]int64), make(map[metadata.PartitionID]int64)
	if err := c.list(ctx, p); err != nil {
		for _, id := range p.partitions {
			c.fail(ctx, p, id, err)
		}
		c.conclude(p)
		return
	}
	p.sort()
	for _, id := range p.partitions {
		if err := c.gather(ctx, p, id); err != nil {
			c.fail(ctx, p, id, err)
		}
		if ctx.Err() != nil {
			return
		}
	}
	c.execute(ctx, p)
	c.cleanKeys(ctx, p)
	if ctx.Err() == nil {
		c.conclude(p)
	}
}

// topicsFresh is for how long the list of topics serves pass after pass, unless a topic is not in it.
const topicsFresh = time.Minute

// list learns the topics' configurations.
func (c *Compactor) list(ctx context.Context, p *pass) error {
	known := func(id metadata.PartitionID) bool { return c.topics[id.Topic] != nil }
	if p.all || time.Since(c.listed) > topicsFresh || slices.ContainsFunc(p.partitions, func(id metadata.PartitionID) bool { return !known(id) }) {
		topics, err := c.cluster.Topics(ctx)
		if err != nil {
			return fmt.Errorf("list topics: %w", err)
		}
		c.topics, c.listed = make(map[metadata.TopicID]*metadata.Topic, len(topics)), time.Now()
		for _, t := range topics {
			c.topics[t.ID] = t
		}
	}
	p.topics = c.topics
	return nil
}

// sort brings those together whose records may share a segment.
func (p *pass) sort() {
	class := func(id metadata.PartitionID) Class {
		if t := p.topics[id.Topic]; t != nil {
			return ClassOf(t.Config)
		}
		return Class{}
	}
	slices.SortFunc(p.partitions, func(a, b metadata.PartitionID) int {
		return cmp.Or(class(a).compare(class(b)), comparePartitions(a, b))
	})
}

// fail tells that a partition could not be merged.
func (c *Compactor) fail(ctx context.Context, p *pass, id metadata.PartitionID, err error) {
	if _, told := p.failed[id]; told || ctx.Err() != nil {
		return
	}
	p.failed[id] = struct{}{}
	c.meters.failures.Add(1)
	c.log.Warn("a partition could not be merged; it is tried again", "partition", id.String(), "error", err)
}

// conclude says when each partition is to be looked at again, and lets go of those that only a commit would change.
func (c *Compactor) conclude(p *pass) {
	now := time.Now()
	p.Merged, p.Failed = len(p.merged), len(p.failed)
	if p.dryRun {
		return
	}
	for _, id := range p.partitions {
		t := c.tracked[id]
		if t == nil {
			continue
		}
		t.bytes, t.due = 0, time.Time{}
		if _, failed := p.failed[id]; failed {
			t.due = now.Add(min(retryAfter<<min(t.failures, 10), max(retryAfter, c.config.Age)))
			t.failures++
			continue
		}
		t.failures = 0
		t.thin(now, c.config.Age, c.config.AgainAfter)
		for _, wait := range []struct {
			offset int64
			age    time.Duration
		}{{p.raw[id], c.config.Age}, {p.again[id], c.config.AgainAfter}} {
			if wait.offset == 0 {
				continue
			}
			if at := c.align(t.reach(wait.offset, wait.age)); at.After(now) && (t.due.IsZero() || at.Before(t.due)) {
				t.due = at
			}
		}
		if wait, ok := p.young[id]; ok {
			if at := c.align(now.Add(wait)); t.due.IsZero() || at.Before(t.due) {
				t.due = at
			}
		}
		if t.due.IsZero() {
			delete(c.tracked, id)
		}
	}
}

// gather loads what may be merged of a partition: nothing if it is not, or no longer, this compactor's.
func (c *Compactor) gather(ctx context.Context, p *pass, id metadata.PartitionID) error {
	topic := p.topics[id.Topic]
	if topic == nil || !c.cluster.Merges(id) {
		delete(c.tracked, id)
		return nil
	}
	if c.numbers.begin(); !c.numbers.free(id) && !p.dryRun {
		return errDoubts // what is merged could not be put in place
	}
	for {
		view, err := c.cluster.View(ctx, id)
		if err != nil {
			return err
		}
		if view.Closed {
			delete(c.tracked, id)
			return nil
		}
		err = c.load(ctx, p, topic, view)
		if !errors.Is(err, metadata.ErrIndexMoved) {
			p.Partitions++
			return err
		}
		p.chunk = slices.DeleteFunc(p.chunk, func(s *stretch) bool { return s.partition == id }) // as they were before it moved
		if err := pause(ctx, movedPause); err != nil {
			return err
		}
	}
}

// load reads the parts of a view's index that have small entries in them. When that comes to more than may be in memory, what
// was gathered is merged first.
func (c *Compactor) load(ctx context.Context, p *pass, topic *metadata.Topic, view *metadata.View) error {
	aged, settled, old := c.ageOf(view, p.all)
	lone := old
	if topic.Config.Cleanup != metadata.CleanupDelete {
		old = 0 // what was compacted by key is written again by the next such compaction only
	}
	for _, whole := range view.Sections() {
		for _, section := range c.small(whole) {
			if p.entries > 0 && p.entries+int(section.Summary().Entries) > c.config.MaxEntries {
				c.execute(ctx, p)
			}
			entries, err := section.Load(ctx, c.index)
			if err != nil {
				return err
			}
			if err := c.lookAgain(ctx, p, view, entries); err != nil {
				return err
			}
			p.entries += len(entries)
			p.chunk = append(p.chunk, &stretch{partition: view.Partition, class: ClassOf(topic.Config), section: section, entries: entries,
				aged: aged, settled: settled, old: old, lone: lone, aside: func(e *metadata.Entry) bool {
					_, damaged := c.damaged[spotOf(view.Partition, e)]
					return damaged
				}})
		}
	}
	return nil
}

// ageOf says up to which offsets a partition's entries count as aged, settled and old.
func (c *Compactor) ageOf(view *metadata.View, all bool) (aged, settled, old int64) {
	if all {
		return view.Next, view.Next, view.Next
	}
	now := time.Now()
	t := c.track(view.Partition)
	t.ages.note(view.Next, now, c.config.Age/8)
	return t.before(now, c.config.Age), t.before(now, c.config.Age/4), t.before(now, c.config.AgainAfter)
}

// small cuts a section into runs of parts whose entries are small on average, of so many entries as may be in memory.
func (c *Compactor) small(whole metadata.Section) []metadata.Section {
	var list []metadata.Section
	parts := whole.Parts
	fits := func(part *metadata.Child) bool {
		return part.Entries > 0 && part.Bytes/part.Entries <= c.config.TargetBytes/2 && part.Entries <= mostPartEntries
	}
	for i := 0; i < len(parts); {
		if whole.Level >= 0 && !fits(&parts[i]) {
			i++
			continue
		}
		j, entries := i, int64(0)
		for j < len(parts) && (j == i || entries+parts[j].Entries <= mostPartEntries) && (whole.Level < 0 || fits(&parts[j])) {
			entries += parts[j].Entries
			j++
		}
		if entries > 0 {
			list = append(list, whole.Part(i, j))
		}
		i = j
	}
	return list
}

// execute plans what was gathered, and does it.
func (c *Compactor) execute(ctx context.Context, p *pass) {
	stretches := p.chunk
	p.chunk, p.entries = nil, 0
	jobs, lone := plan(c.config.TargetBytes, stretches)
	for i := range lone {
		j := &lone[i]
		switch pinned, err := c.pinned(ctx, p, j); {
		case err != nil:
			c.fail(ctx, p, j.groups[0].stretch.partition, err)
		case pinned:
			jobs = append(jobs, *j)
		}
	}
	if p.dryRun {
		p.foretell(jobs)
		return
	}
	if len(jobs) > 0 {
		c.work(ctx, p, jobs)
	}
	for _, s := range stretches {
		raw, again := s.waiting(c.config.TargetBytes)
		p.raw[s.partition], p.again[s.partition] = earlier(p.raw[s.partition], raw), earlier(p.again[s.partition], again)
	}
}

// earlier is the lower of two offsets of which 0 is none.
func earlier(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// foretell reports jobs that are not done.
func (p *pass) foretell(jobs []job) {
	for i := range jobs {
		j := &jobs[i]
		p.Segments++
		p.Bytes += j.bytes
		for k := range j.groups {
			g := &j.groups[k]
			p.merged[g.stretch.partition] = struct{}{}
			p.Entries += g.to - g.from
			p.Into++
		}
	}
}

// work does jobs, one after the other. Each stretch is swapped once all of its groups are in new segments.
func (c *Compactor) work(ctx context.Context, p *pass, jobs []job) {
	uploader := c.numbers.begin()
	m := c.merger()
	open, done := make(map[*stretch]int), make(map[*stretch][]replacement)
	for i := range jobs {
		for k := range jobs[i].groups {
			open[jobs[i].groups[k].stretch]++
		}
	}
	for i := range jobs {
		j := &jobs[i]
		out, err := m.run(ctx, uploader, c.numbers.take, j)
		if ctx.Err() != nil {
			return // the numbers stay unsettled: they are this id's last
		}
		if err == nil {
			c.count(p, out)
			c.setAside(ctx, p, out.asides)
			for _, r := range out.replacements {
				done[r.stretch] = append(done[r.stretch], r)
			}
		}
		for k := range j.groups {
			s := j.groups[k].stretch
			if err != nil {
				c.fail(ctx, p, s.partition, err)
			}
			if open[s]--; open[s] == 0 {
				if err := c.swap(ctx, p, uploader, s, done[s]); err != nil {
					c.fail(ctx, p, s.partition, err)
				}
				delete(done, s)
			}
		}
		if ctx.Err() != nil {
			return
		}
	}
	c.numbers.settle()
}

func (c *Compactor) count(p *pass, out *product) {
	p.Segments += out.objects
	p.Bytes += out.bytes
	c.meters.objects.Add(uint64(out.objects))
	c.meters.batchBytes.Add(uint64(out.bytes))
}

// mostDamaged bounds the entries that are remembered as set aside; the next pass finds others again.
const mostDamaged = 10_000

// setAside names what was found damaged, if it is still part of the log: what moved or was trimmed meanwhile is no loss.
func (c *Compactor) setAside(ctx context.Context, p *pass, list []aside) {
	for _, a := range list {
		e, id := &a.stretch.entries[a.index], a.stretch.partition
		still, err := c.stillNamed(ctx, id, e)
		if err != nil {
			c.fail(ctx, p, id, err)
			continue
		}
		if !still {
			p.Moved++
			continue
		}
		c.noteDamage(p, id, e, a.err, "a span is damaged: it is not merged, and stays as it is")
	}
}

// noteDamage keeps in mind that an entry is damaged, and tells of it.
func (c *Compactor) noteDamage(p *pass, id metadata.PartitionID, e *metadata.Entry, problem error, message string) {
	at := spotOf(id, e)
	if len(c.damaged) < mostDamaged {
		c.damaged[at] = problem.Error()
	}
	c.meters.damagedEntries.Store(int64(len(c.damaged)))
	c.meters.asides.Add(1)
	found := c.tell(p, id, e, problem.Error())
	c.log.Error(message, "topic", found.Topic, "partition", found.Partition,
		"offsets", fmt.Sprintf("%d to %d", e.First, e.End-1), "object", found.Object, "error", problem)
}

// tell has a pass's report name a damaged span, once.
func (c *Compactor) tell(p *pass, id metadata.PartitionID, e *metadata.Entry, problem string) Aside {
	found := Aside{Topic: p.topics[id.Topic].Name, Partition: id.Number, First: e.First, End: e.End, Object: c.objectKey(e), Problem: problem}
	if _, told := p.told[spotOf(id, e)]; !told {
		p.told[spotOf(id, e)] = struct{}{}
		p.SetAside = append(p.SetAside, found)
	}
	return found
}

func (c *Compactor) objectKey(e *metadata.Entry) string {
	return segments.ObjectKey(segments.ClusterID(c.cluster.ClusterID()), segments.GatewayID(e.Gateway), e.Number)
}

// lookAgain has a pass that somebody asked for read those entries once more that were found damaged before: they are named, or if they
// are whole by now taken like others.
func (c *Compactor) lookAgain(ctx context.Context, p *pass, view *metadata.View, entries []metadata.Entry) error {
	if !p.all || p.dryRun || len(c.damaged) == 0 {
		return nil
	}
	for i := range entries {
		e, at := &entries[i], spotOf(view.Partition, &entries[i])
		if _, damaged := c.damaged[at]; !damaged || e.End <= view.Start {
			continue
		}
		again := []source{{topic: view.Partition.Topic, entry: e, key: c.objectKey(e)}}
		if err := c.merger().read(ctx, again); err != nil {
			return err
		}
		if again[0].fault == nil {
			delete(c.damaged, at)
			c.meters.damagedEntries.Store(int64(len(c.damaged)))
			continue
		}
		c.tell(p, view.Partition, e, again[0].fault.Error())
	}
	return nil
}

func (c *Compactor) merger() *merger {
	return &merger{store: c.store, cluster: segments.ClusterID(c.cluster.ClusterID()), pace: c.pace.take}
}

// stillNamed says whether readers would be led to an entry.
func (c *Compactor) stillNamed(ctx context.Context, id metadata.PartitionID, e *metadata.Entry) (bool, error) {
	for {
		view, err := c.cluster.View(ctx, id)
		if err != nil {
			return false, err
		}
		if view.Closed || e.End <= view.Start || e.First >= view.Next {
			return false, nil
		}
		entries, err := view.Entries(ctx, c.index, max(e.First, view.Start))
		if errors.Is(err, metadata.ErrIndexMoved) {
			if err := pause(ctx, movedPause); err != nil {
				return false, err
			}
			continue
		}
		return err == nil && len(entries) > 0 && same(&entries[0], e), err
	}
}
