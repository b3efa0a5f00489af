package verify

import (
	"context"
	"fmt"
	"slices"

	"github.com/varvelog/varve/metadata"
)

// nodeKey names a node of a partition's tree.
type nodeKey struct {
	level int
	metadata.RowPlace
}

// namedPage is a page as its parent describes it; end is where the next piece begins.
type namedPage struct {
	metadata.Child
	end int64
}

// index holds a partition's index against its lease row. more: there are other rows.
func (w *walk) index(ctx context.Context, more bool) error {
	view := w.state.View()
	nodes := make(map[nodeKey]metadata.Row)
	if more {
		for row, err := range metadata.Rows(ctx, w.v.Table, metadata.IndexRows(w.p.id, metadata.NodeRow)) {
			if err != nil {
				return fmt.Errorf("tree of %s: %w", w.p.id, err)
			}
			if key, ok := metadata.ParseIndexKey(row.Sort); ok {
				nodes[nodeKey{key.Level, key.RowPlace}] = row
			} else {
				w.suspect(RowCorrupt, row.Key, "no row of a partition has such a key")
			}
		}
	}
	pages := w.namedPages(view, nodes)
	for _, row := range nodes { // those that were named were taken out
		w.leave(row)
	}
	if err := w.pages(ctx, pages, more); err != nil {
		return err
	}
	w.tile(view.Tail)
	if err := w.hold(ctx, view.Tail); err != nil {
		return err
	}
	w.close(view)
	w.sums(view)
	if !more {
		return nil
	}
	return w.producers(ctx)
}

// namedPages lists the pages that lease row and nodes name, in offset order, and takes the nodes
// out that are named.
func (w *walk) namedPages(view *metadata.View, nodes map[nodeKey]metadata.Row) []namedPage {
	var pages []namedPage
	end := view.Next
	if len(view.Tail) > 0 {
		end = view.Tail[0].First
	}
	// From the newest on: each piece ends where the one after it begins.
	for level := range view.Levels {
		if children := view.Levels[level]; len(children) > 0 {
			pages = append(w.expand(level, children, end, nodes), pages...)
			end = children[0].First
		}
	}
	for i := 1; i < len(pages); i++ {
		if pages[i].First <= pages[i-1].First {
			w.suspect(IndexOverlap, w.p.id.LeaseKey(), "the tree names a page at offset %d after one at offset %d", pages[i].First, pages[i-1].First)
		}
	}
	slices.SortStableFunc(pages, func(a, b namedPage) int { return int(min(max(a.First-b.First, -1), 1)) })
	return slices.CompactFunc(pages, func(a, b namedPage) bool { return a.First == b.First })
}

// expand lists the pages below children of a level, which end at end.
func (w *walk) expand(level int, children []metadata.Child, end int64, nodes map[nodeKey]metadata.Row) []namedPage {
	var pages []namedPage
	for i, child := range children {
		stop := end
		if i+1 < len(children) {
			stop = children[i+1].First
		}
		if level == 0 {
			pages = append(pages, namedPage{child, stop})
			continue
		}
		key := nodeKey{level, child.Place()}
		row, found := nodes[key]
		if !found {
			if stop > w.state.Start() {
				w.suspect(IndexRowMissing, w.p.id.NodeKey(level, child.Place()), "the index names it for offsets %d to %d, and it is not there", child.First, stop-1)
			}
			// Nothing is known of what is below: the tiles around it are not to blame.
			pages = append(pages, namedPage{metadata.Child{First: child.First, Entries: unknown}, stop})
			continue
		}
		delete(nodes, key)
		inner, err := metadata.DecodeNode(row.Value)
		if err != nil || len(inner) == 0 {
			w.suspect(RowCorrupt, row.Key, "%v", orEmpty(err))
			pages = append(pages, namedPage{metadata.Child{First: child.First, Entries: unknown}, stop})
			continue
		}
		w.compare(row.Key, child, metadata.MergeChildren(inner))
		pages = append(pages, w.expand(level-1, inner, stop, nodes)...)
	}
	return pages
}

// unknown marks what a missing node hides.
const unknown = -1

func orEmpty(err error) error {
	if err == nil {
		return fmt.Errorf("it is empty")
	}
	return err
}

// compare holds what is in a row against what its parent says of it.
func (w *walk) compare(key metadata.Key, says, is metadata.Child) {
	if is.Row = says.Row; says != is {
		w.suspect(IndexMismatch, key, "its parent says: %s; it holds: %s", describe(says), describe(is))
	}
}

func describe(c metadata.Child) string {
	return fmt.Sprintf("%d entries of %d bytes from offset %d, timestamps %d to %d, last %d, sum %016x",
		c.Entries, c.Bytes, c.First, c.MinTimestamp, c.MaxTimestamp, c.LastTimestamp, c.Sum)
}

// pages walks page rows and the list of named ones side by side; both are in offset order.
func (w *walk) pages(ctx context.Context, pages []namedPage, more bool) error {
	missing := func(until int64) {
		for len(pages) > 0 && pages[0].First < until {
			w.missing(pages[0])
			pages = pages[1:]
		}
	}
	if more {
		for row, err := range metadata.Rows(ctx, w.v.Table, metadata.IndexRows(w.p.id, metadata.PageRow)) {
			if err != nil {
				return fmt.Errorf("pages of %s: %w", w.p.id, err)
			}
			key, ok := metadata.ParseIndexKey(row.Sort)
			if !ok {
				w.suspect(RowCorrupt, row.Key, "no row of a partition has such a key")
				continue
			}
			missing(key.First)
			switch {
			case len(pages) == 0 || pages[0].Place() != key.RowPlace:
				w.leave(row)
				continue
			case pages[0].Entries == unknown:
				w.missing(pages[0])
			default:
				if err := w.page(ctx, row, pages[0]); err != nil {
					return err
				}
			}
			pages = pages[1:]
		}
	}
	for _, p := range pages {
		w.missing(p)
	}
	return nil
}

// missing passes over a page that is not there. Below the log start nobody needs it.
func (w *walk) missing(p namedPage) {
	if p.end > w.state.Start() && p.Entries != unknown {
		w.suspect(IndexRowMissing, w.p.id.PageKey(p.Place()), "the index names it for offsets %d to %d, and it is not there", p.First, p.end-1)
	}
	w.skip(p)
}

func (w *walk) skip(p namedPage) {
	w.begin(p.First)
	w.cursor = p.end
}

func (w *walk) page(ctx context.Context, row metadata.Row, p namedPage) error {
	entries, err := metadata.DecodePage(row.Value)
	if err != nil || len(entries) == 0 {
		w.suspect(RowCorrupt, row.Key, "%v", orEmpty(err))
		w.skip(p)
		return nil
	}
	w.compare(row.Key, p.Child, metadata.Summarize(entries))
	w.tile(entries)
	return w.hold(ctx, entries)
}

// begin notes where the index begins: at the log start, or below it within an entry, page or node.
func (w *walk) begin(first int64) {
	if w.begun {
		return
	}
	w.begun, w.cursor = true, first
	if start := w.state.Start(); first > start {
		w.suspect(IndexGap, w.p.id.LeaseKey(), "the log starts at offset %d, the index at %d", start, first)
	}
}

// tile checks that entries go on where the ones before end.
func (w *walk) tile(entries []metadata.Entry) {
	for i := range entries {
		e := &entries[i]
		w.begin(e.First)
		switch {
		case e.First > w.cursor:
			w.suspect(IndexGap, w.p.id.LeaseKey(), "no index entry has offsets %d to %d", w.cursor, e.First-1)
		case e.First < w.cursor:
			w.suspect(IndexOverlap, w.p.id.LeaseKey(), "two index entries have offsets %d to %d", e.First, min(w.cursor, e.End)-1)
		}
		w.cursor = max(w.cursor, e.End)
		if last, known := w.state.LastNumber(e.Gateway); known && e.Number > last {
			w.suspect(UploaderNumber, w.p.id.LeaseKey(), "offset %d is in segment %d of gateway %s, of which the partition has judged numbers up to %d", e.First, e.Number, e.Gateway, last)
		}
	}
}

// close checks that the index ends where the log does.
func (w *walk) close(view *metadata.View) {
	if !w.begun {
		w.cursor = view.Start
	}
	switch {
	case w.cursor < view.Next:
		w.suspect(IndexGap, w.p.id.LeaseKey(), "no index entry has offsets %d to %d", w.cursor, view.Next-1)
	case w.cursor > view.Next:
		w.suspect(IndexOverlap, w.p.id.LeaseKey(), "the log ends before offset %d, the index at %d", view.Next, w.cursor)
	}
}

// sums adds up what the lease row names. Pages and nodes were compared with that.
func (w *walk) sums(view *metadata.View) {
	var sum uint64
	var bytes int64
	for _, children := range view.Levels {
		for i := range children {
			sum += children[i].Sum
			bytes += children[i].Bytes
		}
	}
	for i := range view.Tail {
		sum += view.Tail[i].Sum
		bytes += view.Tail[i].Length
	}
	key := w.p.id.LeaseKey()
	if want := w.state.ContentSum(); sum != want {
		w.suspect(ContentSum, key, "the index adds up to %016x, the lease row says %016x", sum, want)
	}
	if bytes != view.Bytes {
		w.suspect(IndexMismatch, key, "the index has %d bytes, the lease row says %d", bytes, view.Bytes)
	}
}

// leave notes a page or node that nothing names. One that is not older than the checkpoint belongs to
// the next one, which is being written.
func (w *walk) leave(row metadata.Row) {
	if writer, _, err := metadata.RowWriter(row.Value); err != nil || writer != "" {
		return // for a swap: it may be decided, and no checkpoint name it yet. The collector knows.
	}
	folded := metadata.Stamp{Epoch: w.state.Epoch(), Sequence: w.lease.Through}
	if row.Stamp.Compare(folded) < 0 {
		w.leftover = append(w.leftover, row)
	}
}

// producers reads the rows of producers: all of them count.
func (w *walk) producers(ctx context.Context) error {
	for row, err := range metadata.Rows(ctx, w.v.Table, metadata.IndexRows(w.p.id, metadata.ProducerRow)) {
		if err != nil {
			return fmt.Errorf("producers of %s: %w", w.p.id, err)
		}
		if err := metadata.CheckProducerRow(row); err != nil {
			w.suspect(RowCorrupt, row.Key, "%v", err)
		}
	}
	return nil
}

// hold names the objects of entries and has those that are readable held against their objects.
func (w *walk) hold(ctx context.Context, entries []metadata.Entry) error {
	w.v.named.AddNamed(entries)
	entries = readable(entries, w.state.Start())
	w.entries, w.records = w.entries+int64(len(entries)), w.records+recordsOf(entries)
	return w.v.hold(ctx, w.p, entries, false)
}
