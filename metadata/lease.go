package metadata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/varvelog/varve/internal/seeded"
)

// Variables, so that tests reach them with few entries.
var (
	// pageAt is how many entries a partition's newest index entries must be for a
	// checkpoint to move them from the lease row into a page of their own. Fewer
	// would make pages many, more would make lease rows, which each checkpoint
	// writes whole, long.
	pageAt = 48
	// pagesInline is how many pages the lease row names at most: with some entries beside
	// them it takes about one KiB.
	pagesInline = 24
	// inlineProducers is how many producer states, last used first, the lease row
	// holds; the rest get rows of their own.
	inlineProducers = 32
)

// Lease is a partition's lease row: who sequences it, and its checkpoint.
type Lease struct {
	Journal GatewayID // the gateway whose journal decides
	// Through is the journal sequence up to which the checkpoint reaches.
	Through uint64
	// Released: the owner left in good order, and the checkpoint is all there is.
	Released bool
	Stamp    Stamp // of the row: (epoch, version)
	// base is the journal that Through counts, where that is not Journal: the owner
	// has folded more than the row can hold, and commits nothing before its
	// first checkpoint.
	base  GatewayID
	state *Partition
	// doubt is the stamp of a checkpoint whose lease row may or may not be there.
	doubt Stamp
}

// Source is the journal that holds what the checkpoint does not: entries above
// Through. Journal's, but for a moment after a takeover.
func (l *Lease) Source() GatewayID {
	if l.base != "" {
		return l.base
	}
	return l.Journal
}

// Doubtful says that a checkpoint may or may not have been written: the row may be another's by now.
func (l *Lease) Doubtful() bool { return l.doubt != (Stamp{}) }

// Epoch counts the owners.
func (l *Lease) Epoch() uint64 { return l.Stamp.Epoch }

const (
	flagClosed byte = 1 << iota
	flagReleased
	flagBase
	flagSwaps
)

// encodeLease writes the row's value. tail and levels are what the checkpoint leaves.
func encodeLease(l *Lease, p *Partition, producers []*producerState, levels [][]Child, tail []Entry) []byte {
	var body encoder
	var y dictionary
	var flags byte
	if p.closed {
		flags |= flagClosed
	}
	if l.Released {
		flags |= flagReleased
	}
	if l.base != "" {
		flags |= flagBase
	}
	if p.swaps > 0 {
		flags |= flagSwaps
	}
	body.byte(flags)
	body.uint(y.number(l.Journal))
	if l.base != "" {
		body.uint(y.number(l.base))
		body.uint(p.epoch)
	}
	body.uint(l.Through)
	body.uint(uint64(p.start))
	body.uint(uint64(p.next))
	body.fixed64(p.sum)
	body.fixed64(p.gone)
	body.uint(uint64(p.bytes))
	if p.swaps > 0 {
		body.uint(p.swaps)
	}
	body.text(p.fence)
	body.uint(uint64(len(p.uploaders)))
	kept := p.answersToStore()
	for _, id := range p.Uploaders() {
		u := p.uploaders[id]
		answers := u.answers
		if kept != nil {
			answers = kept[id]
		}
		body.uint(y.number(id))
		body.uint(u.last)
		body.uint(uint64(len(answers)))
		for _, a := range answers {
			body.uint(u.last - a.number)
			encodeRuns(&body, a.runs, p.next)
		}
	}
	body.uint(uint64(len(producers)))
	for _, s := range producers {
		encodeProducer(&body, s)
	}
	body.uint(uint64(len(levels)))
	for _, children := range levels {
		encodeChildren(&body, children)
	}
	packEntries(&body, &y, tail)
	e := encoder{b: make([]byte, 0, len(body.b)+64)}
	e.byte(formatPacked)
	y.encode(&e)
	e.raw(body.b)
	return e.b
}

// storedRuns bounds the runs of all uploaders' answers in a lease row, of up to 24 bytes each: a row
// ends at 400 KB, and gateways that died without closing are remembered for days.
const storedRuns = 4 * maxAnswerRuns

// answersToStore are the newest answers of each uploader, as far as there is room for them, last
// used uploaders first; nil: there is room for all. Whoever asks for another one is told that it is no
// longer kept. Last numbers are always stored: that each is judged once rests on them.
func (p *Partition) answersToStore() map[GatewayID][]answer {
	runs := 0
	for _, u := range p.uploaders {
		for _, a := range u.answers {
			runs += len(a.runs)
		}
	}
	if runs <= storedRuns {
		return nil
	}
	ids := p.Uploaders()
	slices.SortStableFunc(ids, func(a, b GatewayID) int {
		return cmp.Or(cmp.Compare(p.uploaders[b].used, p.uploaders[a].used), cmp.Compare(b, a)) // ids rise with time
	})
	stored := make(map[GatewayID][]answer, len(ids))
	room := storedRuns
	for _, id := range ids {
		answers := p.uploaders[id].answers
		from := len(answers)
		for from > 0 && len(answers[from-1].runs) <= room {
			from--
			room -= len(answers[from].runs)
		}
		stored[id] = answers[from:]
	}
	return stored
}

func encodeProducer(e *encoder, s *producerState) {
	e.int(s.id)
	e.uint(uint64(s.epoch))
	e.uint(uint64(s.used))
	e.uint(s.changed.Epoch)
	e.uint(s.changed.Sequence)
	e.uint(s.stored.Epoch)
	e.uint(s.stored.Sequence)
	e.uint(uint64(len(s.batches)))
	for _, b := range s.batches {
		e.uint(uint64(b.first))
		e.uint(uint64(b.last))
		e.uint(uint64(b.offset))
	}
}

func decodeProducer(d *decoder) *producerState {
	s := &producerState{id: d.int(), epoch: int16(d.uint()), used: int64(d.uint()),
		changed: Stamp{d.uint(), d.uint()}, stored: Stamp{d.uint(), d.uint()}}
	count := d.count(3)
	if count == 0 || count > batchesKept {
		d.fail("a producer state keeps a wrong number of batches")
		return s
	}
	s.batches = make([]producerBatch, count)
	for i := range s.batches {
		s.batches[i] = producerBatch{int32(d.uint()), int32(d.uint()), int64(d.uint())}
	}
	return s
}

func decodeLease(id PartitionID, row Row) (*Lease, error) {
	d := &decoder{b: row.Value}
	packed := d.packed()
	gates := decodeDictionary(d)
	p := NewPartition(id)
	p.epoch = row.Stamp.Epoch
	l := &Lease{Stamp: row.Stamp, state: p}
	flags := d.byte()
	p.closed, l.Released = flags&flagClosed != 0, flags&flagReleased != 0
	l.Journal = lookupGateway(d, gates)
	if flags&flagBase != 0 {
		l.base, p.epoch = lookupGateway(d, gates), d.uint()
	}
	l.Through = d.uint()
	p.through = l.Through
	p.start, p.next = int64(d.uint()), int64(d.uint())
	p.sum, p.gone = d.fixed64(), d.fixed64()
	p.bytes = int64(d.uint())
	if flags&flagSwaps != 0 {
		p.swaps = d.uint()
	}
	p.fence = d.text()
	for range d.count(3) {
		id := lookupGateway(d, gates)
		u := &uploaderState{last: d.uint()}
		for range d.count(2) {
			u.answers = append(u.answers, answer{number: u.last - d.uint(), runs: decodeRuns(d, p.next)})
		}
		p.uploaders[id] = u
	}
	for range d.count(9) {
		s := decodeProducer(d)
		p.producers[s.id] = s
	}
	levels := d.count(1)
	if levels > maxLevels {
		d.fail("the tree is too high")
	}
	for range levels {
		p.levels = append(p.levels, decodeChildren(d))
	}
	p.tail = decodeIndex(d, packed, gates)
	if d.err == nil && (p.start < 0 || p.next < p.start) {
		d.fail(fmt.Sprintf("the log goes from %d to %d", p.start, p.next))
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("lease row of %s: %w", id, err)
	}
	return l, nil
}

// ReadLease reads a partition's lease row, or returns ErrNotFound when nobody has
// appended to it yet.
func ReadLease(ctx context.Context, t Table, id PartitionID, c Consistency) (*Lease, error) {
	row, err := t.Get(ctx, leaseKey(id), c)
	if err != nil {
		return nil, err
	}
	return decodeLease(id, row)
}

// View is the partition as of the checkpoint alone: all there is when it was released,
// or when its owner, Source, commits nothing meanwhile.
func (l *Lease) View() *View { return l.state.View() }

// Acquire makes the journal's gateway the sequencer of a partition. sealed gives
// what a predecessor's journal still holds; it must have sealed it, or answer
// ErrHeld when that gateway lives. On success the state is that of all committed
// entries, and the row says so. ErrConflict: somebody was quicker; try again.
func Acquire(ctx context.Context, t Table, id PartitionID, journal *Journal, sealed func(context.Context, GatewayID) (*SealedJournal, error)) (*Partition, *Lease, error) {
	return AcquireIf(ctx, t, id, journal, func(*Lease) error { return nil }, sealed)
}

// AcquireIf is [Acquire] with a say: may is asked once the row was read (nil: there is
// none), unless the journal's gateway holds the partition already. Its error ends the attempt.
func AcquireIf(ctx context.Context, t Table, id PartitionID, journal *Journal, may func(*Lease) error, sealed func(context.Context, GatewayID) (*SealedJournal, error)) (*Partition, *Lease, error) {
	row, err := t.Get(ctx, leaseKey(id), Strong)
	if errors.Is(err, ErrNotFound) {
		if err := may(nil); err != nil {
			return nil, nil, err
		}
		return takeLease(ctx, t, NewPartition(id), journal, Stamp{})
	}
	if err != nil {
		return nil, nil, err
	}
	was, err := decodeLease(id, row)
	if err != nil {
		return nil, nil, err
	}
	if was.Journal != journal.id || was.Released {
		if err := may(was); err != nil {
			return nil, nil, err
		}
	}
	p := was.state
	if len(p.producers) >= inlineProducers { // else the lease row has them all
		if err := loadProducers(ctx, t, p); err != nil {
			return nil, nil, err
		}
	}
	if was.Journal == journal.id && !was.Released && was.base == "" {
		p.capProducers()
		return p, was, nil // ours: forgotten after a checkpoint that had all of it
	}
	if err := foldPredecessor(ctx, was, journal, sealed); err != nil {
		return nil, nil, was.moved(ctx, t, err)
	}
	if len(p.tail) > fanOut {
		return takeLong(ctx, t, p, journal, row)
	}
	return takeLease(ctx, t, p, journal, was.Stamp)
}

// moved says whether a journal does not fold onto a lease row because the row is an old one: its owner
// may have written a checkpoint since it was read, and trimmed the journal, before it was sealed.
func (l *Lease) moved(ctx context.Context, t Table, foldErr error) error {
	if !errors.Is(foldErr, ErrCorrupt) && !errors.Is(foldErr, ErrHole) {
		return foldErr
	}
	switch row, err := t.Get(ctx, leaseKey(l.state.id), Strong); {
	case err != nil:
		return fmt.Errorf("take %s: %w", l.state.id, err)
	case row.Stamp != l.Stamp:
		return fmt.Errorf("take %s: %w: it was at %s and is at %s", l.state.id, ErrConflict, l.Stamp, row.Stamp)
	}
	return foldErr
}

// foldPredecessor brings the state of a lease up to all that was committed.
func foldPredecessor(ctx context.Context, was *Lease, journal *Journal, sealed func(context.Context, GatewayID) (*SealedJournal, error)) error {
	if was.Released {
		was.state.capProducers()
		return nil
	}
	if was.base != "" && was.Journal != journal.id {
		// It has committed nothing here yet; but it may live.
		if _, err := sealed(ctx, was.Journal); err != nil {
			return err
		}
	}
	from, err := sealed(ctx, was.Source())
	if err != nil {
		return err
	}
	return Fold(was.state, was.Through, from)
}

// Fold applies what a sealed journal holds of the partition after the checkpoint.
// What was trimmed from the journal every partition had checkpointed, so a
// checkpoint below trimmed-to means that nothing of it was left out.
func Fold(p *Partition, through uint64, from *SealedJournal) error {
	p.folding = true
	defer func() {
		p.folding = false
		p.capProducers()
	}()
	if seeded.Has(seeded.SkipFold) {
		return nil
	}
	for _, place := range from.of(p.id) {
		row := &from.Rows[place.row]
		if row.Sequence <= through {
			continue
		}
		c, err := from.change(place)
		if err != nil {
			return fmt.Errorf("fold number %d of the journal of %s: %w", row.Sequence, from.ID, err)
		}
		// An entry of another epoch was written before the partition left and came back.
		if seeded.Has(seeded.SkipEpochCheck) {
			c.Epoch = p.epoch
		}
		if c.Epoch == p.epoch {
			if err := p.Apply(&c, row.Sequence); err != nil {
				return fmt.Errorf("fold number %d of the journal of %s: %w", row.Sequence, from.ID, err)
			}
		}
	}
	return nil
}

// takeLease writes the lease row of a new owner. The index entries that were
// folded stay inline until the first checkpoint.
func takeLease(ctx context.Context, t Table, p *Partition, journal *Journal, was Stamp) (*Partition, *Lease, error) {
	switch {
	case seeded.Has(seeded.ForgetUploader):
		clear(p.uploaders)
	case seeded.Has(seeded.ForgetProducers):
		clear(p.producers)
	case seeded.Has(seeded.ForgetFence):
		p.fence = ""
	}
	l := &Lease{Journal: journal.id, Through: journal.next - 1, Stamp: Stamp{was.Epoch + 1, was.Sequence + 1}, state: p}
	if err := l.take(ctx, t, encodeLease(l, p, p.inline(), p.levels, p.tail), was); err != nil {
		return nil, nil, err
	}
	p.epoch, p.since, p.through = l.Stamp.Epoch, 0, l.Through
	return p, l, nil
}

// takeLong takes a partition whose folded entries need pages. Pages may be written by
// the owner only: those of a checkpoint that its predecessor was writing when it was
// sealed have the same keys. So the lease comes first, with the checkpoint as it was,
// and then a checkpoint of what was folded.
func takeLong(ctx context.Context, t Table, p *Partition, journal *Journal, row Row) (*Partition, *Lease, error) {
	l, err := decodeLease(p.id, row)
	if err != nil {
		return nil, nil, err
	}
	was := l.state
	l.base, l.Journal, l.Stamp = l.Source(), journal.id, Stamp{row.Stamp.Epoch + 1, row.Stamp.Sequence + 1}
	if err := l.take(ctx, t, encodeLease(l, was, was.byAge(), was.levels, was.tail), row.Stamp); err != nil {
		return nil, nil, err
	}
	l.base, l.state = "", p
	p.epoch = l.Stamp.Epoch
	plan := p.Checkpoint(l, journal.next-1, false)
	if err := plan.Write(ctx, t, l); err != nil {
		return nil, nil, err
	}
	p.through = l.Through
	p.Done(plan)
	_ = plan.Clean(ctx, t) // what it leaves behind is garbage that nothing names
	return p, l, nil
}

// take puts the lease row if the one that was read still stands.
func (l *Lease) take(ctx context.Context, t Table, value []byte, was Stamp) error {
	row := Row{Key: leaseKey(l.state.id), Stamp: l.Stamp, Nonce: NewNonce(), Value: value}
	if err := PutSettled(ctx, t, row, guard(was), nil); err != nil {
		return fmt.Errorf("take %s: %w", l.state.id, err)
	}
	return nil
}

// inline lists the producers that the lease row holds: the last used ones, and
// whatever changed since its own row was written.
func (p *Partition) inline() []*producerState {
	list := p.byAge()
	if len(list) <= inlineProducers {
		return list
	}
	kept := list[:inlineProducers:inlineProducers]
	for _, s := range list[inlineProducers:] {
		if s.stored.Compare(s.changed) < 0 {
			kept = append(kept, s)
		}
	}
	return kept
}

// loadProducers adds the producer states that have rows of their own.
func loadProducers(ctx context.Context, t Table, p *Partition) error {
	from := producerPrefix
	for {
		rows, err := t.Range(ctx, Range{Partition: partitionKey(p.id), From: from, To: prefixEnd(producerPrefix), Limit: 200, Consistency: Strong})
		if err != nil {
			return fmt.Errorf("producers of %s: %w", p.id, err)
		}
		if len(rows) == 0 {
			return nil
		}
		for _, row := range rows {
			d := &decoder{b: row.Value}
			d.format()
			s := decodeProducer(d)
			if err := d.end(); err != nil {
				return fmt.Errorf("producer row %s: %w", row.Key, err)
			}
			s.stored = row.Stamp
			if inline := p.producers[s.id]; inline == nil || inline.changed.Compare(s.stored) <= 0 {
				p.producers[s.id] = s
			} else {
				inline.stored = row.Stamp
			}
		}
		from = rows[len(rows)-1].Sort + "\x00"
	}
}

// prefixEnd is the first text after all that begin with prefix.
func prefixEnd(prefix string) string {
	b := []byte(prefix)
	b[len(b)-1]++
	return string(b)
}

// Checkpoint is a set of rows that bring the table up to a partition's state: first
// pages, tree and producer rows, then the lease row, then deletions. It is planned
// in one step and written while the state moves on.
type Checkpoint struct {
	partition PartitionID
	stamp     Stamp // (epoch, through): of pages, tree and producer rows
	before    []Row
	lease     Row
	held      Stamp // of the lease row that it replaces
	garbage   []Key // producers that were evicted
	oldest    int64 // pages and nodes that begin below it go ...
	dropped   bool  // ... if there are any
	release   bool
	doubt     bool // it may or may not have been written

	// What becomes of the state once it is written.
	levels    [][]Child
	paged     int // entries of tail that went into pages
	through   uint64
	producers []*producerState
	evicted   int
}

// Writes is how many rows it puts, Bytes their size.
func (c *Checkpoint) Writes() int { return len(c.before) + 1 }

// Bytes is the size of the values that it puts.
func (c *Checkpoint) Bytes() int {
	n := len(c.lease.Value)
	for i := range c.before {
		n += len(c.before[i].Value)
	}
	return n
}

// Checkpoint plans one, as of the journal sequence through (all changes up to it are
// applied and settled). l is the lease row as last written. Until Done or Undone is
// called the log start cannot move.
func (p *Partition) Checkpoint(l *Lease, through uint64, release bool) *Checkpoint {
	c := &Checkpoint{partition: p.id, stamp: Stamp{p.epoch, through}, held: l.Stamp, through: through,
		oldest: p.oldest(), dropped: p.dropped, release: release}
	p.checkpointing = true
	c.levels = slices.Clone(p.levels)
	tail := p.tail
	for len(tail) >= pageAt {
		n, value := cutPage(tail)
		c.put(pageKey(p.id, RowPlace{First: tail[0].First}), value)
		c.push(0, summarize(tail[:n]))
		c.paged += n
		tail = tail[n:]
	}
	inline := p.byAge()
	if len(inline) > inlineProducers {
		for _, s := range inline[inlineProducers:] {
			if s.stored.Compare(s.changed) < 0 {
				e := encoder{b: []byte{formatV1}}
				encodeProducer(&e, s)
				c.put(producerKey(p.id, s.id), e.b)
				c.producers = append(c.producers, s)
			}
		}
		inline = inline[:inlineProducers]
	}
	for _, id := range p.evicted {
		c.garbage = append(c.garbage, producerKey(p.id, id))
	}
	c.evicted = len(p.evicted)
	next := &Lease{Journal: l.Journal, Through: through, Released: release}
	c.lease = Row{Key: leaseKey(p.id), Stamp: Stamp{l.Stamp.Epoch, l.Stamp.Sequence + 1}, Nonce: NewNonce(),
		Value: encodeLease(next, p, inline, c.levels, tail)}
	return c
}

// cutPage says how many of the newest entries make a page, and encodes it. Rows are paid for by the KiB: what would
// only begin another one stays in the lease row, if that is not long enough for a page of its own.
func cutPage(tail []Entry) (n int, value []byte) {
	n = min(len(tail), fanOut)
	value = encodePage(tail[:n])
	room := (len(value)+rowKey)/rowUnit*rowUnit - rowKey
	if room < rowUnit/2 || room == len(value) {
		return n, value
	}
	for fits := n * room / len(value); fits > 0 && len(tail)-fits < pageAt; fits-- {
		if cut := encodePage(tail[:fits]); len(cut) <= room {
			return fits, cut
		}
	}
	return n, value
}

const (
	// rowUnit is what a table bills as one write, in bytes, rowKey about what a row has beside its value.
	rowUnit = 1 << 10
	rowKey  = 150
)

// oldest is the first offset that the index still describes.
func (p *Partition) oldest() int64 {
	for level := len(p.levels) - 1; level >= 0; level-- {
		if len(p.levels[level]) > 0 {
			return p.levels[level][0].First
		}
	}
	if len(p.tail) > 0 {
		return p.tail[0].First
	}
	return p.next
}

func (c *Checkpoint) put(key Key, value []byte) {
	c.before = append(c.before, Row{Key: key, Stamp: c.stamp, Nonce: NewNonce(), Value: value})
}

// mostChildren is how many children of a level lie in the lease row before they become a
// node. Each checkpoint writes the lease row whole, and pages come often: fewer of them
// keep it to one or two KB, at the price of nodes that are less full.
func mostChildren(level int) int {
	if level == 0 {
		return min(fanOut, pagesInline)
	}
	return fanOut
}

// push adds a child to a level; a level that is full becomes a node of the tree.
func (c *Checkpoint) push(level int, child Child) {
	if level == len(c.levels) {
		c.levels = append(c.levels, nil)
	}
	if len(c.levels[level]) >= mostChildren(level) {
		full := c.levels[level]
		c.put(treeKey(c.partition, level+1, RowPlace{First: full[0].First}), encodeNode(full))
		c.push(level+1, merge(full))
		c.levels[level] = nil
	}
	c.levels[level] = append(slices.Clip(c.levels[level]), child)
}

// Write writes the checkpoint. On success the lease is as it now stands in the
// table, and Done must be called on the state. ErrConflict: another gateway has
// the partition. ErrUnknown: the lease row may name this checkpoint's pages, so that no
// other may overwrite them; only the same one can be written again.
func (c *Checkpoint) Write(ctx context.Context, t Table, l *Lease) error {
	if l.doubt != (Stamp{}) && l.doubt != c.stamp && !seeded.Has(seeded.ForgetDoubt) {
		return fmt.Errorf("checkpoint %s: %w: the outcome of the one before, at %s, is not known", c.partition, ErrConflict, l.doubt)
	}
	for i := range c.before {
		// A row with a stamp of ours or above was written by us in a checkpoint that
		// was cut short, or by the partition's next owner: the lease row decides.
		if err := PutSettled(ctx, t, c.before[i], c.unless(&c.before[i]), nil); errors.Is(err, ErrConflict) {
			if err := c.adopt(ctx, t, &c.before[i]); err != nil {
				return err
			}
		} else if err != nil {
			return fmt.Errorf("checkpoint %s: %w", c.partition, err)
		}
	}
	if err := PutSettled(ctx, t, c.lease, IfEqual(c.held), nil); err != nil {
		if errors.Is(err, ErrUnknown) {
			l.doubt, c.doubt = c.stamp, true
		}
		return fmt.Errorf("checkpoint %s: %w", c.partition, err)
	}
	l.Stamp, l.Through, l.Released, l.doubt = c.lease.Stamp, c.through, c.release, Stamp{}
	return nil
}

// unless is the condition of a page, tree or producer row: nobody has written it since.
func (c *Checkpoint) unless(row *Row) Condition {
	switch {
	case seeded.Has(seeded.LatePage):
		return Condition{}
	case seeded.Has(seeded.AdoptAnyPage):
		return IfAbsent()
	}
	return IfBelow(row.Stamp)
}

// Clean deletes the rows that the written checkpoint no longer needs. What an error
// leaves behind is garbage that nothing names.
func (c *Checkpoint) Clean(ctx context.Context, t Table) error {
	for _, key := range c.garbage {
		if err := t.Delete(ctx, key, IfBelow(c.stamp)); err != nil && !errors.Is(err, ErrConflict) {
			return err
		}
	}
	if !c.dropped {
		return nil
	}
	prefixes := []string{pagePrefix}
	for level := range c.levels {
		prefixes = append(prefixes, fmt.Sprintf("%s%d/", treePrefix, level+1))
	}
	for _, prefix := range prefixes {
		if err := c.cleanBelow(ctx, t, prefix); err != nil {
			return err
		}
	}
	return nil
}

// cleanBelow deletes the rows of a prefix that begin below the index's first offset.
func (c *Checkpoint) cleanBelow(ctx context.Context, t Table, prefix string) error {
	from, to := prefix, fmt.Sprintf("%s%016x", prefix, c.oldest)
	for {
		rows, err := t.Range(ctx, Range{Partition: partitionKey(c.partition), From: from, To: to, Limit: 100, Consistency: Strong})
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, row := range rows {
			if err := t.Delete(WithRemovedSize(ctx, row.Size()), row.Key, IfBelow(c.stamp)); err != nil && !errors.Is(err, ErrConflict) {
				return err
			}
		}
		from = rows[len(rows)-1].Sort + "\x00"
	}
}

// adopt accepts a row that stands where ours should, if it says the same.
func (c *Checkpoint) adopt(ctx context.Context, t Table, mine *Row) error {
	row, err := t.Get(ctx, mine.Key, Strong)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.partition, err)
	}
	if string(row.Value) != string(mine.Value) && !seeded.Has(seeded.AdoptAnyPage) {
		return fmt.Errorf("checkpoint %s: %w: row %s was written by another owner", c.partition, ErrConflict, mine.Key)
	}
	return nil
}

// Done takes a written checkpoint into the state, which may have moved on since.
func (p *Partition) Done(c *Checkpoint) {
	for _, s := range c.producers {
		s.stored = c.stamp
	}
	p.evicted = p.evicted[c.evicted:]
	p.levels = c.levels
	p.tail = slices.Clone(p.tail[c.paged:])
	p.checkpointing, p.doubt = false, false
	p.dropped = p.dropped && !c.dropped
	p.drop() // the log start may lie inside what just became a page
	if p.through <= c.through {
		// Readers of the lease row see its through: the owner's views are not older.
		p.since, p.through = 0, c.through
	} else {
		p.since = c.through + 1
	}
}

// Undone gives a checkpoint up that could not be written, or of which that is not known.
func (p *Partition) Undone(c *Checkpoint) {
	p.checkpointing = false
	p.doubt = p.doubt || c.doubt
}

// Folded is the partition as of the checkpoint and what the sealed journal of its
// Source holds after it, for reading without taking it. ErrIndexMoved: from is another.
func (l *Lease) Folded(from *SealedJournal) (*View, error) {
	if from.ID != l.Source() {
		return nil, fmt.Errorf("%w: %s goes on in the journal of %s, not of %s", ErrIndexMoved, l.state.id, l.Source(), from.ID)
	}
	if err := Fold(l.state, l.Through, from); err != nil {
		return nil, err
	}
	return l.state.View(), nil
}
