package metadata

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// GatewayState says where in its life a gateway is. The texts are stored.
type GatewayState string

const (
	// GatewayLive serves.
	GatewayLive GatewayState = "live"
	// GatewayDraining is leaving: it takes no new partitions.
	GatewayDraining GatewayState = "draining"
	// GatewaySealed was found dead: its journal is sealed, its segment numbers are
	// not settled yet.
	GatewaySealed GatewayState = "sealed"
	// GatewayClosed is gone, and each of its segment numbers is settled.
	GatewayClosed GatewayState = "closed"
)

// Roles of gateways. The texts are stored.
const (
	// RoleAll does everything.
	RoleAll = ""
	// RoleGateway merges no segments.
	RoleGateway = "gateway"
	// RoleCompactor merges segments, sequences no partition and takes no appends.
	RoleCompactor = "compactor"
)

func (s GatewayState) known() bool {
	switch s {
	case GatewayLive, GatewayDraining, GatewaySealed, GatewayClosed:
		return true
	}
	return false
}

// Gateway is a gateway's row. Its owner alone writes it, but for marking it sealed
// or closed.
type Gateway struct {
	ID      GatewayID
	Address string // host:port of its API
	Zone    string
	Version string
	Beat    uint64 // counts writes: who sees no change for the lease time calls it dead
	Floor   uint64 // lowest of its segment numbers that is not settled yet
	// MergeFloor is the floor of what it is as a compactor: see MergerID.
	MergeFloor uint64
	State      GatewayState
	// Role is RoleAll, RoleGateway or RoleCompactor.
	Role string
	// Peer is the host:port of its peer service; empty: it has none.
	Peer string
	// Protocol is that of its peer service: those of different ones do not work together.
	Protocol uint32
	// Partitions counts those that it sequences, Buffered the records that it acked as
	// buffered and has not committed, both as of the beat.
	Partitions uint64
	Buffered   uint64
	// Garbage counts what it decided so far that may have left garbage.
	Garbage uint64
	// SealedAt is when it was marked sealed (ms, wall clock of who did it), or 0: for people,
	// and for closing it after days.
	SealedAt int64
	// Clock is its wall clock as of the beat (ms), 0 in rows of older versions: by it a clock that is far ahead is
	// told from the others. Nothing else may rest on it.
	Clock int64
	// TopicChanges counts the changes of topics that it made: others read the topics when it rises.
	TopicChanges uint64
	Stamp        Stamp // of the row
}

type gatewayRow struct {
	Format     int          `json:"format"`
	Address    string       `json:"address"`
	Peer       string       `json:"peer"`
	Protocol   uint32       `json:"protocol"`
	Zone       string       `json:"zone,omitempty"`
	Version    string       `json:"version"`
	Beat       uint64       `json:"beat"`
	Floor      uint64       `json:"floor"`
	MergeFloor uint64       `json:"merge_floor,omitempty"`
	Role       string       `json:"role,omitempty"`
	Partitions uint64       `json:"partitions"`
	Buffered   uint64       `json:"buffered"`
	Garbage    uint64       `json:"garbage,omitempty"`
	State      GatewayState `json:"state"`
	SealedAt   int64        `json:"sealed_at"`

	Clock        int64  `json:"clock,omitempty"`
	TopicChanges uint64 `json:"topic_changes,omitempty"`
}

func gatewayKey(id GatewayID) Key { return Key{gatewaysPartition, string(id)} }

func (g *Gateway) row() gatewayRow {
	return gatewayRow{Format: formatV1, Address: g.Address, Peer: g.Peer, Protocol: g.Protocol, Zone: g.Zone, Version: g.Version,
		Beat: g.Beat, Floor: g.Floor, MergeFloor: g.MergeFloor, Role: g.Role, Partitions: g.Partitions, Buffered: g.Buffered, Clock: g.Clock, TopicChanges: g.TopicChanges, Garbage: g.Garbage, State: g.State, SealedAt: g.SealedAt}
}

func decodeGateway(row Row) (Gateway, error) {
	var r gatewayRow
	if err := decodeJSON(row, &r); err != nil {
		return Gateway{}, err
	}
	if !r.State.known() {
		return Gateway{}, fmt.Errorf("%w: row %s: unknown state %q", ErrCorrupt, row.Key, r.State)
	}
	return Gateway{ID: GatewayID(row.Sort), Address: r.Address, Peer: r.Peer, Protocol: r.Protocol, Zone: r.Zone, Version: r.Version,
		Beat: r.Beat, Floor: r.Floor, MergeFloor: r.MergeFloor, Role: r.Role, Partitions: r.Partitions, Buffered: r.Buffered, Clock: r.Clock, TopicChanges: r.TopicChanges, Garbage: r.Garbage, State: r.State, SealedAt: r.SealedAt, Stamp: row.Stamp}, nil
}

// RegisterGateway makes the row of a gateway that just minted its id, live and with
// its first beat. ErrConflict: there is one.
func RegisterGateway(ctx context.Context, t Table, g Gateway) (*Gateway, error) {
	g.Beat, g.State, g.SealedAt, g.Stamp = 1, GatewayLive, 0, Stamp{1, 1}
	row := Row{Key: gatewayKey(g.ID), Stamp: g.Stamp, Nonce: NewNonce(), Value: encodeJSON(g.row())}
	if err := PutSettled(ctx, t, row, IfAbsent(), nil); err != nil {
		return nil, fmt.Errorf("register gateway %s: %w", g.ID, err)
	}
	return &g, nil
}

// Write writes the row with the next beat, and with what its owner has set in it. ErrFenced: somebody marked it sealed or closed, or the row is gone; State says so then.
// After any other error the write may have happened; the next one takes that up. Not
// for concurrent use.
func (g *Gateway) Write(ctx context.Context, t Table) error {
	for {
		next := *g
		next.Beat++
		next.Stamp.Sequence++
		row := Row{Key: gatewayKey(g.ID), Stamp: next.Stamp, Nonce: NewNonce(), Value: encodeJSON(next.row())}
		err := PutSettled(ctx, t, row, IfEqual(g.Stamp), nil)
		if err == nil {
			*g = next
			return nil
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrUnknown) || ctx.Err() != nil {
			return fmt.Errorf("beat of gateway %s: %w", g.ID, err)
		}
		if err := g.catchUp(ctx, t); err != nil {
			return err
		}
	}
}

// catchUp reads what stands where the owner's write did not: a mark, or an earlier
// write of its own of which it had not heard.
func (g *Gateway) catchUp(ctx context.Context, t Table) error {
	row, err := t.Get(ctx, gatewayKey(g.ID), Strong)
	if errors.Is(err, ErrNotFound) {
		g.State = GatewayClosed
		return fmt.Errorf("%w: the row of gateway %s is gone", ErrFenced, g.ID)
	}
	if err != nil {
		return fmt.Errorf("beat of gateway %s: %w", g.ID, err)
	}
	stored, err := decodeGateway(row)
	if err != nil {
		return err
	}
	if stored.State != g.State && (stored.State == GatewaySealed || stored.State == GatewayClosed) {
		g.State, g.SealedAt, g.Stamp = stored.State, stored.SealedAt, stored.Stamp
		return fmt.Errorf("%w: gateway %s was marked %s", ErrFenced, g.ID, stored.State)
	}
	g.Beat, g.Stamp = stored.Beat, stored.Stamp
	return nil
}

// ListGateways returns all gateways' rows, by id. known, if given, has rows that were read before: one
// whose stamp still stands is not decoded again, and there may be many.
func ListGateways(ctx context.Context, t Table, c Consistency, known func(GatewayID) (Gateway, bool)) ([]Gateway, error) {
	var list []Gateway
	for row, err := range Rows(ctx, t, Range{Partition: gatewaysPartition, Consistency: c}) {
		if err != nil {
			return nil, fmt.Errorf("list gateways: %w", err)
		}
		if known != nil {
			if g, ok := known(GatewayID(row.Sort)); ok && g.Stamp == row.Stamp {
				list = append(list, g)
				continue
			}
		}
		g, err := decodeGateway(row)
		if err != nil {
			return nil, err
		}
		list = append(list, g)
	}
	return list, nil
}

// MarkSealed tells a gateway, by its next beat, that its journal is sealed: seal the journal
// first. SealedAt becomes now, by the wall clock. It is no error when it was marked before,
// or closed; that changes nothing. ErrNotFound without a row.
func MarkSealed(ctx context.Context, t Table, id GatewayID, now time.Time) error {
	return mark(ctx, t, id, GatewaySealed, now)
}

// MarkClosed says that each segment number of the gateway is settled. It is no error when
// it was closed before. ErrNotFound without a row.
func MarkClosed(ctx context.Context, t Table, id GatewayID) error {
	return mark(ctx, t, id, GatewayClosed, time.Time{})
}

// RemoveGateway removes the row of a gateway that is closed, once every gateway knows of that and nothing of it is left to find.
// Its journal keeps its opening row and its seal for ever: they alone keep out a process of that id that
// was paused, and they say that the gateway has ended. ErrConflict when the row has changed since it was read. It
// is no error when the row is gone.
func RemoveGateway(ctx context.Context, t Table, g Gateway) error {
	if g.State != GatewayClosed {
		return fmt.Errorf("%w: gateway %s is %s, not closed", ErrInvalid, g.ID, g.State)
	}
	err := DeleteSettled(ctx, t, gatewayKey(g.ID), IfEqual(g.Stamp), nil)
	if errors.Is(err, ErrConflict) {
		if _, gone := t.Get(ctx, gatewayKey(g.ID), Strong); errors.Is(gone, ErrNotFound) {
			return nil
		}
	}
	return err
}

// Ended says that a gateway that has no row any more was closed, by what its journal keeps: a seal.
func Ended(ctx context.Context, t Table, id GatewayID) (bool, error) {
	last, err := lastRow(ctx, t, id)
	return last.Seal, err
}

func mark(ctx context.Context, t Table, id GatewayID, state GatewayState, now time.Time) error {
	_, err := update(ctx, t, gatewayKey(id), func(was Row) (any, error) {
		if was.Stamp == (Stamp{}) {
			return nil, fmt.Errorf("%w: there is no gateway %s", ErrNotFound, id)
		}
		g, err := decodeGateway(was)
		if err != nil || g.State == state || g.State == GatewayClosed {
			return nil, err
		}
		if g.State = state; state == GatewaySealed {
			g.SealedAt = now.UnixMilli()
		}
		return g.row(), nil
	})
	if err != nil {
		return fmt.Errorf("mark gateway %s %s: %w", id, state, err)
	}
	return nil
}
