package compactor

import (
	"context"
	"errors"
	"slices"
	"sort"
	"time"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

const (
	// swapTries is how often a swap is tried whose section moved meanwhile, with another number each time.
	swapTries = 5
	// movedPause is how long an index that moved is left alone.
	movedPause = 20 * time.Millisecond
)

// located is replacements with their places in a section of the index; entries are all of the section.
type located struct {
	section metadata.Section
	entries []metadata.Entry
	list    []replacement
}

// pieces divides what no single swap can carry: entries of a tail are in it themselves, those too that stay between others that go.
func (l located) pieces() []located {
	if !l.section.IsTail() {
		return []located{l}
	}
	var list []located
	for rest := l.list; len(rest) > 0; {
		n := 1
		for n < len(rest) && metadata.TailSwapFits(replacedWithin(l.entries, rest[:n+1])) {
			n++
		}
		list = append(list, located{l.section, l.entries, rest[:n]})
		rest = rest[n:]
	}
	return list
}

// replacedWithin is what stands for the entries from the first to the last of those that are replaced.
func replacedWithin(entries []metadata.Entry, list []replacement) []metadata.Entry {
	var out []metadata.Entry
	at := list[0].from
	for _, r := range list {
		out = append(append(out, entries[at:r.from]...), r.entry)
		at = r.to
	}
	return out
}

// swap puts merged entries in the place of those that they stand for. What changed meanwhile stays as it is.
func (c *Compactor) swap(ctx context.Context, p *pass, uploader metadata.GatewayID, s *stretch, list []replacement) error {
	if len(list) == 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b replacement) int { return a.from - b.from })
	at, open := located{s.section, s.entries, list}.pieces(), list
	var done []replacement
	defer func() { c.swapped(p, s, list, done) }()
	for try := 0; ; try++ {
		for _, l := range at {
			outcome, err := c.swapIn(ctx, uploader, l)
			if errors.Is(err, metadata.ErrClosed) {
				return nil // the partition takes nothing more, or nothing of this id
			}
			if err != nil && !errors.Is(err, metadata.ErrIndexMoved) {
				return err
			}
			if err == nil && outcome == metadata.Swapped {
				done = append(done, l.list...)
				open = without(open, l.list)
			}
		}
		if len(open) == 0 || try == swapTries {
			return nil
		}
		c.meters.moved.Add(1)
		if err := pause(ctx, time.Duration(try+1)*movedPause); err != nil {
			return err
		}
		var err error
		if at, err = c.find(ctx, s.partition, open); err != nil && !errors.Is(err, metadata.ErrIndexMoved) {
			return err
		}
		if err == nil && len(at) == 0 {
			return nil
		}
	}
}

// without leaves out those that have been swapped.
func without(list, done []replacement) []replacement {
	return slices.DeleteFunc(slices.Clone(list), func(r replacement) bool {
		return slices.ContainsFunc(done, func(d replacement) bool { return d.entry.First == r.entry.First })
	})
}

// swapped counts what was replaced, and notes in the stretch what it is now.
func (c *Compactor) swapped(p *pass, s *stretch, list, done []replacement) {
	left := without(list, done)
	for _, r := range left {
		p.Moved += r.to - r.from
	}
	if len(done) == 0 {
		return
	}
	p.merged[s.partition] = struct{}{}
	c.meters.swapped.Add(1)
	in := without(list, left)
	for _, r := range in {
		p.Entries += r.to - r.from
		p.Into++
		c.meters.replaced.Add(uint64(r.to - r.from))
	}
	s.entries = replaced(s.entries, in)
}

// replaced is entries with some of them replaced.
func replaced(entries []metadata.Entry, list []replacement) []metadata.Entry {
	if len(list) == 0 {
		return entries
	}
	first, last := list[0].from, list[len(list)-1].to
	return slices.Concat(entries[:first], replacedWithin(entries, list), entries[last:])
}

// swapIn has the parts of a section replaced in which something changes.
func (c *Compactor) swapIn(ctx context.Context, uploader metadata.GatewayID, l located) (metadata.SwapOutcome, error) {
	low, high := l.list[0].entry.First, l.list[len(l.list)-1].entry.End
	part := partsOver(l.section, low, high)
	if !part.IsTail() {
		// Rows are written. Merging took its time: the topic may be deleted by now, and its rows be swept.
		switch view, err := c.cluster.View(ctx, part.Partition); {
		case err != nil:
			return 0, err
		case view.Closed:
			return 0, metadata.ErrClosed
		case view.Next < part.To:
			return metadata.SwapMoved, nil
		}
	}
	changed := replaced(l.entries, l.list)
	from := sort.Search(len(changed), func(i int) bool { return changed[i].First >= part.From })
	to := sort.Search(len(changed), func(i int) bool { return changed[i].First >= part.To })
	w, err := metadata.PrepareSwap(bill.Merging(ctx, part.Partition.Topic), c.table, part, uploader, c.numbers.take(), changed[from:to])
	if err != nil {
		return 0, err
	}
	outcome, err := c.numbers.swap(ctx, w)
	switch {
	case err != nil || outcome != metadata.SwapForgotten:
		return outcome, err
	}
	// It was judged before, and nobody knows any more how.
	view, err := c.cluster.View(ctx, part.Partition)
	if err != nil {
		return 0, err
	}
	first := &l.list[0].entry
	there, err := view.Names(ctx, c.index, first.Gateway, first.Number, first.First, first.End)
	if there {
		return metadata.Swapped, nil
	}
	return metadata.SwapMoved, err
}

// partsOver is the parts of a section that hold offsets from low up to high.
func partsOver(section metadata.Section, low, high int64) metadata.Section {
	parts := section.Parts
	i := sort.Search(len(parts), func(i int) bool { return parts[i].First > low }) - 1
	j := sort.Search(len(parts), func(i int) bool { return parts[i].First >= high })
	return section.Part(max(i, 0), j)
}

// find looks in a new view for what is to be replaced, and is still what it was.
func (c *Compactor) find(ctx context.Context, id metadata.PartitionID, list []replacement) ([]located, error) {
	view, err := c.cluster.View(ctx, id)
	if err != nil || view.Closed {
		return nil, err
	}
	var found []located
	for _, whole := range view.Sections() {
		var within []replacement
		for _, r := range list {
			if r.entry.First >= whole.From && r.entry.End <= whole.To {
				within = append(within, r)
			}
		}
		if len(within) == 0 {
			continue
		}
		section := partsOver(whole, within[0].entry.First, within[len(within)-1].entry.End)
		if section.Summary().Entries > 2*mostPartEntries {
			continue // too much to have in memory: the next pass begins anew
		}
		entries, err := section.Load(ctx, c.index)
		if err != nil {
			return nil, err
		}
		if within = match(entries, within); len(within) > 0 {
			found = append(found, located{section, entries, within}.pieces()...)
		}
	}
	return found, nil
}

// match gives replacements their places among entries, and leaves those out of which something has changed.
func match(entries []metadata.Entry, list []replacement) []replacement {
	var out []replacement
	for _, r := range list {
		i := sort.Search(len(entries), func(i int) bool { return entries[i].First >= r.entry.First })
		j := i + len(r.was)
		if j <= len(entries) && slices.EqualFunc(entries[i:j], r.was, func(a, b metadata.Entry) bool { return same(&a, &b) }) {
			r.from, r.to = i, j
			out = append(out, r)
		}
	}
	return out
}

// same says whether two entries are one.
func same(a, b *metadata.Entry) bool {
	return a.First == b.First && a.End == b.End && a.Gateway == b.Gateway && a.Number == b.Number && a.Position == b.Position &&
		a.Length == b.Length && a.Sum == b.Sum
}
