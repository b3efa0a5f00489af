package compactor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/varvelog/varve/metadata"
)

// rowsKept bounds the rows that a collection remembers: the next one finds the rest.
const rowsKept = 100_000

// sweep deletes rows that nothing needs.
func (p *collecting) sweep(ctx context.Context) error {
	if err := p.sweepIndex(ctx); err != nil {
		return err
	}
	if err := p.sweepStrays(ctx); err != nil {
		return err
	}
	return p.sweepGateways(ctx)
}

// sweepStrays deletes rows that came to partitions of deleted topics after those were swept. No grace is needed: nobody reads a
// partition without a lease row. Should one be there by now, somebody came late and takes it away again: what lies beside it is
// the next collection's.
func (p *collecting) sweepStrays(ctx context.Context) error {
	for id := range p.strays {
		for row, err := range metadata.Rows(ctx, p.Table, metadata.PartitionRows(id)) {
			switch {
			case err != nil:
				return fmt.Errorf("rows of %s: %w", id, err)
			case row.Key == id.LeaseKey():
			case p.DryRun:
				p.report.Rows++
				continue
			default:
				gone, err := p.deleteRow(ctx, row.Key, row.Stamp)
				if err != nil {
					return err
				}
				p.report.Rows += gone
				continue
			}
			break
		}
	}
	return nil
}

// sweepIndex deletes pages and nodes that two collections, a grace apart, found named by nothing. Who puts a row of that key
// again puts it with a higher stamp, which the condition spares.
func (p *collecting) sweepIndex(ctx context.Context) error {
	now := time.Now()
	kept := make(map[metadata.Key]unnamedRow)
	for key, stamp := range p.leftover {
		row := unnamedRow{stamp, now}
		if was, known := p.c.rows[key]; known && was.stamp == stamp {
			row = was
		}
		switch {
		case p.DryRun:
			p.report.Rows++
		case now.Sub(row.since) >= p.Grace:
			gone, err := p.deleteRow(ctx, key, stamp)
			if err != nil {
				return err
			}
			p.report.Rows += gone
		default:
			p.report.RowsWaiting++
			if len(kept) < rowsKept {
				kept[key] = row
			}
		}
	}
	if !p.DryRun {
		p.c.rows = kept
	}
	return nil
}

func (p *collecting) deleteRow(ctx context.Context, key metadata.Key, stamp metadata.Stamp) (int64, error) {
	if err := p.raise(ctx); err != nil {
		return 0, err
	}
	err := p.Table.Delete(ctx, key, metadata.IfEqual(stamp))
	switch {
	case err == nil:
		return 1, nil
	case errors.Is(err, metadata.ErrConflict): // it was written again, or somebody else deleted it
		return 0, nil
	}
	return 0, fmt.Errorf("remove %s: %w", key, err)
}

// sweepGateways ends what is left of gateways that are closed: first what their journals still hold, and when there is no
// object of theirs any more, their rows. A journal keeps its opening row and its seal for ever.
func (p *collecting) sweepGateways(ctx context.Context) error {
	if len(p.unclear) > 0 {
		return nil // their leases may rest on anybody's journal
	}
	now := time.Now()
	departed := make(map[metadata.GatewayID]time.Time)
	for _, g := range p.gateways {
		if g.State != metadata.GatewayClosed || !p.standings[g.ID].heard || p.needed[g.ID] {
			continue
		}
		if rests, err := p.trim(ctx, g.ID); err != nil {
			return err
		} else if rests || p.objects[g.ID] > 0 {
			continue
		}
		since, known := p.c.departed[g.ID]
		if !known {
			since = now
		}
		switch {
		case p.DryRun:
			p.report.Gateways++
		case now.Sub(since) >= p.Grace:
			if err := p.removeGateway(ctx, g); err != nil {
				return err
			}
		default:
			p.report.RowsWaiting++
			departed[g.ID] = since
		}
	}
	if !p.DryRun {
		p.c.departed = departed
	}
	return nil
}

func (p *collecting) removeGateway(ctx context.Context, g metadata.Gateway) error {
	if err := p.raise(ctx); err != nil {
		return err
	}
	switch err := metadata.RemoveGateway(ctx, p.Table, g); {
	case err == nil:
		p.report.Gateways++
	case !errors.Is(err, metadata.ErrConflict):
		return err
	}
	return nil
}

// trim removes what the journal of a gateway that is closed still holds, or says that a partition rests on it.
func (p *collecting) trim(ctx context.Context, id metadata.GatewayID) (rests bool, err error) {
	journal, err := metadata.ReadJournal(ctx, p.Table, id)
	switch {
	case errors.Is(err, metadata.ErrHole), errors.Is(err, metadata.ErrCorrupt):
		return true, nil
	case err != nil:
		return true, err
	case journal.Seal == 0:
		return true, nil // closed, and not sealed: nobody does that
	case len(journal.Rows) == 0:
		return false, nil
	}
	for partition := range journal.Partitions() {
		g, err := head(ctx, p.Table, partition)
		if err == nil {
			err = p.excuse(ctx, g)
		}
		if err != nil {
			return true, err
		}
		if g.fault != nil || g.lease != nil && g.lease.Source() == id && !g.lease.Released {
			return true, nil
		}
	}
	p.report.Rows += int64(len(journal.Rows))
	if p.DryRun {
		return false, nil
	}
	if err := p.raise(ctx); err != nil {
		return true, err
	}
	return false, journal.Trim(ctx, p.Table)
}
