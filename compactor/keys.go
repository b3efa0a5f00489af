package compactor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// KeyDeps is what key compaction needs.
type KeyDeps struct {
	Store   segments.Store
	Cluster segments.ClusterID
	Table   metadata.Table
	Index   metadata.Index
	// Uploader is the compactor, Number gives its next segment number.
	Uploader metadata.GatewayID
	Number   func() uint64
	// View returns the partition's newest view.
	View func(ctx context.Context, id metadata.PartitionID) (*metadata.View, error)
	// Swap has a swap decided: (*gateway.Gateway).Swap.
	Swap func(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error)
	// Pace waits until so many bytes more may be read or written; nil: never.
	Pace func(ctx context.Context, bytes int64) error
	// Now is the wall clock.
	Now func() time.Time
	// Aside, if given, says of an entry that it is damaged and stays as it is.
	Aside func(*metadata.Entry) bool
	// Damaged is told of entries whose bytes are not what the index says.
	Damaged func(id metadata.PartitionID, e *metadata.Entry, err error)
}

// KeyConfig bounds what key compaction takes.
type KeyConfig struct {
	// MapBytes is how much memory the map of offsets may take: 24 bytes a key, a quarter of them free. A partition
	// with more keys is read once more for each time that they fill it. Default 32 MiB.
	MapBytes int64
	// SegmentBytes is the size of new segments, which are made in memory, and about how much one swap replaces.
	// An entry that is longer gets a longer segment. Default 16 MiB.
	SegmentBytes int64
}

func (c *KeyConfig) setDefaults() {
	if c.MapBytes <= 0 {
		c.MapBytes = 32 << 20
	}
	if c.SegmentBytes <= 0 {
		c.SegmentBytes = 16 << 20
	}
}

// KeyReport says what a pass over a partition did.
type KeyReport struct {
	// Due is false when there was too little to do; then nothing else was done.
	Due bool
	// Passes counts how often the map was filled.
	Passes int
	// Dropped counts records that a later one of their key took the place of, Tombstones those that had their time,
	// Keyless records without a key, which stay.
	Dropped, Tombstones, Keyless int64
	// BytesRead and BytesWritten are of the bucket, BytesFreed what the index names less than before.
	BytesRead, BytesWritten, BytesFreed int64
	// Swaps counts those that took effect, Moved those that did not since the index had moved.
	Swaps, Moved int
	// Asides counts entries that stayed as they are, since they are damaged.
	Asides int
	// CleanTo is the offset up to which no two records have the same key, those without left aside.
	CleanTo int64
	// Young is the timestamp (ms) of what is next to be old enough, 0: nothing waits for that.
	Young int64
}

// mostMoves is how often a swap of one place of the index is tried again when the index has moved.
const mostMoves = 4

// CleanPartition compacts a partition by key, if there is enough to do or force is set: of each key the last record
// stays, with its offset, and so do those that the rules leave alone. It goes on until nothing is left to do, or the index
// moves faster than it can follow; what it has done until then stays done. Only with an error that wraps
// [metadata.ErrUnknown] may a swap still take effect later.
//
// It goes through the index in offset order, and past a place only when that is done. So a tombstone gets its horizon when
// all that it deletes is gone.
func CleanPartition(ctx context.Context, d KeyDeps, c KeyConfig, id metadata.PartitionID, r KeyRules, force bool) (KeyReport, error) {
	c.setDefaults()
	if d.Pace == nil {
		d.Pace = func(context.Context, int64) error { return nil }
	}
	k := &keyPass{KeyDeps: d, config: c, id: id, rules: r, reader: entryReader{store: d.Store, cluster: d.Cluster, topic: id.Topic, pace: d.Pace}}
	err := k.run(ctx, force)
	k.report.BytesRead = k.reader.bytes
	return k.report, err
}

// keyPass is one call of CleanPartition.
type keyPass struct {
	KeyDeps
	config KeyConfig
	id     metadata.PartitionID
	rules  KeyRules
	reader entryReader
	report KeyReport
	// from is the offset up to which this call has compared all records.
	from int64
	// start is the log start of the view that is worked on: what lies below it may be gone.
	start int64
	// bad has the entries that turned out to be damaged, by their first offset.
	bad map[int64]metadata.Entry
}

func (k *keyPass) run(ctx context.Context, force bool) error {
	for moves := 0; ; {
		v, err := k.View(ctx, k.id)
		if err != nil || v.Closed {
			return err
		}
		now := k.Now().UnixMilli()
		plan, err := k.plan(ctx, v, now)
		if errors.Is(err, metadata.ErrIndexMoved) && moves < mostMoves {
			moves++
			continue
		}
		if err != nil {
			return err
		}
		k.report.CleanTo, k.report.Young = plan.dirty, plan.waits
		if plan.dirty >= plan.end || !force && k.report.Passes == 0 && !plan.due(k.rules) {
			return nil
		}
		k.report.Due = true
		k.report.Passes++
		s := &keySieve{offsets: newOffsetMap(k.config.MapBytes, plan.records), now: now, horizon: k.rules.horizon(now), deletes: true}
		switch s.until, err = k.learn(ctx, v, plan, s.offsets); {
		case errors.Is(err, metadata.ErrIndexMoved) && moves < mostMoves:
			moves++
			continue
		case errors.As(err, new(*damageError)):
			k.setAside(err)
			continue // what the map has learnt of it must not count
		case err != nil:
			return err
		}
		done, err := k.clean(ctx, s)
		k.report.Dropped += s.dropped
		k.report.Tombstones += s.tombstones
		k.report.Keyless = s.keyless
		if err != nil || !done {
			return err
		}
		k.from = s.until
	}
}

// plan finds out what there is to do.
func (k *keyPass) plan(ctx context.Context, v *metadata.View, now int64) (cleaning, error) {
	p := newKeyPlanner(v, k.rules, now, k.aside)
	err := k.walk(ctx, v, v.Start, func(e *metadata.Entry) (bool, error) { return p.add(e), nil })
	p.dirty = max(p.dirty, k.from)
	return p.cleaning, err
}

// aside says whether an entry is to stay as it is.
func (k *keyPass) aside(e *metadata.Entry) bool {
	b, bad := k.bad[e.First]
	return bad && b.Gateway == e.Gateway && b.Number == e.Number && b.Position == e.Position || k.Aside != nil && k.Aside(e)
}

// setAside notes the entry that a *damageError is about.
func (k *keyPass) setAside(err error) {
	var damage *damageError
	errors.As(err, &damage)
	if k.bad == nil {
		k.bad = make(map[int64]metadata.Entry)
	}
	k.bad[damage.entry.First] = *damage.entry
	k.report.Asides++
	if k.Damaged != nil {
		k.Damaged(k.id, damage.entry, damage.err)
	}
}

// walk shows the entries of a view from an offset on, until show says that it is enough.
func (k *keyPass) walk(ctx context.Context, v *metadata.View, from int64, show func(*metadata.Entry) (bool, error)) error {
	for at := from; at < v.Next; {
		entries, err := v.Entries(ctx, k.Index, at)
		if err != nil {
			return err
		}
		for i := range entries {
			if more, err := show(&entries[i]); err != nil || !more {
				return err
			}
			at = entries[i].End
		}
	}
	return nil
}

// learn fills the map from where the partition is clean on, and returns up to which offset it knows all keys.
func (k *keyPass) learn(ctx context.Context, v *metadata.View, plan cleaning, m *offsetMap) (int64, error) {
	until := plan.end
	err := k.walk(ctx, v, plan.dirty, func(e *metadata.Entry) (bool, error) {
		if e.First >= until {
			return false, nil
		}
		if e.Length == 0 || k.aside(e) {
			return true, nil
		}
		err := k.reader.read(ctx, e, func(b []byte) error {
			known, err := m.learn(b, plan.dirty, until)
			if badBatch(err) {
				return &damageError{e, err}
			}
			if known < min(until, endOf(b)) {
				until = known // the rest of the entry is read all the same: is it sound?
			}
			return err
		})
		return true, err
	})
	return until, err
}

// clean takes out what the map says, section by section, up to where it knows all keys. It returns false when the index
// moves too fast.
func (k *keyPass) clean(ctx context.Context, s *keySieve) (bool, error) {
	moves := 0
	for at := int64(0); at < s.until; {
		v, err := k.View(ctx, k.id)
		if err != nil || v.Closed {
			return false, err
		}
		if at = max(at, v.Start); at >= s.until {
			break
		}
		k.start = v.Start
		section, ok := k.section(v, at, s.until)
		if !ok {
			return false, fmt.Errorf("%w: no part of the index of %s holds offset %d", metadata.ErrCorrupt, k.id, at)
		}
		next, outcome, err := k.cleanSection(ctx, section, s)
		switch {
		case errors.Is(err, metadata.ErrIndexMoved), err == nil && outcome == metadata.SwapMoved, err == nil && outcome == metadata.SwapForgotten:
			k.report.Moved++
			if moves++; moves >= mostMoves {
				return false, nil
			}
		case errors.As(err, new(*damageError)):
			k.setAside(err)
		case errors.Is(err, metadata.ErrClosed): // the topic is being deleted
			return false, nil
		case err != nil:
			return false, err
		default:
			*s, at, moves = *next, section.To, 0
		}
	}
	return true, nil
}

// section is the part of the index from that on which holds an offset: of about the size of a segment, and
// without what lies wholly at or above until.
func (k *keyPass) section(v *metadata.View, at, until int64) (metadata.Section, bool) {
	for _, s := range v.Sections() {
		if at < s.From || at >= s.To {
			continue
		}
		i := 0
		for i+1 < len(s.Parts) && s.Parts[i+1].First <= at {
			i++
		}
		j, bytes, entries := i+1, s.Parts[i].Bytes, s.Parts[i].Entries
		for j < len(s.Parts) && s.Parts[j].First < until && bytes+s.Parts[j].Bytes <= k.config.SegmentBytes && entries < mostEntries {
			bytes, entries = bytes+s.Parts[j].Bytes, entries+s.Parts[j].Entries
			j++
		}
		return s.Part(i, j), true
	}
	return metadata.Section{}, false
}

// mostEntries is about how many entries one swap replaces, unless a single part has more.
const mostEntries = 4096

// cleanSection makes a section's entries anew and has them put in place. What the sieve was changed to comes back: it
// counts only when the swap took effect.
func (k *keyPass) cleanSection(ctx context.Context, section metadata.Section, s *keySieve) (*keySieve, metadata.SwapOutcome, error) {
	entries, err := section.Load(ctx, k.Index)
	if err != nil {
		return nil, 0, err
	}
	next := *s
	w := &keyWriter{m: &merger{store: k.Store, cluster: k.Cluster, pace: k.Pace}, partition: k.id, uploader: k.Uploader, number: k.Number, target: k.config.SegmentBytes}
	for i := range entries {
		if err := k.cleanEntry(ctx, w, &entries[i], &next); err != nil {
			return nil, 0, err
		}
	}
	if err := w.flush(ctx); err != nil {
		return nil, 0, err
	}
	k.report.BytesWritten += w.bytes
	if slices.EqualFunc(entries, w.entries, sameEntry) {
		return &next, metadata.Swapped, nil
	}
	if w.last == 0 {
		w.last = k.Number()
	}
	swap, err := metadata.PrepareSwap(bill.Merging(ctx, section.Partition.Topic), k.Table, section, k.Uploader, w.last, w.entries)
	if err != nil {
		return nil, 0, err
	}
	swap.Rewritten = true
	outcome, err := k.Swap(ctx, swap)
	if err == nil && outcome == metadata.Swapped {
		k.report.Swaps++
		k.report.BytesFreed += section.Summary().Bytes - metadata.Summarize(w.entries).Bytes
	}
	return &next, outcome, err
}

// sameEntry says whether two entries are one, and one as clean as the other.
func sameEntry(a, b metadata.Entry) bool { return a.Clean == b.Clean && same(&a, &b) }

// cleanEntry hands an entry to the writer, as it is or sifted.
func (k *keyPass) cleanEntry(ctx context.Context, w *keyWriter, e *metadata.Entry, s *keySieve) error {
	out := *e
	if e.End <= k.start {
		w.keep(out)
		return nil
	}
	if k.aside(e) {
		s.deletes = false
		w.keep(out)
		return nil
	}
	out.Clean = e.Clean || e.End <= s.until
	if e.First >= s.until || e.Length == 0 {
		w.keep(out)
		return nil
	}
	var left []sifted
	changed := false
	err := k.reader.read(ctx, e, func(b []byte) error {
		kept, l, err := s.sift(make([]byte, 0, len(b)), b)
		if badBatch(err) {
			return &damageError{e, err}
		}
		if changed = changed || l.Changed; l.Count > 0 {
			left = append(left, sifted{kept, l})
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case !changed:
		w.keep(out)
		return nil
	}
	return w.rewrite(ctx, e, left, out.Clean)
}
