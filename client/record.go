package client

import (
	"time"

	"github.com/varvelog/varve/segments/batch"
)

// Header is a record's header: a Key (a string) and a Value (bytes; null when nil).
type Header = batch.RecordHeader

// Record is one record, on its way into a topic or out of it.
type Record struct {
	// Topic is the producer's default topic when empty.
	Topic string
	// Partition is what a record was read from. Producers use it only with PartitionAsGiven.
	Partition int32
	// Offset is where a record was read. Producers ignore it.
	Offset int64
	// Timestamp has millisecond precision and must not lie before 1970. Zero, when producing: now.
	Timestamp time.Time
	// Key and Value are null when nil, which is not the same as empty.
	Key, Value []byte
	// Headers are kept in order and may repeat a key.
	Headers []Header
}

// size is what a record takes in memory and, within a few bytes, in an uncompressed batch.
func (r *Record) size() int {
	n := recordOverhead + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		n += headerOverhead + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return n
}

// Upper bounds for the variable-length numbers around a record and a header.
const (
	recordOverhead = 32
	headerOverhead = 10
)
