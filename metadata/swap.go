package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cespare/xxhash/v2"

	"github.com/varvelog/varve/internal/seeded"
)

// mergerSuffix makes the id under which a gateway merges.
const mergerSuffix = "-m"

// MergerID is the uploader that a gateway is as a compactor: its numbers, and so its segments and
// its chain in each partition, are its own. It has no row: Gateway.MergeFloor is its floor, and it ends with
// the gateway.
func MergerID(gateway GatewayID) GatewayID { return gateway + mergerSuffix }

// Owner is the gateway whose row speaks for an uploader: itself, or the one that merges under the id.
func (id GatewayID) Owner() GatewayID {
	if n := len(id) - len(mergerSuffix); n > 0 && id[n:] == mergerSuffix {
		return id[:n]
	}
	return id
}

// IsMerger says whether the uploader is a compactor.
func (id GatewayID) IsMerger() bool { return id.Owner() != id }

// tailLevel is the level of a section that is the tail.
const tailLevel = -1

// Section is a run of neighbouring parts of an index on one level, those that lie in the lease row or
// in views: what one swap can replace.
type Section struct {
	Partition PartitionID
	// Level is that of its children, or -1 for entries of the tail.
	Level    int
	From, To int64 // offsets, To exclusive
	// Parts are its children; of a tail's section one for each entry.
	Parts []Child
	// tail are its entries, at level -1.
	tail []Entry
}

// Sections returns what a view's index consists of, in offset order: one section for each level that is
// not empty, and one for the tail. No I/O.
func (v *View) Sections() []Section {
	var list []Section
	for level := len(v.Levels) - 1; level >= 0; level-- {
		if children := v.Levels[level]; len(children) > 0 {
			list = append(list, Section{Partition: v.Partition, Level: level, From: children[0].First, Parts: children})
		}
	}
	if len(v.Tail) > 0 {
		s := Section{Partition: v.Partition, Level: tailLevel, From: v.Tail[0].First, tail: v.Tail}
		for i := range v.Tail {
			s.Parts = append(s.Parts, summarize(v.Tail[i:i+1]))
		}
		list = append(list, s)
	}
	end := v.Next
	for i := len(list) - 1; i >= 0; i-- {
		list[i].To, end = end, list[i].From
	}
	return list
}

// IsTail says that a swap of the section names its entries, not rows of the index.
func (s Section) IsTail() bool { return s.Level == tailLevel }

// Part is the section of its parts from i up to j, exclusive; at least one.
func (s Section) Part(i, j int) Section {
	if j < len(s.Parts) {
		s.To = s.Parts[j].First
	}
	s.From = s.Parts[i].First
	s.Parts = s.Parts[i:j]
	if s.Level == tailLevel {
		s.tail = s.tail[i:j]
	}
	return s
}

// Summary describes the whole section as one child.
func (s Section) Summary() Child { return merge(s.Parts) }

// Load returns all entries of the section, in offset order, by reads of its pages and nodes. ErrIndexMoved: take a
// new view.
func (s Section) Load(ctx context.Context, index Index) ([]Entry, error) {
	if s.Level == tailLevel {
		return s.tail, nil
	}
	var entries []Entry
	for _, c := range s.Parts {
		if s.Level == 0 {
			page, err := index.Page(ctx, s.Partition, c.place())
			if err != nil {
				return nil, err
			}
			entries = append(entries, page...)
			continue
		}
		children, err := index.Node(ctx, s.Partition, s.Level, c.place())
		if err != nil {
			return nil, err
		}
		inner, err := Section{Partition: s.Partition, Level: s.Level - 1, Parts: children}.Load(ctx, index)
		if err != nil {
			return nil, err
		}
		entries = append(entries, inner...)
	}
	return entries, nil
}

// identity tells what a swap replaces from all else: the rows of parts are written once, and entries of
// the tail are named whole.
func (s Section) identity() uint64 {
	var e encoder
	if s.Level == tailLevel {
		var y dictionary
		encodeEntries(&e, &y, s.tail, Entry{})
		y.encode(&e)
	} else {
		encodeChildren(&e, s.Parts)
	}
	return xxhash.Sum64(e.b)
}

// Swap asks a sequencer to put other index entries in place of a section, over exactly the same offsets. The rows
// below new children are written before ([PrepareSwap]); nothing names them until the swap is decided.
type Swap struct {
	Partition PartitionID
	// Uploader is the compactor, Number the highest of its segments that new entries name, above all that it
	// asked for in this partition before. A number whose swap was refused is void for ever, so that a request
	// which comes late changes nothing.
	Uploader GatewayID
	Number   uint64
	Level    int
	From, To int64
	// Identity is that of the section.
	Identity uint64
	// Rewritten says that records were left out: content sums need not balance.
	Rewritten bool
	// Topic and TopicStamp, if set, are the version of the topic by whose settings records were left out: it is for whoever has the
	// swap judged to see that there is no newer one. They are not part of what Encode writes.
	Topic      string
	TopicStamp Stamp
	// Children replace those of the section, or Entries those of the tail.
	Children []Child
	Entries  []Entry
}

// SwapOutcome is what became of a swap.
type SwapOutcome uint8

const (
	// Swapped: the new entries are in place.
	Swapped SwapOutcome = iota + 1
	// SwapMoved: what it was to replace is no longer there as it was, and nothing changed. The number is void here.
	SwapMoved
	// SwapForgotten: the number was judged before, and what came of it is no longer kept: look whether a
	// new view has the entries.
	SwapForgotten
)

// PrepareSwap writes the rows that a swap of the section needs and returns the swap. entries are all entries of the
// section as they are to be, those included that stay. Each row has a key of its own, and says who wrote it. An
// attempt that is given up leaves rows that nothing names. ErrInvalid when entries do not cover the section.
func PrepareSwap(ctx context.Context, t Table, s Section, uploader GatewayID, number uint64, entries []Entry) (*Swap, error) {
	if !tiles(entries, s.From, s.To) {
		return nil, fmt.Errorf("%w: the entries do not cover offsets %d to %d of %s", ErrInvalid, s.From, s.To-1, s.Partition)
	}
	w := &Swap{Partition: s.Partition, Uploader: uploader, Number: number, Level: s.Level, From: s.From, To: s.To, Identity: s.identity()}
	if s.Level == tailLevel {
		if len(entries) > len(s.tail) || !TailSwapFits(entries) {
			return nil, fmt.Errorf("%w: %d entries of up to %d bytes in place of %d: a tail must not grow, and a change must fit its journal", ErrInvalid, len(entries), sizeOf(entries), len(s.tail))
		}
		w.Entries = entries
		return w, nil
	}
	rows := &indexWriter{table: t, partition: s.Partition, uploader: uploader, number: number}
	children, err := rows.pages(ctx, entries)
	for level := 1; level <= s.Level && err == nil; level++ {
		children, err = rows.nodes(ctx, level, children)
	}
	if err != nil {
		return nil, fmt.Errorf("rows for a swap in %s: %w", s.Partition, err)
	}
	if len(children) > max(len(s.Parts), mostChildren(s.Level)) {
		return nil, fmt.Errorf("%w: %d parts in place of %d would make the lease row longer", ErrInvalid, len(children), len(s.Parts))
	}
	w.Children = children
	return w, nil
}

// pageBytes is how many bytes of entries a page of a swap has at most: entries of merged segments have many points.
const pageBytes = 128 << 10

// indexWriter writes rows of an index that nothing names yet.
type indexWriter struct {
	table     Table
	partition PartitionID
	uploader  GatewayID
	number    uint64
}

func (w *indexWriter) pages(ctx context.Context, entries []Entry) ([]Child, error) {
	var children []Child
	for len(entries) > 0 {
		n, size := 0, 0
		for n < len(entries) && n < fanOut && (n == 0 || size < pageBytes) {
			size += 40 + 12*len(entries[n].Points)
			n++
		}
		c := summarize(entries[:n])
		c.Row = NewNonce()
		if err := w.put(ctx, pageKey(w.partition, c.place()), encodePage(entries[:n])); err != nil {
			return nil, err
		}
		children, entries = append(children, c), entries[n:]
	}
	return children, nil
}

func (w *indexWriter) nodes(ctx context.Context, level int, below []Child) ([]Child, error) {
	var children []Child
	for list := range slices.Chunk(below, fanOut) {
		c := merge(list)
		c.Row = NewNonce()
		if err := w.put(ctx, treeKey(w.partition, level, c.place()), encodeNode(list)); err != nil {
			return nil, err
		}
		children = append(children, c)
	}
	return children, nil
}

func (w *indexWriter) put(ctx context.Context, key Key, value []byte) error {
	row := Row{Key: key, Stamp: Stamp{1, 1}, Nonce: NewNonce(), Value: signRow(value, w.uploader, w.number)}
	return PutSettled(ctx, w.table, row, IfAbsent(), nil)
}

// signRow notes in a page or node who wrote it for a swap, so that it can be told when nobody will ever name it.
func signRow(value []byte, uploader GatewayID, number uint64) []byte {
	e := encoder{b: make([]byte, 0, len(value)+len(uploader)+12)}
	e.byte(formatSigned)
	e.text(string(uploader))
	e.uint(number)
	e.raw(value)
	return e.b
}

// unsign reads what signRow wrote, if that is what it is, and leaves the decoder where the row itself begins.
func (d *decoder) unsign() (uploader GatewayID, number uint64) {
	if len(d.b) == 0 || d.b[0] != formatSigned {
		return "", 0
	}
	d.byte()
	return GatewayID(d.text()), d.uint()
}

// RowWriter says which uploader wrote a page or node for a swap, and with which number; "" for one that a
// checkpoint wrote.
func RowWriter(value []byte) (uploader GatewayID, number uint64, err error) {
	d := &decoder{b: value}
	uploader, number = d.unsign()
	return uploader, number, d.err
}

// JudgeSwap decides on a swap. The change is nil when the number had been judged before; otherwise it must be
// applied, also when the swap is refused. ErrClosed when the partition is closed, ErrBusy while a checkpoint is being
// written, or may or may not have been: what is to be replaced may be moving.
func (p *Partition) JudgeSwap(w *Swap) (SwapOutcome, *Change, error) { return p.judgeSwap(w, true) }

// RefuseSwap decides that a swap is refused, as one that moved, unless its number was judged before. Otherwise it is as JudgeSwap.
func (p *Partition) RefuseSwap(w *Swap) (SwapOutcome, *Change, error) { return p.judgeSwap(w, false) }

func (p *Partition) judgeSwap(w *Swap, may bool) (SwapOutcome, *Change, error) {
	if u := p.uploaders[w.Uploader]; u != nil && w.Number <= u.last {
		return u.recallSwap(w.Number), nil, nil
	}
	switch {
	case p.closed:
		return 0, nil, ErrClosed
	case p.checkpointing || p.doubt:
		return 0, nil, ErrBusy
	}
	c := &Change{Partition: p.id, Epoch: p.epoch, Kind: ChangeSwap, Uploader: w.Uploader, Number: w.Number}
	s, ok := p.section(w.Level, w.From, w.To)
	if !seeded.Has(seeded.SwapAnyway) {
		ok = ok && s.identity() == w.Identity
	}
	if !may || !ok || !w.fits(s) || !p.holds(w, s) {
		c.runs = []answerRun{{outcome: SwapRefused, batches: 1, offset: NoOffset, actual: NoOffset}}
		return SwapMoved, c, nil
	}
	c.runs = []answerRun{{outcome: Accepted, batches: 1, offset: w.From, actual: NoOffset}}
	c.swap = &swapping{level: w.Level, from: w.From, to: w.To, children: w.Children}
	c.Entries = w.Entries
	return Swapped, c, nil
}

func (u *uploaderState) recallSwap(number uint64) SwapOutcome {
	for _, a := range u.answers {
		if a.number != number || len(a.runs) == 0 {
			continue
		}
		if a.runs[0].outcome == Accepted {
			return Swapped
		}
		return SwapMoved
	}
	return SwapForgotten
}

// Refused says that a change of kind ChangeSwap makes a number void and nothing else.
func (c *Change) Refused() bool { return c.swap == nil }

// swapping is what a swap that was accepted does to the index.
type swapping struct {
	level    int
	from, to int64
	children []Child
}

// section is the part of the index as it stands from one offset to another on one level, if it consists of whole parts.
func (p *Partition) section(level int, from, to int64) (Section, bool) {
	v := View{Partition: p.id, Next: p.next, Levels: p.levels, Tail: p.tail}
	for _, s := range v.Sections() {
		if s.Level != level {
			continue
		}
		i := slices.IndexFunc(s.Parts, func(c Child) bool { return c.First == from })
		if i < 0 {
			return Section{}, false
		}
		j := i + 1
		for j < len(s.Parts) && s.Parts[j].First < to {
			j++
		}
		s = s.Part(i, j)
		return s, s.To == to
	}
	return Section{}, false
}

// fits says whether the new parts cover the section, in order, with the same content, and no more of them.
func (w *Swap) fits(s Section) bool {
	parts := w.Children
	if w.Level == tailLevel {
		if !tiles(w.Entries, w.From, w.To) {
			return false
		}
		parts = make([]Child, len(w.Entries))
		for i := range w.Entries {
			parts[i] = summarize(w.Entries[i : i+1])
		}
	}
	if len(parts) == 0 || parts[0].First != w.From || len(parts) > max(len(s.Parts), mostChildren(w.Level)) {
		return false
	}
	for i := 1; i < len(parts); i++ {
		if parts[i].First <= parts[i-1].First || parts[i].First >= w.To {
			return false
		}
	}
	return w.Rewritten || seeded.Has(seeded.SwapAnyway) || merge(parts).Sum == s.Summary().Sum
}

// holds says whether the level stays short enough for a lease row: a swap may leave it as it is, or below what a checkpoint would
// make a node of.
func (p *Partition) holds(w *Swap, s Section) bool {
	if w.Level == tailLevel {
		return len(w.Entries) <= len(s.tail) && TailSwapFits(w.Entries)
	}
	return len(w.Children) <= len(s.Parts) || len(p.levels[w.Level])-len(s.Parts)+len(w.Children) <= mostChildren(w.Level)
}

// TailSwapFits says whether so many entries may take the place of a part of a tail in one swap: a change must fit its journal.
func TailSwapFits(entries []Entry) bool { return sizeOf(entries) <= MaxJournalEntry/2 }

// MayBeRewritten says whether one swap can carry a section whatever is left out of its entries. Only what lies in a tail may be too
// much: an entry that is written anew has as many points as its length allows.
func (s Section) MayBeRewritten() bool {
	size := 0
	for i := range s.tail {
		size += entryBound + 40*max(len(s.tail[i].Points), int(min(s.tail[i].Length/minChunk+1, MaxPoints)))
	}
	return size <= MaxJournalEntry/2
}

// entryBound is what an entry without points takes in a row, at most, with the id of a compactor.
const entryBound = 112 + 32

// sizeOf bounds from above what entries take in a row.
func sizeOf(entries []Entry) (bytes int) {
	for i := range entries {
		bytes += 112 + len(entries[i].Gateway) + 40*len(entries[i].Points)
	}
	return bytes
}

// applySwap puts the new parts in place. New slices, since views show the old ones.
func (p *Partition) applySwap(c *Change) error {
	if err := p.take(c); err != nil {
		return err
	}
	w := c.swap
	if w == nil {
		return nil // refused
	}
	s, ok := p.section(w.level, w.from, w.to)
	if !ok {
		return fmt.Errorf("%w: offsets %d to %d of %s are no part of its index on level %d", ErrCorrupt, w.from, w.to-1, p.id, w.level)
	}
	was := s.Summary()
	var is Child
	if w.level == tailLevel {
		is = summarize(c.Entries)
		i := findEntry(p.tail, w.from)
		p.tail = slices.Concat(p.tail[:i], c.Entries, p.tail[i+len(s.tail):])
	} else {
		is = merge(w.children)
		i := slices.IndexFunc(p.levels[w.level], func(c Child) bool { return c.First == w.from })
		p.levels = slices.Clone(p.levels)
		p.levels[w.level] = slices.Concat(p.levels[w.level][:i], w.children, p.levels[w.level][i+len(s.Parts):])
	}
	p.gone += was.Sum - is.Sum
	p.bytes += is.Bytes - was.Bytes
	p.swaps++
	return nil
}

// take notes the number of a change, and the answer to it.
func (p *Partition) take(c *Change) error {
	u := p.uploaders[c.Uploader]
	if u == nil {
		u = &uploaderState{}
		p.uploaders[c.Uploader] = u
	}
	if c.Number <= u.last && !seeded.Has(seeded.RecoverAgain) {
		return fmt.Errorf("%w: segment %d of %s was taken twice in %s", ErrCorrupt, c.Number, c.Uploader, p.id)
	}
	u.last, u.used = c.Number, p.next
	if len(u.answers) == AnswersKept {
		u.answers = append(u.answers[:0], u.answers[1:]...)
	}
	u.answers = append(u.answers, answer{c.Number, c.runs})
	u.forgetLongAnswers()
	return nil
}

// encodeSwapping writes what an accepted swap does, but for new entries of the tail.
func encodeSwapping(e *encoder, w *swapping) {
	if w == nil {
		e.byte(0)
		return
	}
	e.byte(byte(w.level + 2)) // 1: the tail
	e.uint(uint64(w.from))
	e.uint(uint64(w.to - w.from))
	encodeChildren(e, w.children)
}

func decodeSwapping(d *decoder) *swapping {
	level := int(d.byte()) - 2
	if level < tailLevel {
		return nil
	}
	if level >= maxLevels {
		d.fail("a swap of a level that no index has")
		return nil
	}
	w := &swapping{level: level, from: d.offset()}
	w.to = w.from + d.offset()
	w.children = decodeChildren(d)
	if d.err == nil && (w.to <= w.from || level > tailLevel && len(w.children) == 0) {
		d.fail("a swap of nothing")
	}
	return w
}

// Encode writes a swap, but for its partition, for another gateway.
func (w *Swap) Encode() []byte {
	var body encoder
	var y dictionary
	flags := byte(0)
	if w.Rewritten {
		flags |= 1
	}
	body.byte(flags)
	body.uint(y.number(w.Uploader))
	body.uint(w.Number)
	body.fixed64(w.Identity)
	encodeSwapping(&body, &swapping{level: w.Level, from: w.From, to: w.To, children: w.Children})
	encodeEntries(&body, &y, w.Entries, Entry{})
	return assemble(&y, &body)
}

// DecodeSwap reads what Encode wrote. ErrInvalid when it is damaged or of a newer format.
func DecodeSwap(id PartitionID, data []byte) (*Swap, error) {
	d := &decoder{b: data}
	d.format()
	gates := decodeDictionary(d)
	flags := d.byte()
	w := &Swap{Partition: id, Rewritten: flags&1 != 0, Uploader: lookupGateway(d, gates), Number: d.uint(), Identity: d.fixed64()}
	s := decodeSwapping(d)
	w.Entries = decodeEntries(d, gates, Entry{})
	if d.err == nil && (s == nil || flags > 1 || w.Number == 0) {
		d.fail("a swap of nothing")
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("%w: a swap in %s: %w", ErrInvalid, id, err)
	}
	w.Level, w.From, w.To, w.Children = s.level, s.from, s.to, s.children
	return w, nil
}

// Names says whether an index has an entry of a segment between two offsets: how a compactor finds out what became of
// a swap whose answer nobody keeps.
func (v *View) Names(ctx context.Context, index Index, uploader GatewayID, number uint64, from, to int64) (bool, error) {
	for at := max(from, v.Start); at < min(to, v.Next); {
		entries, err := v.Entries(ctx, index, at)
		if err != nil {
			return false, err
		}
		for i := range entries {
			if entries[i].Gateway == uploader && entries[i].Number == number {
				return true, nil
			}
			if at = entries[i].End; at >= to {
				return false, nil
			}
		}
		if len(entries) == 0 {
			return false, errors.Join(ErrCorrupt, fmt.Errorf("no entry holds offset %d", at))
		}
	}
	return false, nil
}
