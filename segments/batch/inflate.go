package batch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/snappy"
	"github.com/pierrec/lz4/v4"
)

const (
	// leastScratch is what inflating starts with when the size is not known.
	leastScratch = 64 << 10
	// keptScratch is the largest buffer that stays in the pool, so that one huge
	// batch does not occupy memory for good.
	keptScratch = 8 << 20
)

// scratch holds what inflating needs again and again.
type scratch struct {
	buf  []byte
	src  bytes.Reader
	gzip gzip.Reader
	lz4  *lz4.Reader
}

var scratches = sync.Pool{New: func() any { return &scratch{lz4: lz4.NewReader(nil)} }}

func takeScratch() *scratch { return scratches.Get().(*scratch) }

// release gives s back; what inflate returned must not be used any more.
func (s *scratch) release() {
	s.src.Reset(nil)
	if cap(s.buf) > keptScratch {
		s.buf = nil
	}
	scratches.Put(s)
}

// inflate returns the records that src holds compressed, in memory of s. It returns ErrTooLarge when they are more than limit bytes, having used little more memory than
// that, ErrInvalid when src is not what its codec writes.
func (s *scratch) inflate(c Codec, src []byte, limit int) ([]byte, error) {
	var err error
	switch c {
	case Gzip:
		err = s.inflateGzip(src, limit)
	case Snappy:
		err = s.inflateSnappy(src, limit)
	case LZ4:
		err = s.inflateLZ4(src, limit)
	case Zstd:
		err = s.inflateZstd(src, limit)
	default:
		return nil, fmt.Errorf("%w: codec %d in the attributes: use one of none, gzip, snappy, lz4, zstd", ErrUnsupported, uint8(c))
	}
	if errors.Is(err, ErrTooLarge) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("%w: the records do not inflate as %s: %w", ErrInvalid, c, err)
	}
	return s.buf, nil
}

func tooInflated(limit int) error {
	return fmt.Errorf("%w: the records inflate to more than the limit of %d bytes", ErrTooLarge, limit)
}

// inflateGzip reads one gzip member or several, as Java's reader does.
func (s *scratch) inflateGzip(src []byte, limit int) error {
	s.src.Reset(src)
	if err := s.gzip.Reset(&s.src); err != nil {
		return unexpectedEOF(err)
	}
	return s.readAll(&s.gzip, limit)
}

const lz4FrameMagic = 0x184D2204

// inflateLZ4 reads LZ4 frames. The reader would also take the legacy format, which
// no Kafka library reads, so the magic is checked here.
func (s *scratch) inflateLZ4(src []byte, limit int) error {
	if len(src) < 4 || binary.LittleEndian.Uint32(src) != lz4FrameMagic {
		return errors.New("no LZ4 frame")
	}
	s.src.Reset(src)
	s.lz4.Reset(&s.src)
	err := s.readAll(s.lz4, limit)
	s.lz4.Reset(nil) // gives its buffers back
	return err
}

// readAll fills s.buf from r until its end, or to one byte over the limit.
func (s *scratch) readAll(r io.Reader, limit int) error {
	s.buf = s.buf[:0]
	for {
		if len(s.buf) == cap(s.buf) {
			s.grow(len(s.buf)*2, limit+1)
		}
		free := s.buf[len(s.buf):min(cap(s.buf), limit+1)]
		n, err := r.Read(free)
		s.buf = s.buf[:len(s.buf)+n]
		if len(s.buf) > limit {
			return tooInflated(limit)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// grow makes room for size bytes in all, but at least leastScratch and at most most;
// what is in the buffer stays.
func (s *scratch) grow(size, most int) {
	size = min(max(size, leastScratch), most)
	if size > cap(s.buf) {
		s.buf = append(make([]byte, 0, size), s.buf...)
	}
}

// xerialMagic begins the framing that Java's snappy library writes, and with it
// Kafka's Java clients: this magic, two versions of 4 bytes, and then blocks, each
// behind its size in 4 bytes. Other libraries write one bare block.
var xerialMagic = []byte("\x82SNAPPY\x00")

const xerialHeaderSize = 16

func (s *scratch) inflateSnappy(src []byte, limit int) error {
	s.buf = s.buf[:0]
	if !bytes.HasPrefix(src, xerialMagic) {
		return s.inflateBlock(src, limit)
	}
	if len(src) < xerialHeaderSize {
		return io.ErrUnexpectedEOF
	}
	for src = src[xerialHeaderSize:]; len(src) > 0; {
		if len(src) < 4 {
			return io.ErrUnexpectedEOF
		}
		size := binary.BigEndian.Uint32(src)
		src = src[4:]
		if uint64(size) > uint64(len(src)) {
			return io.ErrUnexpectedEOF
		}
		if err := s.inflateBlock(src[:size], limit); err != nil {
			return err
		}
		src = src[size:]
	}
	return nil
}

// inflateBlock appends what a snappy block holds.
func (s *scratch) inflateBlock(block []byte, limit int) error {
	size, err := snappy.DecodedLen(block)
	if err != nil {
		return err
	}
	if size > limit-len(s.buf) {
		return tooInflated(limit)
	}
	used := len(s.buf)
	if used+size > cap(s.buf) {
		s.grow(max(used+size, 2*used), limit)
	}
	// Strict, because the faster decoder takes an extension that no other library
	// reads. Room of exactly the size makes it write here, and not elsewhere.
	if _, err := snappy.DecodeStrict(s.buf[used:used+size:used+size], block); err != nil {
		return err
	}
	s.buf = s.buf[:used+size]
	return nil
}

func unexpectedEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
