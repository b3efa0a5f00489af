package metadata

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/internal/seeded"
)

// Journal is a gateway's own list of decisions. It can only be appended to, and
// only until somebody seals it. Not for concurrent use: one sequencer owns it, and
// one put is outstanding at a time.
type Journal struct {
	table Table
	id    GatewayID
	next  uint64 // sequence of the next row
}

// OpenJournal makes the journal of a gateway that just minted its id.
func OpenJournal(ctx context.Context, table Table, id GatewayID) (*Journal, error) {
	j := &Journal{table: table, id: id, next: 1}
	row := Row{Key: journalKey(id, 0), Stamp: Stamp{1, 1}, Nonce: NewNonce(), Value: opening{}.encode()}
	if err := PutSettled(ctx, table, row, IfAbsent(), nil); err != nil {
		return nil, fmt.Errorf("open journal of %s: %w", id, err)
	}
	return j, nil
}

// ID is the gateway whose journal it is.
func (j *Journal) ID() GatewayID { return j.id }

// Next is the sequence that the next entry will get.
func (j *Journal) Next() uint64 { return j.next }

// Append commits an entry. It returns once the entry is durable and settled, with
// its sequence. ErrFenced: the journal was sealed and the entry is not, and never
// will be, in it. Any other error (the context ended): the outcome is unknown and
// nothing may build on it.
func (j *Journal) Append(ctx context.Context, value []byte) (uint64, error) {
	row := Row{Key: journalKey(j.id, j.next), Stamp: Stamp{1, j.next}, Nonce: NewNonce(), Value: value}
	for {
		switch err := PutSettled(ctx, j.table, row, IfAbsent(), nil); {
		case err == nil:
			j.next++
			return j.next - 1, nil
		case errors.Is(err, ErrConflict):
			return 0, ErrFenced
		case !errors.Is(err, ErrDenied) && !errors.Is(err, ErrNoTable) && !errors.Is(err, ErrUnknown):
			return 0, err
		}
		// Somebody changes credentials or restores the table, maybe while a try was in
		// doubt: it is the same put, with the same nonce, that goes on then.
		select {
		case <-ctx.Done():
			// The cause is why nobody waits any more, and not what came of it.
			return 0, fmt.Errorf("%w: append to the journal of %s: %v", ErrUnknown, j.id, context.Cause(ctx))
		case <-time.After(deniedPause):
		}
	}
}

// deniedPause is between the tries of a commit that was denied.
const deniedPause = time.Second

// Verify asks, by a strong read, that nobody has sealed the journal. Answers that
// rest on no entry of their own (duplicates, retriable refusals) are told only after it.
func (j *Journal) Verify(ctx context.Context) error {
	_, err := j.table.Get(ctx, journalKey(j.id, j.next), Strong)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err == nil:
		return ErrFenced
	}
	return err
}

// TrimJournal raises trimmed-to, then removes entries up to and including through.
// It must stay below the newest row: a paused owner could write again past the hole.
func TrimJournal(ctx context.Context, t Table, id GatewayID, through uint64) error {
	row, err := t.Get(ctx, journalKey(id, 0), Strong)
	if err != nil {
		return fmt.Errorf("trim journal of %s: %w", id, err)
	}
	was, err := decodeOpening(row.Value)
	if err != nil {
		return err
	}
	if seeded.Has(seeded.TrimRowsFirst) {
		if err := removeEntries(ctx, t, id, through); err != nil {
			return err
		}
	}
	if through > was.trimmedTo {
		held := row.Stamp
		row.Stamp, row.Nonce = Stamp{held.Epoch, held.Sequence + 1}, NewNonce()
		row.Value = opening{trimmedTo: through}.encode()
		if err := PutSettled(ctx, t, row, IfEqual(held), nil); err != nil {
			return fmt.Errorf("trim journal of %s: %w", id, err)
		}
	}
	return removeEntries(ctx, t, id, through)
}

// removeEntries removes entries up to through, from the first one on: a trim that was cut short
// left some behind.
func removeEntries(ctx context.Context, t Table, id GatewayID, through uint64) error {
	for {
		rows, err := t.Range(ctx, Range{Partition: journalPartition(id), From: sequenceSort(1), To: sequenceSort(through + 1), Limit: 100, Consistency: Strong})
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, r := range rows {
			if err := t.Delete(WithRemovedSize(ctx, r.Size()), r.Key, Condition{}); err != nil {
				return fmt.Errorf("trim journal of %s: %w", id, err)
			}
		}
	}
}

// Seal ends a journal for ever, on behalf of by: its owner's next entry fails.
// It returns the sequence of the seal, also when somebody had sealed it before.
func Seal(ctx context.Context, t Table, id, by GatewayID) (uint64, error) {
	for {
		last, err := lastRow(ctx, t, id)
		if err != nil {
			return 0, fmt.Errorf("seal journal of %s: %w", id, err)
		}
		if last.Seal {
			return last.Sequence, nil
		}
		row := Row{Key: journalKey(id, last.Sequence+1), Stamp: Stamp{1, last.Sequence + 1}, Nonce: NewNonce(), Value: encodeSeal(by, time.Now())}
		switch err := PutSettled(ctx, t, row, IfAbsent(), nil); {
		case err == nil:
			return last.Sequence + 1, nil
		case !errors.Is(err, ErrConflict): // else its owner was quicker: look again
			return 0, fmt.Errorf("seal journal of %s: %w", id, err)
		}
	}
}

// lastRow returns the newest row of a journal, packed, by a strong reverse read. A journal
// that was never opened counts as empty.
func lastRow(ctx context.Context, t Table, id GatewayID) (JournalRow, error) {
	rows, err := t.Range(ctx, Range{Partition: journalPartition(id), Reverse: true, Limit: 1, Consistency: Strong})
	if err != nil || len(rows) == 0 {
		return JournalRow{}, err
	}
	sequence, err := parseSequence(rows[0].Sort)
	if err != nil || sequence == 0 {
		return JournalRow{}, err
	}
	return packJournalRow(sequence, rows[0].Value)
}

func parseSequence(sort string) (uint64, error) {
	var n uint64
	if _, err := fmt.Sscanf(sort, "%016x", &n); err != nil || sequenceSort(n) != sort {
		return 0, fmt.Errorf("%w: journal row with sort key %q", ErrCorrupt, sort)
	}
	return n, nil
}

// SealedJournal is what a journal still holds, most often one that was sealed.
type SealedJournal struct {
	ID        GatewayID
	TrimmedTo uint64
	Seal      uint64
	Rows      []JournalRow // entries after TrimmedTo, contiguous, up to the seal

	find  sync.Once
	index *changeIndex // nil: not made yet
}

// end is the number of its last entry, or of what was trimmed where it has none.
func (s *SealedJournal) end() uint64 { return s.TrimmedTo + uint64(len(s.Rows)) }

// changeIndex has where the changes of each partition are: thousands of partitions are folded from one journal. What
// was read of a journal at different moments, from one number on, has one index.
type changeIndex struct {
	mu     sync.RWMutex
	rows   int // so many of them are in it
	places map[PartitionID][]changePlace
}

func newChangeIndex() *changeIndex { return &changeIndex{places: make(map[PartitionID][]changePlace)} }

// changePlace is a change's row, and its place there: in a packed row where its bytes begin, else its number.
type changePlace struct{ row, at uint32 }

// of lists the changes of a partition in order.
func (s *SealedJournal) of(id PartitionID) []changePlace {
	s.find.Do(s.fill)
	s.index.mu.RLock()
	places := s.index.places[id]
	s.index.mu.RUnlock()
	return s.own(places)
}

// own leaves out what is in rows that were read later.
func (s *SealedJournal) own(places []changePlace) []changePlace {
	for len(places) > 0 && int(places[len(places)-1].row) >= len(s.Rows) {
		places = places[:len(places)-1]
	}
	return places
}

// Has says whether a partition has changes in it.
func (s *SealedJournal) Has(id PartitionID) bool { return len(s.of(id)) > 0 }

// Partitions lists those that have changes in it, in no order.
func (s *SealedJournal) Partitions() iter.Seq[PartitionID] {
	s.find.Do(s.fill)
	s.index.mu.RLock()
	defer s.index.mu.RUnlock()
	list := make([]PartitionID, 0, len(s.index.places))
	for id, places := range s.index.places {
		if len(s.own(places)) > 0 {
			list = append(list, id)
		}
	}
	return slices.Values(list)
}

func (s *SealedJournal) fill() {
	if s.index == nil {
		s.index = newChangeIndex()
	}
	x := s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	for ; x.rows < len(s.Rows); x.rows++ {
		row, number := &s.Rows[x.rows], uint32(x.rows)
		if row.packed != nil {
			row.packed.find(func(id PartitionID, at uint32) { x.places[id] = append(x.places[id], changePlace{number, at}) })
			continue
		}
		for j := range row.Changes {
			id := row.Changes[j].Partition
			x.places[id] = append(x.places[id], changePlace{number, uint32(j)})
		}
	}
}

// change is the one at a place, for the caller to keep or change.
func (s *SealedJournal) change(p changePlace) (Change, error) {
	row := &s.Rows[p.row]
	if row.packed != nil {
		return row.packed.change(p.at)
	}
	return row.Changes[p.at], nil
}

// ReadSealed reads a sealed journal, to be folded: its rows stay packed, and have no Changes. Those of a
// long one would take several times its bytes, until all partitions are taken. ErrHole when a row is
// missing: then the table lost something, and nothing may be folded.
func ReadSealed(ctx context.Context, t Table, id GatewayID) (*SealedJournal, error) {
	s, _, err := readJournal(ctx, t, id, 0, journalReads)
	if err != nil {
		return nil, err
	}
	return s.sealed()
}

// sealed is the journal, if it ends with a seal.
func (s *SealedJournal) sealed() (*SealedJournal, error) {
	if s.Seal == 0 {
		return nil, fmt.Errorf("%w: journal of %s ends before number %d without a seal", ErrHole, s.ID, s.end()+1)
	}
	return s, nil
}

// ReadJournal reads what a journal holds as of a moment after the call, sealed or not: Seal is 0 where no seal ends
// it. Its rows stay packed, and have no Changes. It writes nothing. ErrHole when a row is missing.
func ReadJournal(ctx context.Context, t Table, id GatewayID) (*SealedJournal, error) {
	s, _, err := readJournal(ctx, t, id, 0, 1)
	return s, err
}

// readJournal is [ReadJournal] for the rows after a number, which become those after TrimmedTo, and with several
// pages of a long one at once. It returns how far the journal was trimmed, too.
func readJournal(ctx context.Context, t Table, id GatewayID, after uint64, atOnce int) (*SealedJournal, uint64, error) {
	trimmedTo, err := readTrimmedTo(ctx, t, id)
	for err == nil {
		var s *SealedJournal
		if s, err = readJournalAfter(ctx, t, id, max(after, trimmedTo), atOnce); !errors.Is(err, ErrHole) {
			return s, trimmedTo, err
		}
		// Somebody may just have trimmed it: trimmed-to says so then.
		hole, before := err, trimmedTo
		if trimmedTo, err = readTrimmedTo(ctx, t, id); err == nil && trimmedTo == before {
			err = hole
		}
	}
	return nil, 0, err
}

// readTrimmedTo reads a journal's opening row.
func readTrimmedTo(ctx context.Context, t Table, id GatewayID) (uint64, error) {
	head, err := t.Get(ctx, journalKey(id, 0), Strong)
	if errors.Is(err, ErrNotFound) {
		head.Value, err = opening{}.encode(), nil // died before it opened its journal, then was sealed
	}
	if err != nil {
		return 0, fmt.Errorf("read journal of %s: %w", id, err)
	}
	was, err := decodeOpening(head.Value)
	if err != nil {
		return 0, fmt.Errorf("journal of %s: %w", id, err)
	}
	return was.trimmedTo, nil
}

// journalReads is how many pages of a journal that many wait for are read at once. Each is up to 1 MB.
const journalReads = 8

// readJournalAfter reads the first page, in which most journals end, and then the others at once. ErrHole when
// they are not contiguous.
func readJournalAfter(ctx context.Context, t Table, id GatewayID, after uint64, atOnce int) (*SealedJournal, error) {
	s := &SealedJournal{ID: id, TrimmedTo: after}
	var err error
	if s.Rows, s.Seal, err = readPage(ctx, t, id, after+1, ""); err != nil || s.Seal != 0 || len(s.Rows) == 0 {
		return s, err
	}
	// Rows come one after the other: up to the one that is the newest now all are there.
	last, err := lastRow(ctx, t, id)
	if err != nil {
		return nil, fmt.Errorf("read journal of %s: %w", id, err)
	}
	if last.Sequence < s.end() {
		return nil, fmt.Errorf("%w: journal of %s ends with number %d, and had number %d", ErrHole, id, last.Sequence, s.end())
	}
	each, until := uint64(len(s.Rows)), last.Sequence+1
	if last.Seal {
		s.Seal, until = last.Sequence, last.Sequence
	}
	rows := make([]JournalRow, until-after-1)
	copy(rows, s.Rows)
	s.Rows = rows
	reads, reading := errgroup.WithContext(ctx)
	reads.SetLimit(atOnce)
	for from := after + 1 + each; from < until; from += each {
		part := rows[from-after-1 : min(from+each, until)-after-1]
		reads.Go(func() error { return readPart(reading, t, id, from, part) })
	}
	return s, reads.Wait()
}

// readPart reads the rows of a journal from a number on, all of which are there, and none is the seal.
func readPart(ctx context.Context, t Table, id GatewayID, from uint64, part []JournalRow) error {
	to := sequenceSort(from + uint64(len(part)))
	for len(part) > 0 {
		rows, seal, err := readPage(ctx, t, id, from, to)
		switch {
		case err != nil:
			return err
		case seal != 0:
			return fmt.Errorf("%w: journal of %s goes on after its seal at number %d", ErrCorrupt, id, seal)
		case len(rows) == 0:
			return fmt.Errorf("%w: journal of %s has no number %d", ErrHole, id, from)
		}
		part = part[copy(part, rows):]
		from += uint64(len(rows))
	}
	return nil
}

// readPage reads some rows of a journal from a number on, below the sort key to where that is not empty,
// and the number of the seal when they end with it. ErrHole when they are not contiguous.
func readPage(ctx context.Context, t Table, id GatewayID, from uint64, to string) (page []JournalRow, seal uint64, err error) {
	rows, err := t.Range(ctx, Range{Partition: journalPartition(id), From: sequenceSort(from), To: to, Limit: 100, Consistency: Strong})
	if err != nil {
		return nil, 0, fmt.Errorf("read journal of %s: %w", id, err)
	}
	page = make([]JournalRow, 0, len(rows))
	for _, r := range rows {
		sequence, err := parseSequence(r.Sort)
		if err != nil {
			return nil, 0, err
		}
		if sequence != from {
			return nil, 0, fmt.Errorf("%w: journal of %s has number %d where %d should be", ErrHole, id, sequence, from)
		}
		row, err := packJournalRow(sequence, r.Value)
		if err != nil {
			return nil, 0, fmt.Errorf("journal of %s, number %d: %w", id, sequence, err)
		}
		if row.Seal {
			return page, sequence, nil
		}
		page = append(page, row)
		from++
	}
	return page, 0, nil
}

// Trim removes what every partition of the journal has moved away from: all
// entries but the newest row, which with a seal is the seal.
func (s *SealedJournal) Trim(ctx context.Context, t Table) error {
	if s.Seal < 2 || s.TrimmedTo >= s.Seal-1 {
		return nil
	}
	if seeded.Has(seeded.DeleteSeal) {
		return TrimJournal(ctx, t, s.ID, s.Seal)
	}
	return TrimJournal(ctx, t, s.ID, s.Seal-1)
}

// Snapshot is the journal as it stands, for [Acquire] to run beside the owner: only
// its id and its highest number are looked at.
func (j *Journal) Snapshot() *Journal { return &Journal{id: j.id, next: j.next} }

// Leave trims and seals the journal of a gateway that leaves in good order, when
// every partition has checkpointed all of it.
func (j *Journal) Leave(ctx context.Context) error {
	if j.next > 2 {
		// What it leaves behind is folded nowhere: every partition has checkpointed it.
		_ = TrimJournal(ctx, j.table, j.id, j.next-2)
	}
	_, err := Seal(ctx, j.table, j.id, j.id)
	return err
}
