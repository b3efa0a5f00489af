package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/varvelog/varve/metadata"
)

// journal is what is known of a gateway's journal.
type journal struct {
	rows    bool   // it has any
	entries int    // how many of them are entries
	last    uint64 // sequence of the newest row that was seen
}

// epochKey is a time in which one journal, and no other, commits to a partition.
type epochKey struct {
	partition metadata.PartitionID
	epoch     uint64
}

// change is a change of one partition and its place in the journal.
type change struct {
	sequence uint64
	*metadata.Change
}

// checkJournals reads each gateway's journal, one at a time, and holds it against the partitions
// that it is about.
func (v *verifier) checkJournals(ctx context.Context) error {
	for _, id := range sortedKeys(v.gateways) {
		p, err := v.readJournal(ctx, id)
		if err != nil {
			return err
		}
		v.setJournal(id, journal{rows: p.rows, entries: p.entries, last: p.last})
		if p.rows {
			v.count(func(s *Summary) { s.Journals++ })
		}
		work, ctx := errgroup.WithContext(ctx)
		work.SetLimit(v.Parallel)
		for partition, changes := range p.changes {
			v.checkEpochs(id, v.partition(partition), changes)
			work.Go(func() error { return v.checkFold(ctx, id, v.partition(partition), changes) })
		}
		if err := work.Wait(); err != nil {
			return err
		}
	}
	return nil
}

// picture is a journal as it was read.
type picture struct {
	v         *verifier
	id        metadata.GatewayID
	opened    bool
	trimmedTo uint64
	rows      bool
	entries   int
	last      uint64
	sealed    uint64 // sequence of the first seal, or 0
	sealOnly  bool   // the seal is all there is
	gaps      []gap
	changes   map[metadata.PartitionID][]change
}

// gap is where rows are missing, both ends included.
type gap struct{ from, to uint64 }

// readJournal reads a journal that may grow and be trimmed meanwhile.
func (v *verifier) readJournal(ctx context.Context, id metadata.GatewayID) (*picture, error) {
	p := &picture{v: v, id: id, changes: make(map[metadata.PartitionID][]change)}
	var err error
	if p.opened, p.trimmedTo, err = v.readOpening(ctx, id); err != nil {
		return nil, err
	}
	p.rows = p.opened
	next := p.trimmedTo + 1
	for row, err := range metadata.Rows(ctx, v.Table, metadata.JournalRange(id, next)) {
		if err != nil {
			return nil, fmt.Errorf("journal of %s: %w", id, err)
		}
		sequence, err := metadata.ParseJournalSequence(row.Sort)
		if err != nil {
			v.reportRow(row.Key, err)
			continue
		}
		if sequence != next {
			p.gaps = append(p.gaps, gap{next, sequence - 1})
		}
		next = sequence + 1
		p.take(sequence, row)
	}
	return p, p.settle(ctx)
}

// readOpening reads a journal's opening row. One that cannot be read is reported, and says nothing.
func (v *verifier) readOpening(ctx context.Context, id metadata.GatewayID) (opened bool, trimmedTo uint64, err error) {
	row, err := v.Table.Get(ctx, id.JournalKey(0), metadata.Strong)
	if errors.Is(err, metadata.ErrNotFound) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, fmt.Errorf("journal of %s: %w", id, err)
	}
	_, trimmedTo, err = metadata.DecodeJournalRow(row)
	if err != nil {
		v.reportRow(row.Key, err)
	}
	return true, trimmedTo, nil
}

// take looks at a row. Rows never change: what is wrong with one is a fact.
func (p *picture) take(sequence uint64, row metadata.Row) {
	p.sealOnly = !p.rows
	p.rows, p.last = true, sequence
	if p.sealed != 0 {
		p.v.report(Finding{Kind: EntryAfterSeal, Partition: NoPartition, Row: row.Key.String(),
			Message: fmt.Sprintf("the journal of gateway %s was sealed at number %d, and goes on at %d", p.id, p.sealed, sequence)})
	}
	decoded, _, err := metadata.DecodeJournalRow(row)
	if err != nil {
		p.v.reportRow(row.Key, err)
		return
	}
	if !decoded.Seal {
		p.entries++
	} else if p.sealed == 0 {
		p.sealed = sequence
	}
	p.sealOnly = p.sealOnly && decoded.Seal
	for i := range decoded.Changes {
		c := &decoded.Changes[i]
		p.changes[c.Partition] = append(p.changes[c.Partition], change{sequence, c})
	}
}

// settle reads again what may have moved: trimmed-to rises before rows go, so that a row that is missing
// above it is lost.
func (p *picture) settle(ctx context.Context) error {
	if p.rows && p.last == 0 && p.trimmedTo > 0 {
		// Trims leave the newest row, so that nobody can write at its number again.
		p.gaps = append(p.gaps, gap{p.trimmedTo + 1, p.trimmedTo + 1})
	}
	unopened := p.rows && !p.opened && !p.sealOnly // found dead before it opened its journal, it has a seal
	if len(p.gaps) == 0 && !unopened {
		return nil
	}
	opened, trimmedTo, err := p.v.readOpening(ctx, p.id)
	if err != nil {
		return err
	}
	if unopened && !opened {
		p.v.report(Finding{Kind: JournalHole, Partition: NoPartition, Row: p.id.JournalKey(0).String(),
			Message: fmt.Sprintf("the journal of gateway %s has rows up to number %d, and no opening row", p.id, p.last)})
	}
	for _, g := range p.gaps {
		if g.to > trimmedTo {
			from := max(g.from, trimmedTo+1)
			p.v.report(Finding{Kind: JournalHole, Partition: NoPartition, Row: p.id.JournalKey(from).String(),
				Message: fmt.Sprintf("the journal of gateway %s lacks numbers %d to %d, and was trimmed up to %d only", p.id, from, g.to, trimmedTo)})
		}
	}
	return nil
}

// checkEpochs looks for two owners at a time. Called by one goroutine.
func (v *verifier) checkEpochs(id metadata.GatewayID, p *partition, changes []change) {
	epoch := uint64(0)
	for _, c := range changes {
		if c.Epoch < epoch {
			f := p.finding(EpochConflict, fmt.Sprintf("the journal of gateway %s has a change in epoch %d after one in epoch %d", id, c.Epoch, epoch))
			f.Row = id.JournalKey(c.sequence).String()
			v.report(f)
		}
		if c.Epoch == epoch {
			continue
		}
		epoch = c.Epoch
		key := epochKey{p.id, epoch}
		if other, taken := v.epochs[key]; taken && other != id {
			f := p.finding(EpochConflict, fmt.Sprintf("the journals of gateways %s and %s both have changes in epoch %d", other, id, epoch))
			f.Row = id.JournalKey(c.sequence).String()
			v.report(f)
		}
		v.epochs[key] = id
	}
}

// checkFold folds a journal's changes over the partition's checkpoint, which is read after them.
func (v *verifier) checkFold(ctx context.Context, id metadata.GatewayID, p *partition, changes []change) error {
	row, err := v.Table.Get(ctx, p.id.LeaseKey(), metadata.Strong)
	if errors.Is(err, metadata.ErrNotFound) {
		v.nameChanges(changes)
		if t := v.topics[p.id.Topic]; t != nil && !t.Removed() {
			if removed, err := metadata.IsRemoved(ctx, v.Table, p.id.Topic); err != nil || removed {
				return err // since the topics were read
			}
			f := p.finding(LeaseMissing, fmt.Sprintf("the journal of gateway %s has changes of the partition, which has no lease row", id))
			f.Row = p.id.LeaseKey().String()
			v.report(f)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("lease of %s: %w", p.id, err)
	}
	lease, err := metadata.DecodeLease(p.id, row)
	if err != nil {
		v.nameChanges(changes)
		return nil // reported with the partition
	}
	v.checkOwner(id, p, lease, changes)
	if lease.Source() != id {
		return nil // a checkpoint has it all
	}
	state := lease.State()
	changes = slices.DeleteFunc(slices.Clone(changes), func(c change) bool {
		return c.sequence <= lease.Through || c.Epoch != state.Epoch()
	})
	if lease.Released {
		if len(changes) > 0 {
			v.nameChanges(changes)
			f := p.finding(EntryAfterRelease, fmt.Sprintf("gateway %s released the partition at number %d of its journal, which has a change of it at %d", id, lease.Through, changes[0].sequence))
			f.Row = id.JournalKey(changes[0].sequence).String()
			v.report(f)
		}
		return nil
	}
	v.nameChanges(changes)
	if err := metadata.Fold(state, lease.Through, sealedOf(id, changes)); err != nil {
		return v.confirmFold(ctx, id, p)
	}
	appended, swapped := entriesOf(changes, state.Start())
	v.count(func(s *Summary) { s.Entries, s.Records = s.Entries+int64(len(appended)), s.Records+recordsOf(appended) })
	if err := v.hold(ctx, p, swapped, true); err != nil {
		return err
	}
	return v.hold(ctx, p, appended, false)
}

// checkOwner compares the epochs of a journal with the lease, which was read after it: epochs only
// rise.
func (v *verifier) checkOwner(id metadata.GatewayID, p *partition, lease *metadata.Lease, changes []change) {
	newest := changes[len(changes)-1] // out of order is reported apart
	var message string
	switch t := v.topics[p.id.Topic]; {
	case t == nil, t.Removed():
		// Its rows were removed, the lease row with them, and who came late began anew before it found out.
		return
	case newest.Epoch > lease.Epoch():
		message = fmt.Sprintf("the journal of gateway %s has a change in epoch %d, the lease row is at %d", id, newest.Epoch, lease.Epoch())
	case newest.Epoch == lease.Epoch() && lease.Journal != id:
		message = fmt.Sprintf("the journal of gateway %s has a change in epoch %d, which the lease row gives to gateway %s", id, newest.Epoch, lease.Journal)
	default:
		return
	}
	f := p.finding(EpochConflict, message)
	f.Row = id.JournalKey(newest.sequence).String()
	v.report(f)
}

// confirmFold reads a partition anew whose journal did not follow on from its checkpoint: rows that were
// trimmed while the journal was read explain it.
func (v *verifier) confirmFold(ctx context.Context, id metadata.GatewayID, p *partition) error {
	_, err := metadata.ReadView(ctx, v.Table, p.id)
	switch {
	case errors.Is(err, metadata.ErrHole):
		return nil // reported with the journal
	case errors.Is(err, metadata.ErrCorrupt):
		f := p.finding(JournalMismatch, fmt.Sprintf("the journal of gateway %s does not follow on from the checkpoint: %v", id, err))
		f.Row = p.id.LeaseKey().String()
		v.report(f)
		return nil
	}
	return err
}

func (v *verifier) nameChanges(changes []change) {
	for _, c := range changes {
		v.named.AddNamed(c.Entries)
	}
}

// sealedOf is changes of one partition as Fold takes them.
func sealedOf(id metadata.GatewayID, changes []change) *metadata.SealedJournal {
	s := &metadata.SealedJournal{ID: id}
	for _, c := range changes {
		s.Rows = append(s.Rows, metadata.JournalRow{Sequence: c.sequence, Changes: []metadata.Change{*c.Change}})
	}
	return s
}

// entriesOf is those entries of changes that readers can reach from start on: appended ones, and those that swaps put in the place of
// others, which were counted already.
func entriesOf(changes []change, start int64) (appended, swapped []metadata.Entry) {
	for _, c := range changes {
		list := &appended
		if c.Kind == metadata.ChangeSwap {
			list = &swapped
		}
		for _, e := range c.Entries {
			if e.End > start {
				*list = append(*list, e)
			}
		}
	}
	return appended, swapped
}

func (v *verifier) setJournal(id metadata.GatewayID, j journal) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.journals[id] = &j
}

// lookJournal reads the newest row of a journal.
func (v *verifier) lookJournal(ctx context.Context, id metadata.GatewayID) (journal, error) {
	all := metadata.JournalRange(id, 0)
	all.Reverse, all.Limit = true, 1
	rows, err := v.Table.Range(ctx, all)
	if err != nil {
		return journal{}, fmt.Errorf("journal of %s: %w", id, err)
	}
	j := journal{rows: len(rows) > 0}
	if j.rows {
		j.last, _ = metadata.ParseJournalSequence(rows[0].Sort) // a bad key is reported with the journal
	}
	v.setJournal(id, j)
	return j, nil
}

// journalOf is what is known of a journal: at least as new as what was asked about before.
func (v *verifier) journalOf(ctx context.Context, id metadata.GatewayID) (journal, error) {
	v.mu.Lock()
	known := v.journals[id]
	v.mu.Unlock()
	if known != nil && known.rows {
		return *known, nil
	}
	return v.lookJournal(ctx, id)
}
