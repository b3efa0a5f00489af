package bill

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/varvelog/varve/metadata"
)

const (
	// writeUnit and readUnit are the bytes of a row that one unit of the table pays for.
	writeUnit = 1 << 10
	readUnit  = 4 << 10
	// rowOverhead is what a row takes beside key and value, in bytes: stamp, nonce, names.
	rowOverhead = 50
)

// WriteUnits is what writing a row of so many bytes of key and value costs, in millionths.
func WriteUnits(size int) uint64 {
	return uint64(max(1, (size+rowOverhead+writeUnit-1)/writeUnit)) * Part
}

// ReadUnits is what reading rows of so many bytes costs, in millionths; nothing that is found costs
// as much as a little.
func ReadUnits(size, rows int, c metadata.Consistency) uint64 {
	n := uint64(max(1, (size+rows*rowOverhead+readUnit-1)/readUnit)) * Part
	if c == metadata.Eventual {
		n /= 2
	}
	return n
}

// UnitsOf is what a call costs, in millionths.
func UnitsOf(o metadata.Observation) uint64 {
	switch {
	case unbilled(o.Err):
		return 0
	case o.Op.Reads():
		return ReadUnits(o.Bytes, o.Rows, o.Consistency)
	}
	return WriteUnits(o.Bytes)
}

// Table returns the table with what its calls use counted. Put it beneath retries: each try is
// billed. Partitions' rows are paid for by their topics; of a journal's rows the caller says for whom
// they are, by [Shared]; the rest is the cluster's.
func (l *Ledger) Table(t metadata.Table) metadata.Table { return &table{t, l} }

type table struct {
	metadata.Table
	ledger *Ledger
}

func (t *table) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	row, err := t.Table.Get(ctx, key, c)
	if !unbilled(err) {
		size, rows := 0, 0
		if err == nil {
			size, rows = row.Size(), 1
		}
		t.ledger.rows(ctx, key.Partition, readOf(key), ReadUnits(size, rows, c))
	}
	return row, err
}

func (t *table) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	rows, err := t.Table.Range(ctx, r)
	if !unbilled(err) {
		size := 0
		for i := range rows {
			size += rows[i].Size()
		}
		t.ledger.rows(ctx, r.Partition, readOf(metadata.Key{Partition: r.Partition}), ReadUnits(size, len(rows), r.Consistency))
	}
	return rows, err
}

// Put counts a write whose condition does not hold, too: it is billed by the row that is in its
// way, which is taken to be as large.
func (t *table) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	err := t.Table.Put(ctx, row, cond)
	if !unbilled(err) {
		t.ledger.rows(ctx, row.Partition, writeOf(row.Key, false), WriteUnits(row.Size()))
	}
	return err
}

// Delete is billed by the row that it removes, whose size the caller may know.
func (t *table) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	err := t.Table.Delete(ctx, key, cond)
	if !unbilled(err) {
		size := max(metadata.RemovedSize(ctx), metadata.Row{Key: key}.Size())
		t.ledger.rows(ctx, key.Partition, writeOf(key, true), WriteUnits(size))
	}
	return err
}

// unbilled says that a call came to nothing that is billed: it was refused before it was looked at.
func unbilled(err error) bool {
	return errors.Is(err, metadata.ErrUnavailable) || errors.Is(err, metadata.ErrDenied) ||
		errors.Is(err, metadata.ErrNoTable) || errors.Is(err, metadata.ErrTooLarge)
}

const (
	partitionRows = "partition/"
	journalRows   = "journal/"
	gatewayRows   = "gateways"
	openingRow    = "0000000000000000" // sort key of a journal's first row, which says how far it is trimmed
)

func readOf(key metadata.Key) Unit {
	switch {
	case strings.HasPrefix(key.Partition, partitionRows):
		return IndexReadUnits
	case key.Partition == gatewayRows:
		return MemberReadUnits
	}
	return OtherReadUnits
}

func writeOf(key metadata.Key, removes bool) Unit {
	switch {
	case strings.HasPrefix(key.Partition, partitionRows):
		return CheckpointUnits
	case key.Partition == gatewayRows:
		return BeatUnits
	case strings.HasPrefix(key.Partition, journalRows) && (removes || key.Sort == openingRow):
		return TrimUnits
	case strings.HasPrefix(key.Partition, journalRows):
		return CommitUnits
	}
	return OtherWriteUnits
}

// rows charges for rows of one partition key.
func (l *Ledger) rows(ctx context.Context, partition string, unit Unit, n uint64) {
	p, _ := payerOf(ctx)
	if topic, ok := topicOf(partition); ok {
		if p.merge && unit == CheckpointUnits {
			unit = MergeUnits
		}
		l.account(topic).add([]amount{{unit, n}})
		return
	}
	shares := p.shares
	if !strings.HasPrefix(partition, journalRows) {
		shares = nil // gateways' rows and the catalog are everybody's
	}
	l.charge(shares, amount{unit, n})
}

// topicOf is the topic of a partition's rows: partition/TOPIC/NUMBER, see docs/metadata.md.
func topicOf(partition string) (id metadata.TopicID, ok bool) {
	text, ok := strings.CutPrefix(partition, partitionRows)
	if !ok || len(text) < 2*len(id) {
		return id, false
	}
	var digits [2 * len(id)]byte
	copy(digits[:], text)
	_, err := hex.Decode(id[:], digits[:])
	return id, err == nil
}
