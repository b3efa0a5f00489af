package metadata

import (
	"context"
	"math"
)

// Retention is how much of a partition is kept.
type Retention struct {
	Millis int64 // ms after a record's timestamp; -1: for ever
	Bytes  int64 // of batches in a partition; -1: all
}

// Forever says that nothing goes by itself.
func (r Retention) Forever() bool { return r.Millis < 0 && r.Bytes < 0 }

// Retention is what the configuration keeps: with cleanup.policy=compact alone everything.
func (c *Config) Retention() Retention {
	if c.Cleanup == CleanupCompact {
		return Retention{-1, -1}
	}
	return Retention{c.RetentionMillis, c.RetentionBytes}
}

// Expired is what of a partition goes under a retention, as of a moment, and when more will.
type Expired struct {
	// From is the log start, To where it should be: offsets, To is exclusive and never past the end.
	From, To int64
	// Bytes are those of the chunks that go, LastTimestamp is that of the last record that goes (ms), or NoTimestamp.
	Bytes         int64
	LastTimestamp int64
	// Holder is the largest timestamp (ms) of the chunk that the log then starts with: more goes by time at
	// NextAt (ms of wall clock). NoTimestamp and math.MaxInt64 when time takes nothing of what is there now.
	Holder, NextAt int64
	// Room is how many more bytes of batches the partition takes before more goes by size; math.MaxInt64 without a limit.
	Room int64
}

// Expired says what goes under a retention at now (ms of wall clock). By size leading entries go while the
// rest has r.Bytes or more. By time leading chunks go whose largest timestamp is below now - r.Millis: one
// record with a time far ahead holds what follows it, as a segment does in Kafka. It descends
// the index twice at most for each of the two, and once where a part straddles the log start.
func (v *View) Expired(ctx context.Context, index Index, r Retention, now int64) (Expired, error) {
	e := &expiring{view: v, index: index, opened: make(map[piece][]piece), to: v.Start}
	out := Expired{From: v.Start, LastTimestamp: NoTimestamp, Holder: NoTimestamp, NextAt: math.MaxInt64, Room: math.MaxInt64}
	list := v.pieces()
	if r.Bytes >= 0 {
		left, err := e.readable(ctx, list)
		if err != nil {
			return Expired{}, err
		}
		if out.Room, err = e.bySize(ctx, list, left, r.Bytes); err != nil {
			return Expired{}, err
		}
	}
	if r.Millis >= 0 {
		holder, err := e.byTime(ctx, list, now-r.Millis)
		if err != nil {
			return Expired{}, err
		}
		if out.Holder = holder; holder != NoTimestamp && holder < math.MaxInt64-r.Millis {
			out.NextAt = holder + r.Millis + 1
		}
	}
	out.To = e.to
	err := e.sum(ctx, list, &out)
	return out, err
}

// expiring is one walk over an index.
type expiring struct {
	view   *View
	index  Index
	opened map[piece][]piece // what was read already
	to     int64             // where the log is to start, as far as is known
}

func (e *expiring) open(ctx context.Context, p piece) ([]piece, error) {
	if list, ok := e.opened[p]; ok {
		return list, nil
	}
	list, err := e.view.open(ctx, e.index, p)
	if err == nil {
		e.opened[p] = list
	}
	return list, err
}

// readable is the bytes of the entries in the list that reach above the log start.
func (e *expiring) readable(ctx context.Context, list []piece) (int64, error) {
	var bytes int64
	for _, p := range list {
		if p.end <= e.view.Start {
			continue
		}
		n, err := e.readableOf(ctx, p)
		if err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}

func (e *expiring) readableOf(ctx context.Context, p piece) (int64, error) {
	if p.level < 0 || p.child.First >= e.view.Start {
		return p.child.Bytes, nil
	}
	list, err := e.open(ctx, p)
	if err != nil {
		return 0, err
	}
	return e.readable(ctx, list)
}

// bySize lets leading entries go while the rest of the left bytes is at least limit. room is how many
// more bytes there may be before the next one goes.
func (e *expiring) bySize(ctx context.Context, list []piece, left, limit int64) (room int64, err error) {
	for _, p := range list {
		if p.end <= e.to {
			continue
		}
		bytes, err := e.readableOf(ctx, p)
		switch {
		case err != nil:
			return 0, err
		case left-bytes >= limit:
			left -= bytes
			e.to = p.end
		case p.level < 0:
			return limit + bytes - left, nil
		default: // it does not go whole, so that the walk ends within it
			inside, err := e.open(ctx, p)
			if err != nil {
				return 0, err
			}
			return e.bySize(ctx, inside, left, limit)
		}
	}
	return max(limit-left, 1), nil // nothing is left: the next entry is looked at when it is there
}

// byTime lets leading chunks go in which all is older than limit. It returns the largest timestamp of the first
// one that stays, or NoTimestamp.
func (e *expiring) byTime(ctx context.Context, list []piece, limit int64) (holder int64, err error) {
	for _, p := range list {
		if p.end <= e.to {
			continue
		}
		if p.child.MaxTimestamp >= limit {
			// What promises to hold may lie below the log start: then the walk goes on behind it.
			if holder, err = e.within(ctx, p, limit); err != nil || holder != NoTimestamp {
				return holder, err
			}
		}
		e.to = p.end
	}
	return NoTimestamp, nil
}

func (e *expiring) within(ctx context.Context, p piece, limit int64) (int64, error) {
	if p.level >= 0 {
		list, err := e.open(ctx, p)
		if err != nil {
			return NoTimestamp, err
		}
		return e.byTime(ctx, list, limit)
	}
	for _, c := range p.entry.Chunks() {
		if c.End <= e.to {
			continue
		}
		if c.MaxTimestamp >= limit {
			return c.MaxTimestamp, nil
		}
		e.to = c.End
	}
	return NoTimestamp, nil
}

// sum adds up what goes.
func (e *expiring) sum(ctx context.Context, list []piece, out *Expired) error {
	for _, p := range list {
		switch {
		case p.end <= out.From:
		case p.child.First >= out.To:
			return nil
		case p.child.First >= out.From && p.end <= out.To:
			out.goes(p.child.Bytes, p.child.LastTimestamp)
		case p.level >= 0:
			inside, err := e.open(ctx, p)
			if err != nil {
				return err
			}
			if err := e.sum(ctx, inside, out); err != nil {
				return err
			}
		default:
			for _, c := range p.entry.Chunks() {
				if c.End > out.From && c.End <= out.To {
					out.goes(c.Length, c.LastTimestamp)
				}
			}
		}
	}
	return nil
}

// goes counts a part that goes, and whose last record is of a time: none where key compaction left no record.
func (out *Expired) goes(bytes, last int64) {
	out.Bytes += bytes
	if last != NoTimestamp {
		out.LastTimestamp = last
	}
}
