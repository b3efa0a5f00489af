package gateway

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// members keeps this gateway's row, and knows which other gateways live. No clock
// of another host decides anything: a gateway is dead when its row did not change
// for the lease time on our own monotonic clock.
type members struct {
	g      *Gateway
	silent since // heartbeats do not succeed

	own chan struct{} // holds one while somebody uses row: whoever waits for it can give up
	row *metadata.Gateway

	mu   sync.Mutex
	seen map[metadata.GatewayID]sighting
	// dead are predecessors on our own data folder, whose lock we hold: they cannot
	// be alive.
	dead map[metadata.GatewayID]bool
}

// sighting is when another gateway's row changed last.
type sighting struct {
	row    metadata.Gateway
	since  time.Time
	beaten bool // it changed while we looked
}

func newMembers(g *Gateway) *members {
	return &members{g: g, own: make(chan struct{}, 1), seen: make(map[metadata.GatewayID]sighting), dead: make(map[metadata.GatewayID]bool)}
}

// register writes the row of this gateway, and reads those of the others. Its folder in
// the buffer is there before the row: whatever happens in between, the next start knows
// whose row it was.
func (m *members) register(ctx context.Context) error {
	if m.g.buffers != nil {
		ids, err := m.g.buffers.Gateways()
		if err != nil {
			return err
		}
		for _, id := range ids {
			m.dead[metadata.GatewayID(id)] = true
		}
		if err := m.g.buffers.Register(segments.GatewayID(m.g.id)); err != nil {
			return err
		}
	}
	c := m.g.config
	row, err := metadata.RegisterGateway(ctx, m.g.table, metadata.Gateway{ID: m.g.id, Address: c.Address, Zone: c.Zone, Version: c.Version, Floor: 1})
	if err != nil {
		return err
	}
	m.row = row
	return m.look(ctx)
}

// look reads all gateways' rows.
func (m *members) look(ctx context.Context) error {
	rows, err := metadata.ListGateways(ctx, m.g.table, metadata.Strong)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, row := range rows {
		if was, ok := m.seen[row.ID]; !ok || was.row.Stamp != row.Stamp {
			m.seen[row.ID] = sighting{row, now, ok}
		}
		if m.g.config.Exclusive && row.ID != m.g.id {
			m.dead[row.ID] = true // the table's lock is ours alone
		}
	}
	return nil
}

// others lists the other gateways' rows in a state.
func (m *members) others(states ...metadata.GatewayState) []metadata.Gateway {
	m.mu.Lock()
	defer m.mu.Unlock()
	var list []metadata.Gateway
	for id, s := range m.seen {
		for _, state := range states {
			if id != m.g.id && s.row.State == state {
				list = append(list, s.row)
			}
		}
	}
	return list
}

// isClosed says whether a gateway is gone for ever, with all of its numbers settled.
func (m *members) isClosed(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.seen[id].row.State == metadata.GatewayClosed
}

// hasEnded says whether nothing more can come of an id on our data folder: it is closed,
// or its process died before it had a row.
func (m *members) hasEnded(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, known := m.seen[id]
	return s.row.State == metadata.GatewayClosed || !known && m.dead[id]
}

// isDead says whether a gateway is known to have ended, since it ran on our data folder.
func (m *members) isDead(id metadata.GatewayID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead[id]
}

// mayTakeFrom says whether a gateway's journal may be sealed: nil when it is dead
// or has left, metadata.ErrHeld while it lives.
func (m *members) mayTakeFrom(ctx context.Context, id metadata.GatewayID) error {
	m.mu.Lock()
	s, known := m.seen[id]
	dead := m.dead[id]
	m.mu.Unlock()
	if !known && !dead {
		if err := m.look(ctx); err != nil {
			return err
		}
		m.mu.Lock()
		s, known = m.seen[id]
		dead = m.dead[id]
		m.mu.Unlock()
	}
	switch {
	case dead, !known, s.row.State == metadata.GatewaySealed, s.row.State == metadata.GatewayClosed:
		return nil
	}
	return fmt.Errorf("%w: %s", metadata.ErrHeld, id)
}

// awaitAlone returns once no other gateway lives on the table: those whose rows do not
// change for the lease time are sealed. While there are no peer calls, two gateways on
// one table would only be in each other's way, so one that lives is refused.
func (m *members) awaitAlone(ctx context.Context) error {
	for {
		if err := m.look(ctx); err != nil {
			return err
		}
		watch := time.Duration(0)
		for _, row := range m.others(metadata.GatewayLive, metadata.GatewayDraining) {
			if m.isDead(row.ID) {
				continue
			}
			m.mu.Lock()
			s := m.seen[row.ID]
			m.mu.Unlock()
			silent := time.Since(s.since)
			switch {
			case s.beaten:
				return fmt.Errorf("%w: gateway %s (%s) is alive on %s; one gateway a table for now: stop that one, or use another table",
					metadata.ErrHeld, row.ID, row.Address, m.g.table)
			case silent > m.g.config.LeaseTime:
				if err := m.seal(ctx, row.ID); err != nil {
					return err
				}
			default:
				if watch == 0 {
					m.g.log.Info("another gateway used this table: waiting to see whether it is alive", "gateway", row.ID, "at_most", m.g.config.LeaseTime)
				}
				watch = m.g.config.LeaseTime / 4
			}
		}
		if watch == 0 {
			return nil
		}
		// Another one may be waiting, too, and watch this one meanwhile.
		if err := m.write(ctx, ""); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(watch):
		}
	}
}

// seal ends another gateway's journal, and tells it so.
func (m *members) seal(ctx context.Context, id metadata.GatewayID) error {
	if _, err := metadata.Seal(ctx, m.g.table, id, m.g.id); err != nil {
		return err
	}
	return metadata.MarkSealed(ctx, m.g.table, id)
}

// run beats until ctx ends, unless nobody else can reach the table. It returns
// metadata.ErrFenced when another gateway took this one for dead.
func (m *members) run(ctx context.Context) error {
	if m.g.config.Exclusive {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	beat := time.NewTicker(m.g.config.LeaseTime / 3)
	defer beat.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-beat.C:
		}
		limit, cancel := context.WithTimeout(ctx, m.g.config.LeaseTime)
		err := m.write(limit, "")
		if err == nil {
			err = m.look(limit)
		}
		cancel()
		switch {
		case err == nil:
			if lasted := m.silent.end(); lasted > 0 {
				m.g.log.Info("heartbeats succeed again", "after", lasted.Round(time.Millisecond))
			}
		case errors.Is(err, metadata.ErrFenced):
			return err
		case ctx.Err() == nil:
			m.silent.begin()
			m.g.log.Warn("no heartbeat: the table does not answer", "error", err)
		}
	}
}

// write writes the row, in a new state if one is given.
func (m *members) write(ctx context.Context, state metadata.GatewayState) error {
	select {
	case m.own <- struct{}{}:
		defer func() { <-m.own }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if state != "" {
		m.row.State = state
	}
	m.row.Floor = m.g.intake.floor()
	return m.row.Write(ctx, m.g.table)
}

// drainingTime is how long telling the others may take.
const drainingTime = 2 * time.Second

// draining tells the others that this gateway is about to leave.
func (m *members) draining(ctx context.Context) {
	if m.g.config.Exclusive {
		return // there are no others
	}
	ctx, cancel := context.WithTimeout(ctx, drainingTime)
	defer cancel()
	if err := m.write(ctx, metadata.GatewayDraining); err != nil {
		m.g.log.Warn("the others do not know that this gateway is leaving", "error", err)
	}
}

// close ends this gateway's id: all of its numbers are settled, its journal is sealed.
func (m *members) close(ctx context.Context) error {
	if m.g.buffers == nil {
		return m.write(ctx, metadata.GatewayClosed)
	}
	id := segments.GatewayID(m.g.id)
	if err := m.g.buffers.SettleGateway(id); err != nil {
		return err
	}
	if err := m.write(ctx, metadata.GatewayClosed); err != nil {
		return err
	}
	return m.g.buffers.RemoveGateway(id)
}
