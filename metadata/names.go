package metadata

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// TopicID names a topic for ever: a name that is given again gets another id.
type TopicID [16]byte

// NewTopicID returns a random id.
func NewTopicID() TopicID {
	var id TopicID
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

func (id TopicID) String() string { return hex.EncodeToString(id[:]) }

// ParseTopicID reads 32 hex digits.
func ParseTopicID(s string) (TopicID, error) {
	var id TopicID
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(id) {
		return id, fmt.Errorf("topic id %q is not 32 hex digits", s)
	}
	copy(id[:], raw)
	return id, nil
}

// PartitionID names a partition of a topic; numbers begin at 0.
type PartitionID struct {
	Topic  TopicID
	Number int32
}

func (p PartitionID) String() string { return fmt.Sprintf("%s/%d", p.Topic, p.Number) }

// Less orders partitions by topic id, then number: the order of spans in a segment.
func (p PartitionID) Less(o PartitionID) bool {
	if p.Topic != o.Topic {
		return string(p.Topic[:]) < string(o.Topic[:])
	}
	return p.Number < o.Number
}

// GatewayID names one run of a gateway process: minted at each start, never used
// again. It names the gateway's journal and, as uploader, its segments.
type GatewayID string

// NewGatewayID returns an id that sorts roughly by the time of its making, which
// helps people who read listings and nothing else.
func NewGatewayID(now time.Time) GatewayID {
	var tail [8]byte
	rand.Read(tail[3:])
	return GatewayID(fmt.Sprintf("g%011x%010x", now.UnixMilli(), binary.BigEndian.Uint64(tail[:])))
}

// NewClusterID returns a random cluster id, 20 hex digits after a letter.
func NewClusterID() string {
	var raw [10]byte
	rand.Read(raw[:])
	return "c" + hex.EncodeToString(raw[:])
}

// NewNonce returns a random number that is not zero.
func NewNonce() uint64 {
	var raw [8]byte
	for {
		rand.Read(raw[:])
		if n := binary.BigEndian.Uint64(raw[:]); n != 0 {
			return n
		}
	}
}

// MaxTopicName is the longest topic name in bytes.
const MaxTopicName = 249

// notOfNames says that a topic's name cannot hold a character. Every request is asked: a regular expression
// took a fiftieth of the CPU of small ones.
func notOfNames(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '_' && r != '-'
}

// CheckTopicName says what is wrong with a topic's name, or nil.
func CheckTopicName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: a topic needs a name", ErrInvalid)
	case len(name) > MaxTopicName:
		return fmt.Errorf("%w: topic name of %d bytes is longer than %d", ErrInvalid, len(name), MaxTopicName)
	case name == "." || name == "..":
		return fmt.Errorf("%w: topic name %q is reserved", ErrInvalid, name)
	case strings.ContainsFunc(name, notOfNames):
		return fmt.Errorf("%w: topic name %q may hold only a-z, A-Z, 0-9, '.', '_' and '-'", ErrInvalid, strings.ToValidUTF8(name, "?"))
	}
	return nil
}

// The keys of the table's rows. Numbers are written in 16 hex digits so that
// their text sorts as they do.

const (
	topicsPartition   = "topics"
	gatewaysPartition = "gateways"
	clusterPartition  = "cluster"
	removedPartition  = "removed"
	leaseSort         = "lease"
	pagePrefix        = "page/"
	treePrefix        = "tree/"
	producerPrefix    = "producer/"
)

func journalPartition(id GatewayID) string { return "journal/" + string(id) }

func journalKey(id GatewayID, sequence uint64) Key {
	return Key{journalPartition(id), sequenceSort(sequence)}
}

func sequenceSort(sequence uint64) string { return fmt.Sprintf("%016x", sequence) }

func partitionKey(p PartitionID) string {
	return fmt.Sprintf("partition/%s/%d", p.Topic, p.Number)
}

func leaseKey(p PartitionID) Key { return Key{partitionKey(p), leaseSort} }

func pageKey(p PartitionID, at RowPlace) Key {
	return Key{partitionKey(p), pagePrefix + at.sort()}
}

func treeKey(p PartitionID, level int, at RowPlace) Key {
	return Key{partitionKey(p), fmt.Sprintf("%s%d/%s", treePrefix, level, at.sort())}
}

// sort is the end of a row's sort key. Rows that begin at one offset lie side by side.
func (at RowPlace) sort() string {
	if at.Row == 0 {
		return fmt.Sprintf("%016x", at.First)
	}
	return fmt.Sprintf("%016x/%016x", at.First, at.Row)
}

func producerKey(p PartitionID, id int64) Key {
	return Key{partitionKey(p), fmt.Sprintf("%s%016x", producerPrefix, uint64(id))}
}
