package bolttable

import (
	"encoding/binary"
	"errors"
	"fmt"

	bolt "go.etcd.io/bbolt"
)

// formatVersion is of the whole file: of its buckets, keys, rows and the record of the rows.
const formatVersion = 1

const (
	recordSize = 21
	// sumAt is where a checksum stands, in a row and in the record.
	sumAt = 1
)

// errVersion is that of a file with a format that this program does not know.
var errVersion = errors.New("its format has version")

var (
	rowsName   = []byte("varve")
	recordName = []byte("varve.record")
	recordKey  = []byte("rows")
)

// tally is what the file records of its rows: by it, rows that vanished or came back are noticed.
type tally struct {
	rows uint64 // how many there are
	sum  uint64 // of their checksums, modulo 2⁶⁴: in any order
}

// add and remove take a row as it is stored, and checked.
func (t *tally) add(row []byte) {
	t.rows++
	t.sum += uint64(binary.BigEndian.Uint32(row[sumAt:]))
}

func (t *tally) remove(row []byte) {
	t.rows--
	t.sum -= uint64(binary.BigEndian.Uint32(row[sumAt:]))
}

func (t tally) encode() []byte {
	b := make([]byte, recordSize)
	b[0] = formatVersion
	binary.BigEndian.PutUint64(b[5:], t.rows)
	binary.BigEndian.PutUint64(b[13:], t.sum)
	binary.BigEndian.PutUint32(b[sumAt:], recordSum(b))
	return b
}

// decodeTally tells a newer format from damage: the checksum lies where it does in all formats.
func decodeTally(b []byte) (tally, error) {
	switch {
	case len(b) < summed || recordSum(b) != binary.BigEndian.Uint32(b[sumAt:]):
		return tally{}, damaged("the record of its rows has a wrong checksum")
	case b[0] != formatVersion:
		return tally{}, fmt.Errorf("%w %d, which this program does not know (it knows %d): use a newer one", errVersion, b[0], formatVersion)
	case len(b) != recordSize:
		return tally{}, damaged("the record of its rows has %d bytes", len(b))
	}
	return tally{rows: binary.BigEndian.Uint64(b[5:]), sum: binary.BigEndian.Uint64(b[13:])}, nil
}

// recordSum covers the version too.
func recordSum(b []byte) uint32 {
	return sum(append(recordKey[:len(recordKey):len(recordKey)], b[0]), b)
}

// readTally returns the record in a transaction.
func readTally(tx *bolt.Tx) (tally, error) { return decodeTally(tx.Bucket(recordName).Get(recordKey)) }

func (t tally) write(tx *bolt.Tx) error { return tx.Bucket(recordName).Put(recordKey, t.encode()) }
