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
	"github.com/varvelog/varve/segments/batch"
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
	// Now is the time by which records are too young, and tombstones have had their time.
	Now func() time.Time
	// Confirm, if given, fails when the rules are no longer those of the topic. It is asked once the records are known that may go, and
	// again while they go.
	Confirm func(ctx context.Context) error
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
	// Passes counts how often the map was filled: more than once when it was too small.
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

const (
	// mostMoves is how often a swap of one place of the index is tried again when the index has moved.
	mostMoves = 4
	// mostPardons is how many damaged entries one call reads again.
	mostPardons = 100
	// confirmedFor is for how long the rules count as the topic's.
	confirmedFor = time.Second
)

// errLargePart says that a part of the index is too large to be in memory.
var errLargePart = errors.New("compactor: a part of the index is too large for a compaction by key")

// CleanPartition compacts a partition by key, if there is enough to do or force is set: of each key the last record
// stays, with its offset, and so do those that the rules leave alone. It ends when that is done for what was there when it began, or the
// index moves faster than it can follow; what it has done until then stays done. Only with an error that wraps
// [metadata.ErrUnknown] may a swap still take effect later.
//
// It goes through the index in offset order, and past a place only when that is done. A tombstone gets its horizon from the call that
// compared all that lies before it with it, and left none of that aside: then all that it deletes is gone.
func CleanPartition(ctx context.Context, d KeyDeps, c KeyConfig, id metadata.PartitionID, r KeyRules, force bool) (KeyReport, error) {
	c.setDefaults()
	if d.Pace == nil {
		d.Pace = func(context.Context, int64) error { return nil }
	}
	k := &keyPass{KeyDeps: d, config: c, id: id, rules: r, end: noOffset, from: noOffset, spared: never, reader: entryReader{store: d.Store, cluster: d.Cluster, topic: id.Topic, pace: d.Pace}}
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
	// end is the offset up to which this call goes, noOffset until the first plan. What is appended meanwhile is the next call's: else a
	// call would not end while somebody appends.
	end int64
	// from is the offset up to which this call has compared all records, noOffset before its first pass has. It counts, not the marks
	// of entries, which may be clean behind some that were not.
	from int64
	// first is the offset from which on the maps of this call had all keys.
	first int64
	// spared is the least offset of what this call had to leave as it was: a tombstone from there on does not go, and its time does not
	// begin, since what it deletes may lie there, or it was in no map. An entry stays spared, whatever is found in its place later.
	spared int64
	// start is the log start of the view that is worked on: what lies below it may be gone.
	start int64
	// bad has the entries that turned out to be damaged, by their first offset.
	bad     map[int64]metadata.Entry
	pardons int
	// confirmed is when the rules were.
	confirmed time.Time
}

// noOffset is an offset that is not known yet.
const noOffset = -1

func (k *keyPass) run(ctx context.Context, force bool) error {
	for moves := 0; ; {
		v, err := k.View(ctx, k.id)
		if err != nil || v.Closed {
			return err
		}
		plan, err := k.plan(ctx, v)
		if errors.Is(err, metadata.ErrIndexMoved) && moves < mostMoves {
			moves++
			continue
		}
		if err != nil {
			return err
		}
		k.report.CleanTo = plan.dirty
		if plan.dirty >= plan.end || !force && k.report.Passes == 0 && !plan.due(k.rules) {
			return nil
		}
		k.report.Due = true
		s, err := k.begin(ctx, v, plan)
		switch {
		case errors.Is(err, metadata.ErrIndexMoved) && moves < mostMoves:
			moves++
			continue
		case errors.As(err, new(*damageError)):
			if err := k.damage(ctx, err); err != nil {
				return err
			}
			continue // what the map has learnt of it must not count
		case errors.Is(err, metadata.ErrClosed): // the topic is being deleted
			return nil
		case err != nil:
			return err
		}
		k.report.Passes++
		done, err := k.clean(ctx, s)
		k.report.Dropped += s.dropped
		k.report.Tombstones += s.tombstones
		k.report.Keyless = s.keyless
		if err != nil || !done {
			return err
		}
		k.from, k.report.CleanTo = s.until, s.until
		if k.from >= k.end {
			return nil
		}
	}
}

// plan finds out what there is to do.
func (k *keyPass) plan(ctx context.Context, v *metadata.View) (cleaning, error) {
	for _, s := range v.Sections() {
		for i := range s.Parts {
			if n := s.Parts[i].Entries; n > mostPartEntries && s.Level > 0 {
				return cleaning{}, fmt.Errorf("%w: %d entries", errLargePart, n)
			}
		}
	}
	p := newKeyPlanner(v, k.rules, k.Now().UnixMilli(), k.aside)
	p.from = k.from
	if err := k.walk(ctx, v, v.Start, func(e *metadata.Entry) (bool, error) { return p.add(e), nil }); err != nil {
		return cleaning{}, err
	}
	if k.from != noOffset {
		p.dirty = max(v.Start, k.from)
	}
	if k.end == noOffset {
		k.end, k.report.Young = p.end, p.waits
	}
	p.end = min(p.end, k.end)
	return p.cleaning, nil
}

// begin fills the map of a pass, and sees to it that the pass may mark what it compares.
func (k *keyPass) begin(ctx context.Context, v *metadata.View, plan cleaning) (*keySieve, error) {
	if err := k.confirm(ctx, 0); err != nil { // after the view: all that is in it was there before
		return nil, err
	}
	s := &keySieve{offsets: newOffsetMap(k.config.MapBytes, plan.records)}
	var err error
	if s.until, err = k.learn(ctx, v, plan, s.offsets); err != nil {
		return nil, err
	}
	if k.from == noOffset {
		if k.first = plan.dirty; plan.dirty == v.Start {
			k.first = 0 // what lies before it in a batch is below the log start
		}
	}
	if plan.behind {
		return s, k.fence(ctx, s.until)
	}
	return s, nil
}

// confirm fails when the rules are no longer the topic's, as known longer than for so long.
func (k *keyPass) confirm(ctx context.Context, since time.Duration) error {
	if k.Confirm == nil || since > 0 && time.Since(k.confirmed) < since {
		return nil
	}
	k.confirmed = time.Now()
	return k.Confirm(ctx)
}

// aside says whether an entry is to stay as it is.
func (k *keyPass) aside(e *metadata.Entry) bool {
	b, bad := k.bad[e.First]
	return bad && b.Gateway == e.Gateway && b.Number == e.Number && b.Position == e.Position || k.Aside != nil && k.Aside(e)
}

// damage reads the entry that a *damageError is about once more, since bytes suffer on their way, too. Without an error it is whole, or
// set aside.
func (k *keyPass) damage(ctx context.Context, err error) error {
	var damage *damageError
	errors.As(err, &damage)
	if k.pardons++; k.pardons <= mostPardons {
		e := damage.entry
		err := k.reader.read(ctx, e, func(b []byte) error {
			_, err := batch.Each(b, keyLimits, func(*batch.Pick) {})
			if badBatch(err) {
				return &damageError{e, err}
			}
			return err
		})
		if err == nil || !errors.As(err, &damage) {
			return err
		}
	}
	k.setAside(damage)
	return nil
}

// spare notes an entry that is left as it is.
func (k *keyPass) spare(e *metadata.Entry) { k.spared = min(k.spared, e.First) }

// setAside notes a damaged entry.
func (k *keyPass) setAside(damage *damageError) {
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
		if k.aside(e) {
			k.spare(e)
			return true, nil
		}
		if e.Length == 0 {
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
		if err != nil || v.Closed || v.Next < s.until { // the partition's rows are gone
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
			if err := k.damage(ctx, err); err != nil {
				return false, err
			}
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
		part := s.Part(i, j)
		for ; j > i+1 && !part.MayBeRewritten(); part = s.Part(i, j) {
			j = i + (j-i+1)/2
		}
		return part, true
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
	next, now := *s, k.Now().UnixMilli()
	next.now, next.horizon = now, k.rules.horizon(now)
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
	if err := k.confirm(ctx, confirmedFor); err != nil {
		return nil, 0, err
	}
	outcome, err := k.swap(ctx, section, w.last, w.entries)
	return &next, outcome, err
}

// swap has a section's entries replaced.
func (k *keyPass) swap(ctx context.Context, section metadata.Section, number uint64, entries []metadata.Entry) (metadata.SwapOutcome, error) {
	swap, err := metadata.PrepareSwap(bill.Merging(ctx, section.Partition.Topic), k.Table, section, k.Uploader, number, entries)
	if err != nil {
		return 0, err
	}
	swap.Rewritten = true
	outcome, err := k.Swap(ctx, swap)
	if err == nil && outcome == metadata.Swapped {
		k.report.Swaps++
		k.report.BytesFreed += section.Summary().Bytes - metadata.Summarize(entries).Bytes
	}
	return outcome, err
}

// fence takes the mark from the entry that holds an offset, which a pass does not compare any more. An entry that came back from damage
// lies before others that were marked clean without it. If it were marked by a pass over some of those, and the rest were clean,
// nothing would compare it with the rest.
func (k *keyPass) fence(ctx context.Context, until int64) error {
	for range mostMoves {
		v, err := k.View(ctx, k.id)
		if err != nil || v.Closed || v.Next <= until {
			return err
		}
		section, ok := k.section(v, max(until, v.Start), until)
		if !ok {
			return fmt.Errorf("%w: no part of the index of %s holds offset %d", metadata.ErrCorrupt, k.id, until)
		}
		was, err := section.Load(ctx, k.Index)
		if err != nil {
			return err
		}
		entries := slices.Clone(was)
		i := slices.IndexFunc(entries, func(e metadata.Entry) bool { return e.End > until })
		if i < 0 || !entries[i].Clean {
			return nil
		}
		entries[i].Clean = false
		switch outcome, err := k.swap(ctx, section, k.Number(), entries); {
		case err != nil:
			return err
		case outcome == metadata.Swapped:
			return nil
		}
		k.report.Moved++
	}
	return metadata.ErrIndexMoved
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
		// It is compared with nothing. When it can be read again, all that follows must be compared with it.
		k.spare(e)
		out.Clean = e.Clean && e.First >= s.until
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
		kept, l, err := s.sift(make([]byte, 0, len(b)), b, k.first, k.spared)
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
