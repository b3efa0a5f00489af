package metadata

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// What a checker of the table needs, which trusts no row: rows are decoded one by one, and
// nothing here writes.

// ReadCluster returns the cluster of the table, which nobody names here: ErrNotFound when
// no gateway has served on it yet.
func ReadCluster(ctx context.Context, t Table) (*Cluster, error) {
	row, err := t.Get(ctx, clusterKey, Strong)
	if err != nil {
		return nil, err
	}
	var r clusterRow
	if err := decodeJSON(row, &r); err != nil {
		return nil, err
	}
	return &Cluster{ID: r.ID, table: t}, nil
}

// MintedAt is when the id was made, by the wall clock of who made it. False: the id does not say.
func (id GatewayID) MintedAt() (time.Time, bool) {
	const digits = 11
	if len(id) < 1+digits || id[0] != 'g' {
		return time.Time{}, false
	}
	ms, err := strconv.ParseInt(string(id[1:1+digits]), 16, 64)
	return time.UnixMilli(ms), err == nil
}

// TopicRange, GatewayRange and JournalRange are all rows of the catalog, of the gateways, and of
// a journal from a number on (0: its opening row). Strong reads.
func TopicRange() Range   { return Range{Partition: topicsPartition, Consistency: Strong} }
func GatewayRange() Range { return Range{Partition: gatewaysPartition, Consistency: Strong} }
func JournalRange(id GatewayID, from uint64) Range {
	return Range{Partition: journalPartition(id), From: sequenceSort(from), Consistency: Strong}
}

// RowKey names the gateway's row, JournalKey a row of its journal.
func (id GatewayID) RowKey() Key                    { return gatewayKey(id) }
func (id GatewayID) JournalKey(sequence uint64) Key { return journalKey(id, sequence) }

// DecodeTopic reads a row of the catalog, also of a topic that was removed.
func DecodeTopic(row Row) (*Topic, error) { return decodeTopic(row) }

// Removed says that the topic is gone and its name free.
func (t *Topic) Removed() bool { return t.State == topicRemoved }

// DecodeGateway reads a gateway's row.
func DecodeGateway(row Row) (Gateway, error) { return decodeGateway(row) }

// DecodeJournalRow reads any row of a journal. trimmedTo is that of its opening row, whose
// Sequence is 0.
func DecodeJournalRow(row Row) (decoded JournalRow, trimmedTo uint64, err error) {
	sequence, err := parseSequence(row.Sort)
	if err != nil {
		return JournalRow{}, 0, err
	}
	if sequence == 0 {
		first, err := decodeOpening(row.Value)
		return JournalRow{Size: len(row.Value)}, first.trimmedTo, err
	}
	decoded, err = decodeJournalRow(sequence, row.Value)
	return decoded, 0, err
}

// PartitionRows is all rows of a partition: its lease row comes first.
func PartitionRows(id PartitionID) Range {
	return Range{Partition: partitionKey(id), Consistency: Strong}
}

// IndexRows is a partition's rows of one kind.
func IndexRows(id PartitionID, kind IndexRowKind) Range {
	prefix := string(kind) + "/"
	return Range{Partition: partitionKey(id), From: prefix, To: prefixEnd(prefix), Consistency: Strong}
}

// IndexRowKind tells the rows of a partition apart. Its text is their prefix.
type IndexRowKind string

const (
	LeaseRow    IndexRowKind = "lease"
	PageRow     IndexRowKind = "page"
	NodeRow     IndexRowKind = "tree"
	ProducerRow IndexRowKind = "producer"
)

// IndexKey is what the sort key of a partition's row says. Level is 0 but for nodes; First is
// the first offset of a page or node.
type IndexKey struct {
	Kind  IndexRowKind
	Level int
	RowPlace
}

// ParseIndexKey reads a sort key of a partition. False: nothing here writes such a key.
func ParseIndexKey(sort string) (IndexKey, bool) {
	kind, rest, _ := strings.Cut(sort, "/")
	k := IndexKey{Kind: IndexRowKind(kind)}
	if k.Kind == LeaseRow {
		return k, sort == leaseSort
	}
	if k.Kind == NodeRow {
		level, first, _ := strings.Cut(rest, "/")
		var err error
		if k.Level, err = strconv.Atoi(level); err != nil || k.Level < 1 || k.Level > maxLevels {
			return k, false
		}
		rest = first
	}
	rest, unique, swapped := strings.Cut(rest, "/")
	number, err := strconv.ParseUint(rest, 16, 64)
	if err != nil || sequenceSort(number) != rest {
		return k, false
	}
	k.First = int64(number)
	if swapped {
		if k.Row, err = strconv.ParseUint(unique, 16, 64); err != nil || k.Row == 0 || sequenceSort(k.Row) != unique || k.Kind == ProducerRow {
			return k, false
		}
	}
	return k, k.Kind == PageRow || k.Kind == NodeRow || k.Kind == ProducerRow
}

// LeaseKey, PageKey and NodeKey name rows of the partition.
func (p PartitionID) LeaseKey() Key                      { return leaseKey(p) }
func (p PartitionID) PageKey(at RowPlace) Key            { return pageKey(p, at) }
func (p PartitionID) NodeKey(level int, at RowPlace) Key { return treeKey(p, level, at) }

// Place names the child's row.
func (c *Child) Place() RowPlace { return c.place() }

// DecodeLease reads a partition's lease row.
func DecodeLease(id PartitionID, row Row) (*Lease, error) { return decodeLease(id, row) }

// DecodePage and DecodeNode read the value of a page and of a node.
func DecodePage(value []byte) ([]Entry, error) { return decodePage(value) }
func DecodeNode(value []byte) ([]Child, error) { return decodeNode(value) }

// CheckProducerRow says what is wrong with a producer's row, or nil.
func CheckProducerRow(row Row) error {
	d := &decoder{b: row.Value}
	d.format()
	s := decodeProducer(d)
	if err := d.end(); err != nil {
		return err
	}
	if key, ok := ParseIndexKey(row.Sort); !ok || key.First != s.id {
		return fmt.Errorf("%w: row %s is about producer %d", ErrCorrupt, row.Key, s.id)
	}
	return nil
}

// State is the partition as of the checkpoint. Fold changes it: decode the row again for another.
func (l *Lease) State() *Partition { return l.state }

// LastNumber is the highest segment number of an uploader that the partition has judged; false
// when it remembers nothing of that uploader.
func (p *Partition) LastNumber(uploader GatewayID) (uint64, bool) {
	u := p.uploaders[uploader]
	return u.lastNumber(), u != nil
}

// Summarize describes entries, at least one, as the child that names their page. MergeChildren
// describes children as the child that names their node.
func Summarize(entries []Entry) Child      { return summarize(entries) }
func MergeChildren(children []Child) Child { return merge(children) }

// ParseJournalSequence reads the sort key of a journal's row.
func ParseJournalSequence(sort string) (uint64, error) { return parseSequence(sort) }
