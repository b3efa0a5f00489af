package metadata

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/varvelog/varve/internal/seeded"
)

// Journals reads journals for whoever looks at, or takes, partitions that go on in them, and shares what it read:
// thousands of partitions go on in the journal of one gateway that died, and each reading of it may be of 32 MiB. For
// concurrent use; nothing of it runs but while somebody waits.
//
// What is shared must not be staler than a reading of one's own, which is as of a moment after the call:
//
//   - Rows of a journal are put one after the other, if absent, and never replaced. So what was once read from one
//     number on without a hole is the begin of the journal for ever: of one that is still written to, only what came
//     since is read. That is done anew for each caller, by a read that begins after the call; those who
//     came before it began share it. Nobody is given what a read found that had begun before they came.
//   - Of one that was sealed all is known once the seal was read: nobody ever puts a row behind it. It is not read
//     again.
//   - Rows that were trimmed since they were read stay in what is shared. They change nothing: they were trimmed because
//     each partition that they are about had a checkpoint of them, which its lease row tells (Through), or goes on
//     elsewhere, in another epoch or another journal; rows at or below Through and of other epochs are not folded.
//     Where trimming has overtaken what was read, the reading begins anew behind it.
//   - Rows that had been trimmed before they could be read are in a checkpoint, too, but the lease row that was
//     read before the journal was may be of before that checkpoint. The same goes for a partition that was released, and taken
//     by another gateway or again by the same one while the journal was read. Therefore the lease row is read once more
//     behind the journal, and must not have moved: it then was as it is when the journal was read. One that
//     was read when all of a sealed journal was known already needs no second look: whatever had been trimmed from what was read was
//     in lease rows before that, and whatever was decided for the partition under that lease row is in the journal. Its view is
//     as of the moment at which the lease row was read. Who took the partition since then has put another one.
//
// A journal is let go of when nobody has asked for it for keepJournal: by then its partitions
// were taken, or released. Takers keep theirs for longer if they need to.
type Journals struct {
	table  Table
	atOnce int // pages of one journal

	mu   sync.Mutex
	list map[GatewayID]*sharedJournal
	// ended counts the sealed journals that were read to their seal.
	ended uint64
}

// sharedJournal is one of them. Guarded by Journals.mu.
type sharedJournal struct {
	turn  chan struct{} // who reads it puts something in
	users int
	idle  *time.Timer // drops it; nil: never idle so far

	have *SealedJournal
	// ended is when its seal was read, by Journals.ended.
	ended uint64
	begun uint64 // readings that were begun
	// done is the last of them that came to an end, with err, not because its caller left.
	done uint64
	err  error
}

// keepJournal is for how long a journal is kept that nobody asks for. A variable, for tests.
var keepJournal = 10 * time.Second

// NewJournals reads from a table.
func NewJournals(table Table) *Journals {
	return &Journals{table: table, atOnce: journalReads, list: make(map[GatewayID]*sharedJournal)}
}

// Sealed is [ReadSealed], shared.
func (j *Journals) Sealed(ctx context.Context, id GatewayID) (*SealedJournal, error) {
	s, _, err := j.read(ctx, id, 0)
	if err != nil {
		return nil, err
	}
	return s.sealed()
}

// View is [ReadView], shared. It returns who held the partition when its lease row was read, also with an error: "" if nobody
// did, or that is not known.
func (j *Journals) View(ctx context.Context, id PartitionID) (*View, GatewayID, error) {
	j.mu.Lock()
	before := j.ended
	j.mu.Unlock()
	view, lease, err := readView(ctx, j.table, id, func(l *Lease) (*SealedJournal, bool, error) {
		return j.read(ctx, l.Source(), before)
	})
	if lease == nil || lease.Released {
		return view, "", err
	}
	return view, lease.Journal, err
}

// read is [ReadJournal], shared. known says that it had been read to its seal when Journals.ended was before.
func (j *Journals) read(ctx context.Context, id GatewayID, before uint64) (s *SealedJournal, known bool, err error) {
	r, after := j.join(id)
	defer j.leave(id, r)
	if s, known := j.sealed(r, before); s != nil {
		return s, known, nil
	}
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return nil, false, context.Cause(ctx)
	}
	s, number, err := j.begin(r, after)
	if number == 0 {
		return s, false, err
	}
	s, err = s.readOn(ctx, j.table, j.atOnce)
	if err != nil && ctx.Err() != nil {
		return nil, false, err // who comes next reads for itself
	}
	j.finish(r, number, s, err)
	return s, false, err
}

// join returns a journal, and how many readings of it were begun before the caller came.
func (j *Journals) join(id GatewayID) (r *sharedJournal, after uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r = j.list[id]
	if r == nil {
		r = &sharedJournal{turn: make(chan struct{}, 1), have: &SealedJournal{ID: id, index: newChangeIndex()}}
		j.list[id] = r
	}
	r.users++
	return r, r.begun
}

// leave ends what join began.
func (j *Journals) leave(id GatewayID, r *sharedJournal) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r.users--; r.users > 0 {
		return
	}
	if r.idle != nil {
		r.idle.Reset(keepJournal)
		return
	}
	r.idle = time.AfterFunc(keepJournal, func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		if r.users == 0 && j.list[id] == r {
			delete(j.list, id)
		}
	})
}

// sealed is a journal that was read to its seal; nil: not yet.
func (j *Journals) sealed(r *sharedJournal, before uint64) (s *SealedJournal, known bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r.have.Seal == 0 {
		return nil, false
	}
	return r.have, r.ended <= before
}

// begin returns what a reading goes on from, and its number; 0: what others read since the caller came is the answer.
func (j *Journals) begin(r *sharedJournal, after uint64) (s *SealedJournal, number uint64, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r.done > after && r.err != nil {
		return nil, 0, r.err
	}
	if r.have.Seal != 0 || r.done > after || r.done > 0 && r.err == nil && seeded.Has(seeded.StaleJournal) {
		return r.have, 0, nil
	}
	r.begun++
	return r.have, r.begun, nil
}

// finish shows others what came of a reading.
func (j *Journals) finish(r *sharedJournal, number uint64, s *SealedJournal, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if r.done, r.err = number, err; err != nil {
		return
	}
	if r.have = s; s.Seal != 0 {
		j.ended++
		r.ended = j.ended
	}
}

// readOn reads what has come behind s, for it to be shared with s.
func (s *SealedJournal) readOn(ctx context.Context, t Table, atOnce int) (*SealedJournal, error) {
	more, trimmedTo, err := readJournal(ctx, t, s.ID, s.end(), atOnce)
	switch {
	case err != nil:
		return nil, err
	case more.TrimmedTo > s.end(): // trimming has overtaken it
		more.index = newChangeIndex()
		return more, nil
	}
	next := &SealedJournal{ID: s.ID, TrimmedTo: s.TrimmedTo, Seal: more.Seal, Rows: append(s.Rows, more.Rows...), index: s.index}
	if trimmed := int(max(trimmedTo, s.TrimmedTo) - s.TrimmedTo); trimmed > len(next.Rows)/2 {
		next.TrimmedTo, next.Rows, next.index = trimmedTo, slices.Clone(next.Rows[trimmed:]), newChangeIndex()
	}
	return next, nil
}
