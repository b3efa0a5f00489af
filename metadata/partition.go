package metadata

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/varvelog/varve/internal/seeded"
)

const (
	// AnswersKept is how many answers a partition keeps for each uploader: an
	// uploader has no more references open in a partition than this.
	AnswersKept = 16
	// maxAnswerRuns bounds the runs in the answers of one uploader.
	maxAnswerRuns = MaxReferenceBatches
	// batchesKept is how many batches of a producer can be recognised again, as in
	// Kafka: a producer has no more requests in flight than this.
	batchesKept = 5
)

// maxProducers bounds the producer states of a partition; the longest unused go
// first. A variable, so that tests reach it.
var maxProducers = 1000

// answerRun is a verdict on neighbouring batches that share it.
type answerRun struct {
	outcome Outcome
	batches uint32
	offset  int64 // of the first batch
	actual  int64
}

type answer struct {
	number uint64
	runs   []answerRun
}

// uploaderState is what a partition remembers of an uploader.
type uploaderState struct {
	last    uint64 // highest number judged
	answers []answer
	used    int64 // offset after its last append; not stored, 0 after a takeover: orders by age
}

// producerBatch is a batch that can be recognised again.
type producerBatch struct {
	first, last int32 // sequences
	offset      int64 // of the first record
}

// producerState is what a partition remembers of an idempotent producer.
type producerState struct {
	id      int64
	epoch   int16
	batches []producerBatch // oldest first, at most batchesKept
	used    int64           // offset of the last append: orders by age
	// changed is the stamp of the journal entry that changed it last, stored the
	// stamp of its producer/ row, if it has one.
	changed, stored Stamp
}

// Partition is the state of one partition: a pure state machine without clock,
// goroutine or I/O. Judge decides, Apply changes; folding the journal's changes
// with Apply gives the same state as living through them.
type Partition struct {
	id        PartitionID
	epoch     uint64
	start     int64
	next      int64
	fence     string
	closed    bool
	uploaders map[GatewayID]*uploaderState
	producers map[int64]*producerState
	evicted   []int64 // producers whose row must go
	// folding: rows may be ahead of what was folded so far, so that nobody can tell
	// yet which producers are unused longest.
	folding bool
	levels  [][]Child
	tail    []Entry
	// sum is of everything that was ever appended, gone of what the index has
	// dropped since: sum - gone is the content sum of the index as it stands.
	sum, gone uint64
	bytes     int64 // of batches in the index
	// through is the journal sequence (in epoch) up to which all changes are applied, and
	// since that of the first one that no checkpoint has; 0 when all are in one.
	through, since uint64
	// checkpointing: a checkpoint is being written; dropped: rows became garbage
	// since the last one.
	checkpointing, dropped bool
	// doubt: a checkpoint may or may not have been written, and with it moved parts of the index.
	doubt bool
	swaps uint64 // counts swaps
}

// NewPartition returns the state of a partition that nobody has appended to.
func NewPartition(id PartitionID) *Partition {
	return &Partition{id: id, uploaders: map[GatewayID]*uploaderState{}, producers: map[int64]*producerState{}}
}

// ID names the partition.
func (p *Partition) ID() PartitionID { return p.id }

// Epoch counts the owners that the partition has had.
func (p *Partition) Epoch() uint64 { return p.epoch }

// Start is the log start offset.
func (p *Partition) Start() int64 { return p.start }

// Next is the offset that the next record gets.
func (p *Partition) Next() int64 { return p.next }

// Closed says that the partition takes nothing more, for ever.
func (p *Partition) Closed() bool { return p.closed }

// Unfolded returns the sequence of the first journal entry that no checkpoint
// has, or 0.
func (p *Partition) Unfolded() uint64 { return p.since }

// Due says that a checkpoint should be written, however little the journal holds: the newest index entries are
// enough for a page, which moves them out of memory and keeps takeover short; or a trim has left rows that can go; or
// the partition is closed, and its rows go once the lease row says so.
func (p *Partition) Due() bool {
	return !p.checkpointing && (len(p.tail) >= fanOut || p.dropped || p.closed && p.since != 0)
}

// ContentSum is the sum of all index entries, mod 2^64.
func (p *Partition) ContentSum() uint64 { return p.sum - p.gone }

// View returns what readers may see now: take it between journal entries, so that one
// stamp shows one state. It shares memory with the state, which never changes what a
// view shows.
func (p *Partition) View() *View {
	return &View{Partition: p.id, Epoch: p.epoch, Stamp: Stamp{p.epoch, p.through}, Start: p.start, Next: p.next, Levels: p.levels,
		Tail: p.tail[:len(p.tail):len(p.tail)], Bytes: p.bytes, Swaps: p.swaps, Fence: p.fence, Closed: p.closed}
}

// ChangeKind tells changes apart. The numbers are stored.
type ChangeKind uint8

const (
	// ChangeAppend takes a reference: accepted, refused and void batches alike.
	ChangeAppend ChangeKind = 1
	// ChangeTrim moves the log start to Offset.
	ChangeTrim ChangeKind = 2
	// ChangeClose ends the partition.
	ChangeClose ChangeKind = 3
	// ChangeFence sets the fencing token.
	ChangeFence ChangeKind = 4
	// ChangeSwap replaces index entries, or makes the number of a swap that was refused void.
	ChangeSwap ChangeKind = 5
)

// producerAppend is a batch of an idempotent producer that was accepted.
type producerAppend struct {
	id     int64
	epoch  int16
	first  int32
	last   int32
	offset int64
	fresh  bool // the producer was not known: what is remembered begins here
}

// Change is what one decision does to one partition; journal entries are lists of
// changes.
type Change struct {
	Partition PartitionID
	Epoch     uint64
	Kind      ChangeKind

	// Of ChangeAppend and ChangeSwap:
	Uploader GatewayID
	Number   uint64
	runs     []answerRun
	Entries  []Entry // what readers will find, in order

	producers []producerAppend // of ChangeAppend
	swap      *swapping        // of ChangeSwap; nil: refused

	Offset int64  // of ChangeTrim
	Fence  string // of ChangeFence
}

// Judge decides on a reference, without changing the state. The change is nil when
// nothing may change (Repeated, Waiting, Refused); otherwise it must be applied,
// and be durable in the journal before the verdict is told to anybody.
func (p *Partition) Judge(ref *Reference) (Verdict, *Change) {
	v := Verdict{Start: p.start, Next: p.next}
	u := p.uploaders[ref.Uploader]
	switch {
	case u != nil && ref.Number <= u.last && !(ref.ByNumber && seeded.Has(seeded.RecoverAgain)): // also when it was closed since
		v.Status = Repeated
		v.Batches = u.recall(ref)
		return v, nil
	case p.closed:
		v.Status = Refused
		return v, nil
	case !ref.ByNumber && u.lastNumber() != ref.Previous && !seeded.Has(seeded.IgnoreChain):
		v.Status = Waiting
		return v, nil
	}
	v.Status = Judged
	v.Batches = make([]BatchVerdict, len(ref.Batches))
	j := judging{partition: p, next: p.next}
	for i := range ref.Batches {
		v.Batches[i] = j.batch(&ref.Batches[i])
	}
	v.Next = j.next
	change := &Change{Partition: p.id, Epoch: p.epoch, Kind: ChangeAppend, Uploader: ref.Uploader, Number: ref.Number,
		runs: runsOf(ref, v.Batches), producers: j.remembered()}
	for at := 0; at < len(ref.Batches); {
		n := 0
		for at+n < len(ref.Batches) && v.Batches[at+n].Outcome == Accepted &&
			(n == 0 || ref.Batches[at+n].Position == ref.Batches[at+n-1].end()) {
			n++ // recovery leaves out batches in between: what is not side by side gets its own entry
		}
		if n > 0 {
			change.Entries = append(change.Entries, newEntry(ref, ref.Batches[at:at+n], v.Batches[at].Offset))
		}
		at += max(n, 1)
	}
	return v, change
}

func (u *uploaderState) lastNumber() uint64 {
	if u == nil {
		return 0
	}
	return u.last
}

// recall returns the first verdicts on a reference that comes again, or nil.
func (u *uploaderState) recall(ref *Reference) []BatchVerdict {
	for _, a := range u.answers {
		if a.number != ref.Number {
			continue
		}
		verdicts := make([]BatchVerdict, 0, len(ref.Batches))
		for _, run := range a.runs {
			offset := run.offset
			for range run.batches {
				if len(verdicts) == len(ref.Batches) {
					return nil // not the same reference: it says less than it did
				}
				verdicts = append(verdicts, BatchVerdict{Outcome: run.outcome, Offset: offset, Actual: run.actual})
				if run.outcome == Accepted {
					offset += int64(ref.Batches[len(verdicts)-1].Offsets)
				}
			}
		}
		if len(verdicts) != len(ref.Batches) {
			return nil
		}
		return verdicts
	}
	return nil
}

// runsOf folds verdicts that follow from their neighbour.
func runsOf(ref *Reference, verdicts []BatchVerdict) []answerRun {
	var runs []answerRun
	end := int64(0)
	for i, v := range verdicts {
		n := len(runs)
		if n > 0 && runs[n-1].outcome == v.Outcome && (v.Outcome == Accepted && v.Offset == end ||
			v.Outcome != Accepted && v.Offset == NoOffset && runs[n-1].offset == NoOffset && runs[n-1].actual == v.Actual) {
			runs[n-1].batches++
		} else {
			runs = append(runs, answerRun{outcome: v.Outcome, batches: 1, offset: v.Offset, actual: v.Actual})
		}
		end = v.Offset + int64(ref.Batches[i].Offsets)
	}
	return runs
}

// judging is the state as the batches of one reference see it, one after another.
type judging struct {
	partition *Partition
	next      int64
	producers []producerAppend
	// seen has the producers that were appended to by this very reference.
	seen map[int64]*producerState
}

func (j *judging) batch(b *Batch) BatchVerdict {
	var state *producerState
	if b.ProducerID != NoProducer {
		if state = j.seen[b.ProducerID]; state == nil {
			state = j.partition.producers[b.ProducerID]
		}
		if v, done := state.judge(b); done {
			return v
		}
	}
	// Conditions come after duplicates, so that a success that is tried again is
	// never a false "no".
	if b.ExpectedOffset != NoOffset && b.ExpectedOffset != j.next {
		return BatchVerdict{Outcome: OffsetMismatch, Offset: NoOffset, Actual: j.next}
	}
	if b.HasFencingToken && b.FencingToken != j.partition.fence {
		return BatchVerdict{Outcome: FenceMismatch, Offset: NoOffset, Actual: j.next}
	}
	v := BatchVerdict{Outcome: Accepted, Offset: j.next, Actual: NoOffset}
	if b.ProducerID != NoProducer {
		j.append(state, producerAppend{id: b.ProducerID, epoch: b.ProducerEpoch,
			first: b.BaseSequence, last: b.LastSequence(), offset: j.next, fresh: state == nil})
	}
	j.next += int64(b.Offsets)
	return v
}

// append notes an accepted batch for the batches after it.
func (j *judging) append(state *producerState, a producerAppend) {
	j.producers = append(j.producers, a)
	next := &producerState{id: a.id}
	if state != nil {
		next.epoch, next.batches = state.epoch, slices.Clone(state.batches)
	}
	next.take(a)
	if j.seen == nil {
		j.seen = make(map[int64]*producerState)
	}
	j.seen[a.id] = next
}

// remembered leaves out what a producer's later batches push out of memory, so that
// an entry stays small.
func (j *judging) remembered() []producerAppend {
	if len(j.producers) <= batchesKept {
		return j.producers
	}
	count := make(map[int64]int, len(j.seen))
	kept := make([]producerAppend, 0, len(j.producers))
	for _, a := range slices.Backward(j.producers) {
		if count[a.id]++; count[a.id] <= batchesKept {
			kept = append(kept, a)
		}
	}
	slices.Reverse(kept)
	return kept
}

// take remembers an accepted batch.
func (s *producerState) take(a producerAppend) {
	if a.fresh || a.epoch != s.epoch {
		s.epoch, s.batches = a.epoch, nil
	}
	if len(s.batches) == batchesKept {
		s.batches = append(s.batches[:0:0], s.batches[1:]...)
	}
	s.batches = append(s.batches, producerBatch{a.first, a.last, a.offset})
}

// judge judges an idempotent batch by Kafka's rules; done is false when it may be
// appended. The nil state is that of a producer that is not known.
func (s *producerState) judge(b *Batch) (v BatchVerdict, done bool) {
	refuse := func(o Outcome, actual int64) (BatchVerdict, bool) {
		return BatchVerdict{Outcome: o, Offset: NoOffset, Actual: actual}, true
	}
	switch {
	case s == nil && b.BaseSequence != 0:
		return refuse(UnknownProducer, NoOffset)
	case s == nil:
		return BatchVerdict{}, false
	case b.ProducerEpoch < s.epoch:
		return refuse(ProducerFenced, int64(s.epoch))
	case b.ProducerEpoch > s.epoch && b.BaseSequence != 0:
		return refuse(SequenceGap, 0)
	case b.ProducerEpoch > s.epoch:
		return BatchVerdict{}, false
	}
	for _, k := range s.batches {
		if k.first == b.BaseSequence && k.last == b.LastSequence() {
			return BatchVerdict{Outcome: Duplicate, Offset: k.offset, Actual: NoOffset}, true
		}
	}
	expected := addSequence(s.batches[len(s.batches)-1].last, 1)
	if b.BaseSequence == expected {
		return BatchVerdict{}, false
	}
	// Half the ring lies ahead, half behind.
	if ahead := (b.BaseSequence - expected) & 0x7fffffff; ahead < 1<<30 {
		return refuse(SequenceGap, int64(expected))
	}
	return refuse(DuplicateForgotten, int64(expected))
}

// JudgeTrim decides to move the log start up to offset; nil when it is there already.
// ErrInvalid when offset lies past the end, ErrClosed when the partition is closed,
// ErrBusy while a checkpoint is being written.
func (p *Partition) JudgeTrim(offset int64) (*Change, error) {
	switch {
	case p.closed:
		return nil, ErrClosed
	case offset < 0 || offset > p.next:
		return nil, fmt.Errorf("%w: cannot trim to offset %d: the log holds offsets %d to %d (end, exclusive)", ErrInvalid, offset, p.start, p.next)
	case offset <= p.start:
		return nil, nil
	case p.checkpointing:
		return nil, ErrBusy
	}
	return &Change{Partition: p.id, Epoch: p.epoch, Kind: ChangeTrim, Offset: offset}, nil
}

// JudgeClose decides to end the partition; nil when it is closed already.
func (p *Partition) JudgeClose() *Change {
	if p.closed {
		return nil
	}
	return &Change{Partition: p.id, Epoch: p.epoch, Kind: ChangeClose}
}

// Fence is the fencing token; empty at first.
func (p *Partition) Fence() string { return p.fence }

// FenceConflict says that the fencing token was not set, and what stood against it.
type FenceConflict struct {
	Token string // that is set
	Next  int64  // the next offset
}

func (c *FenceConflict) Error() string {
	return fmt.Sprintf("the fencing token is %q and the next offset %d", c.Token, c.Next)
}

// JudgeFence decides to set the fencing token: if current is given and is the token
// now, and if expected is given and is the next offset; else *FenceConflict. Nil when
// the token is there already, whatever was demanded: it may be the caller's own earlier try.
// ErrClosed when the partition is closed.
func (p *Partition) JudgeFence(token string, current *string, expected *int64) (*Change, error) {
	switch {
	case p.closed:
		return nil, ErrClosed
	case p.fence == token:
		return nil, nil
	case current != nil && *current != p.fence, expected != nil && *expected != p.next:
		return nil, &FenceConflict{Token: p.fence, Next: p.next}
	}
	return &Change{Partition: p.id, Epoch: p.epoch, Kind: ChangeFence, Fence: token}, nil
}

// Apply makes the change that the journal of this epoch holds at sequence. It
// fails with ErrCorrupt when the change does not follow on from the state.
func (p *Partition) Apply(c *Change, sequence uint64) error {
	if c.Partition != p.id || c.Epoch != p.epoch {
		return fmt.Errorf("%w: a change of %s in epoch %d does not fit %s in epoch %d", ErrCorrupt, c.Partition, c.Epoch, p.id, p.epoch)
	}
	switch c.Kind {
	case ChangeAppend:
		if err := p.applyAppend(c, sequence); err != nil {
			return err
		}
	case ChangeTrim:
		if c.Offset > p.next {
			return fmt.Errorf("%w: %s is trimmed to %d, past its end %d", ErrCorrupt, p.id, c.Offset, p.next)
		}
		p.start = max(p.start, c.Offset)
		p.drop()
	case ChangeClose:
		p.closed = true
	case ChangeFence:
		p.fence = c.Fence
	case ChangeSwap:
		if err := p.applySwap(c); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: change of unknown kind %d: a newer varve wrote it", ErrCorrupt, c.Kind)
	}
	p.through = sequence
	if p.since == 0 {
		p.since = sequence
	}
	return nil
}

func (p *Partition) applyAppend(c *Change, sequence uint64) error {
	if err := p.take(c); err != nil {
		return err
	}
	for i := range c.Entries {
		e := &c.Entries[i]
		if e.First != p.next {
			return fmt.Errorf("%w: %s goes on at offset %d, not at its end %d", ErrCorrupt, p.id, e.First, p.next)
		}
		p.next = e.End
		p.sum += e.Sum
		p.bytes += e.Length
	}
	p.uploaders[c.Uploader].used = p.next
	// Views hold shorter slices of the same array: what they show never changes.
	p.tail = append(p.tail, c.Entries...)
	stamp := Stamp{p.epoch, sequence}
	for _, a := range c.producers {
		p.applyProducer(a, stamp)
	}
	if !p.folding {
		p.capProducers()
	}
	return nil
}

// forgetLongAnswers drops the oldest answers while all of them together would make the
// lease row long: each run takes up to 24 bytes there.
func (u *uploaderState) forgetLongAnswers() {
	runs := 0
	for _, a := range u.answers {
		runs += len(a.runs)
	}
	for runs > maxAnswerRuns && len(u.answers) > 1 {
		runs -= len(u.answers[0].runs)
		u.answers = append(u.answers[:0], u.answers[1:]...)
	}
}

func (p *Partition) applyProducer(a producerAppend, stamp Stamp) {
	s := p.producers[a.id]
	if s == nil {
		s = &producerState{id: a.id, epoch: a.epoch}
		p.producers[a.id] = s
	}
	if stamp.Compare(s.stored) <= 0 {
		return // its row is ahead of the checkpoint and has this already
	}
	s.take(a)
	s.used, s.changed = a.offset, stamp
}

// capProducers forgets the producers that have been silent longest. After a whole
// change, so that the order of its batches does not matter; after a whole fold, when what
// rows say is no longer ahead of the state.
func (p *Partition) capProducers() {
	switch over := len(p.producers) - maxProducers; {
	case over == 1: // a new producer where there is no room: no need to sort
		var oldest *producerState
		for _, s := range p.producers {
			if oldest == nil || byAge(s, oldest) > 0 {
				oldest = s
			}
		}
		p.evict(oldest)
	case over > 1:
		for _, s := range p.byAge()[maxProducers:] {
			p.evict(s)
		}
	}
}

func (p *Partition) evict(s *producerState) {
	delete(p.producers, s.id)
	if s.stored != (Stamp{}) || p.checkpointing { // then its row may be being written
		p.evicted = append(p.evicted, s.id)
	}
}

// byAge orders producers, last used first.
func byAge(a, b *producerState) int {
	return cmp.Or(cmp.Compare(b.used, a.used), cmp.Compare(a.id, b.id))
}

// byAge lists producers, last used first.
func (p *Partition) byAge() []*producerState {
	list := make([]*producerState, 0, len(p.producers))
	for _, s := range p.producers {
		list = append(list, s)
	}
	slices.SortFunc(list, byAge)
	return list
}

// Forget drops what the state remembers of an uploader that is closed for ever:
// sequencers refuse its references before they are judged.
func (p *Partition) Forget(uploader GatewayID) { delete(p.uploaders, uploader) }

// Uploaders lists the uploaders that the state remembers.
func (p *Partition) Uploaders() []GatewayID {
	list := make([]GatewayID, 0, len(p.uploaders))
	for id := range p.uploaders {
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

// drop removes from the index what lies wholly below the log start. New slices,
// since views show the old ones.
func (p *Partition) drop() {
	for level := len(p.levels) - 1; level >= 0; level-- {
		children := p.levels[level]
		end := p.endOfLevel(level)
		n := 0
		for n < len(children) {
			next := end
			if n+1 < len(children) {
				next = children[n+1].First
			}
			if next > p.start {
				break
			}
			p.gone += children[n].Sum
			p.bytes -= children[n].Bytes
			n++
		}
		if n > 0 {
			p.levels = slices.Clone(p.levels)
			p.levels[level] = slices.Clone(children[n:])
			p.dropped = true
		}
	}
	if n := findEntry(p.tail, p.start); n > 0 {
		for i := range p.tail[:n] {
			p.gone += p.tail[i].Sum
			p.bytes -= p.tail[i].Length
		}
		p.tail = slices.Clone(p.tail[n:])
	}
}

// endOfLevel is the offset at which what a level covers ends: where the next
// lower level that is not empty, or the tail, begins.
func (p *Partition) endOfLevel(level int) int64 {
	for l := level - 1; l >= 0; l-- {
		if len(p.levels[l]) > 0 {
			return p.levels[l][0].First
		}
	}
	if len(p.tail) > 0 {
		return p.tail[0].First
	}
	return p.next
}
