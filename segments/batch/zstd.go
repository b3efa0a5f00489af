package batch

import "github.com/klauspost/compress/zstd"

// zstdDecoder serves all goroutines, one at a time on each CPU. It is made when the
// program starts, not at first use: it holds a channel, and one that was made in a
// testing/synctest bubble could not be used outside of it.
var zstdDecoder = newZstdDecoder()

func newZstdDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(0),   // as many as there are CPUs
		zstd.WithDecodeAllCapLimit(true), // the capacity that we give is the limit
		zstd.WithDecoderLowmem(true),
	)
	if err != nil {
		panic(err) // the options are constant
	}
	return d
}

// inflateZstd reads one zstd frame or several. The decoder takes no limit for a call,
// except the room that it is given, and does not tell when that was too little. So the
// room is known before: enough for whatever the frames may hold, or little more than
// the limit, and then any failure counts as too large.
func (s *scratch) inflateZstd(src []byte, limit int) error {
	told, most := zstdSize(src)
	if told > uint64(limit) {
		return tooInflated(limit)
	}
	room := int(min(most, uint64(limit)+zstdMaxBlock))
	s.buf = s.buf[:0]
	s.grow(room, room)
	out, err := zstdDecoder.DecodeAll(src, s.buf[:0:min(room, cap(s.buf))])
	switch {
	case len(out) > limit, err != nil && most > uint64(limit):
		return tooInflated(limit)
	case err != nil:
		return err
	}
	s.buf = out
	return nil
}

// zstdMaxBlock is the most that a block of a zstd frame may hold.
const zstdMaxBlock = 128 << 10

// Types of zstd blocks.
const (
	zstdRaw        = 0
	zstdRunLength  = 1
	zstdCompressed = 2
)

// zstdSize walks the frames in src without inflating them and returns how many bytes
// those frames tell to hold that tell it, and the most that all frames may hold. It
// stops where src is no zstd, which the decoder then finds too.
func zstdSize(src []byte) (told, most uint64) {
	for len(src) > 0 {
		var frame zstd.Header
		rest, err := frame.DecodeAndStrip(src)
		if err != nil {
			return told, most
		}
		if frame.Skippable {
			if uint64(frame.SkippableSize) > uint64(len(rest)) {
				return told, most
			}
			src = rest[frame.SkippableSize:]
			continue
		}
		size, rest := zstdBlocks(rest)
		if frame.HasFCS {
			size = frame.FrameContentSize
			told += size
			if told < size { // it wrapped around: nobody has that much
				return size, size
			}
		}
		most += size
		if frame.HasCheckSum {
			rest = rest[min(4, len(rest)):]
		}
		src = rest
	}
	return told, most
}

// zstdBlocks walks the blocks of a frame, returns the most that they hold, and what
// follows them.
func zstdBlocks(b []byte) (most uint64, rest []byte) {
	for len(b) >= 3 {
		header := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16
		last, kind, size := header&1 == 1, header>>1&3, int(header>>3)
		b = b[3:]
		stored := size
		switch kind {
		case zstdRaw:
			most += uint64(size)
		case zstdRunLength:
			most += uint64(size)
			stored = 1
		case zstdCompressed:
			most += zstdMaxBlock
		default:
			return most, nil
		}
		b = b[min(stored, len(b)):]
		if last {
			return most, b
		}
	}
	return most, nil
}
