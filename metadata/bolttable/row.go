package bolttable

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/varvelog/varve/metadata"
)

const (
	rowVersion = 1
	// headSize is what stands before a row's value; the checksum covers it from summed on.
	headSize = 29
	summed   = 5
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// keyPrefix is what the stored keys of a partition begin with, and no others.
func keyPrefix(partition string) []byte {
	k := make([]byte, 0, 2+len(partition)+metadata.MaxSortSize+1)
	k = binary.BigEndian.AppendUint16(k, uint16(len(partition)))
	return append(k, partition...)
}

func storedKey(k metadata.Key) []byte {
	return append(keyPrefix(k.Partition), k.Sort...)
}

func encodeRow(key []byte, r metadata.Row) []byte {
	b := make([]byte, headSize, headSize+len(r.Value))
	b[0] = rowVersion
	binary.BigEndian.PutUint64(b[5:], r.Stamp.Epoch)
	binary.BigEndian.PutUint64(b[13:], r.Stamp.Sequence)
	binary.BigEndian.PutUint64(b[21:], r.Nonce)
	b = append(b, r.Value...)
	binary.BigEndian.PutUint32(b[1:], sum(key, b))
	return b
}

// decodeRow returns the row in stored bytes, its value copied out of them.
func decodeRow(k metadata.Key, key, b []byte) (metadata.Row, error) {
	stamp, err := checkRow(key, b)
	if err != nil {
		return metadata.Row{}, err
	}
	return metadata.Row{
		Key:   k,
		Stamp: stamp,
		Nonce: binary.BigEndian.Uint64(b[21:]),
		Value: append([]byte(nil), b[headSize:]...),
	}, nil
}

// checkRow returns the stamp of the row in stored bytes, or ErrCorrupt.
func checkRow(key, b []byte) (metadata.Stamp, error) {
	switch {
	case len(b) == 0 || len(b) < headSize && b[0] == rowVersion:
		return metadata.Stamp{}, damaged("row %s has %d bytes", rowName(key), len(b))
	case b[0] != rowVersion:
		return metadata.Stamp{}, damaged("row %s has version %d, not known to this program", rowName(key), b[0])
	case sum(key, b) != binary.BigEndian.Uint32(b[1:]):
		return metadata.Stamp{}, damaged("row %s has a wrong checksum", rowName(key))
	}
	return metadata.Stamp{
		Epoch:    binary.BigEndian.Uint64(b[5:]),
		Sequence: binary.BigEndian.Uint64(b[13:]),
	}, nil
}

// rowName is for messages: a stored key may be damaged.
func rowName(key []byte) string {
	if len(key) > 2 {
		if n := int(binary.BigEndian.Uint16(key)); n <= len(key)-2 {
			return fmt.Sprintf("%q", metadata.Key{Partition: string(key[2 : 2+n]), Sort: string(key[2+n:])})
		}
	}
	return fmt.Sprintf("%q", key)
}

func sum(key, b []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, b[summed:])
}
