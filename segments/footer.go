package segments

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// footer is the fixed end of a segment.
type footer struct {
	directoryPosition int64
	directoryLength   int
	directoryCRC      uint32
	spans             int
	batches           int
	size              int64 // of the object
}

func appendHeader(out []byte) []byte {
	out = append(out, headerMagic...)
	out = binary.BigEndian.AppendUint32(out, Version)
	return binary.BigEndian.AppendUint32(out, 0)
}

func appendFooter(out []byte, f footer) []byte {
	start := len(out)
	out = binary.BigEndian.AppendUint64(out, uint64(f.directoryPosition))
	out = binary.BigEndian.AppendUint32(out, uint32(f.directoryLength))
	out = binary.BigEndian.AppendUint32(out, f.directoryCRC)
	out = binary.BigEndian.AppendUint32(out, uint32(f.spans))
	out = binary.BigEndian.AppendUint32(out, uint32(f.batches))
	out = binary.BigEndian.AppendUint64(out, uint64(f.size))
	out = binary.BigEndian.AppendUint32(out, 0)
	out = binary.BigEndian.AppendUint32(out, Version)
	out = append(out, footerMagic...)
	binary.BigEndian.PutUint32(out[start+32:], footerCRC(out[start:]))
	return out
}

// footerCRC covers all of the footer but the checksum itself.
func footerCRC(in []byte) uint32 {
	return crc32.Update(crc32.Checksum(in[:32], castagnoli), castagnoli, in[36:footerSize])
}

// checkVersion tells a newer format from damage. Magic and version are looked at
// before anything else, because nothing else is known to keep its place.
func checkVersion(magic []byte, want string, version []byte) error {
	if string(magic) != want {
		return fmt.Errorf("%w: not a segment: magic %q, want %q", ErrCorrupt, magic, want)
	}
	found := binary.BigEndian.Uint32(version)
	if found == 0 {
		return fmt.Errorf("%w: format version 0", ErrCorrupt)
	}
	if found > Version {
		return fmt.Errorf("%w: the object has version %d, this program reads up to %d: use a newer varve",
			ErrVersion, found, Version)
	}
	return nil
}

// parseFooter reads the footer at the end of tail, which is the end of an object of
// size bytes.
func parseFooter(tail []byte, size int64) (footer, error) {
	if len(tail) < footerSize || size < headerSize+footerSize {
		return footer{}, fmt.Errorf("%w: %d bytes are too few for a segment", ErrCorrupt, size)
	}
	in := tail[len(tail)-footerSize:]
	if err := checkVersion(in[40:], footerMagic, in[36:40]); err != nil {
		return footer{}, err
	}
	if got, want := footerCRC(in), binary.BigEndian.Uint32(in[32:]); got != want {
		return footer{}, fmt.Errorf("%w: footer has CRC-32C %08x, its bytes have %08x", ErrCorrupt, want, got)
	}
	f := footer{
		directoryPosition: int64(binary.BigEndian.Uint64(in)),
		directoryLength:   int(binary.BigEndian.Uint32(in[8:])),
		directoryCRC:      binary.BigEndian.Uint32(in[12:]),
		spans:             int(binary.BigEndian.Uint32(in[16:])),
		batches:           int(binary.BigEndian.Uint32(in[20:])),
		size:              int64(binary.BigEndian.Uint64(in[24:])),
	}
	return f, f.validate(size)
}

func (f footer) validate(size int64) error {
	switch {
	case f.size != size:
		return fmt.Errorf("%w: footer says the object has %d bytes, it has %d", ErrCorrupt, f.size, size)
	case size > MaxObjectSize:
		return fmt.Errorf("%w: object has %d bytes, the most is %d", ErrCorrupt, size, int64(MaxObjectSize))
	case f.directoryLength > MaxDirectorySize:
		return fmt.Errorf("%w: directory has %d bytes, the most is %d", ErrCorrupt, f.directoryLength, MaxDirectorySize)
	case f.batches > MaxBatches || f.spans > f.batches:
		return fmt.Errorf("%w: footer counts %d spans and %d batches", ErrCorrupt, f.spans, f.batches)
	case f.directoryPosition < headerSize || f.directoryPosition != size-footerSize-int64(f.directoryLength):
		return fmt.Errorf("%w: directory of %d bytes at %d does not end at the footer",
			ErrCorrupt, f.directoryLength, f.directoryPosition)
	}
	return nil
}

// parse checks and decodes the directory that the footer describes.
func (f footer) parse(in []byte) (*Directory, error) {
	if got := crc32.Checksum(in, castagnoli); got != f.directoryCRC {
		return nil, fmt.Errorf("%w: directory's bytes have CRC-32C %08x, the footer says %08x", ErrCorrupt, got, f.directoryCRC)
	}
	d, err := parseDirectory(in, f.spans)
	if err != nil {
		return nil, fmt.Errorf("%w: directory: %w", ErrCorrupt, err)
	}
	d.Size = f.size
	last := d.Spans[len(d.Spans)-1]
	if end := last.Position + last.Length; end != f.directoryPosition {
		return nil, fmt.Errorf("%w: spans end at %d, the directory starts at %d", ErrCorrupt, end, f.directoryPosition)
	}
	if n := d.BatchCount(); n != f.batches {
		return nil, fmt.Errorf("%w: directory has %d batches, the footer counts %d", ErrCorrupt, n, f.batches)
	}
	return d, nil
}
