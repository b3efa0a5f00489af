package segments

import (
	"bytes"
	"errors"
	"fmt"
	"io"
)

// searchWindow is how much of a damaged file is read at once to find the next frame.
const searchWindow = 64 << 10

// bufferScan is one walk over a buffer file. It holds one frame in memory.
type bufferScan struct {
	in   io.ReaderAt
	size int64
	want bufferHeader // gateway and number by the file's name; the marker is found
	keep bool         // frames outlive the walk: no memory is used twice

	space []byte

	// What was found.
	frames int
	torn   int64
	damage []Damage
}

// run walks over the file and gives every good frame to use, until that returns
// false. The error is one of reading, or ErrVersion: damage is no error here.
func (s *bufferScan) run(use func(frame) bool) error {
	bad, err := s.findMarker()
	if err != nil || s.want.marker == (marker{}) {
		return err
	}
	position, next := int64(bufferHeaderSize), uint32(0)
	for position < s.size {
		f, size, err := s.frameAt(position)
		if err != nil {
			return err
		}
		if size == 0 || f.index < next {
			if bad < 0 {
				bad = position
			}
			if position, err = s.search(position + 1); err != nil {
				return err
			}
			continue
		}
		// The index rises by one, so it tells how many frames are lost before this one.
		if bad >= 0 || f.index > next {
			if bad < 0 {
				bad = position
			}
			s.damaged(bad, position, fmt.Sprintf("%d batches are lost before a good one", f.index-next))
			bad = -1
		}
		s.frames++
		if !use(f) {
			return nil
		}
		position, next = position+size, f.index+1
	}
	if bad >= 0 {
		s.torn = s.size - bad
	}
	return nil
}

func (s *bufferScan) damaged(from, to int64, reason string) {
	s.damage = append(s.damage, Damage{Position: from, Length: to - from, Reason: reason})
}

// findMarker reads the header. It returns where the first bad stretch starts, or -1
// while all is well. Without a marker nothing can be read, and it has noted why.
func (s *bufferScan) findMarker() (bad int64, err error) {
	in := make([]byte, min(s.size, bufferHeaderSize+frameHeadSize))
	if err := readFull(s.in, in, 0); err != nil {
		return 0, err
	}
	if len(in) < bufferHeaderSize {
		s.torn = s.size
		return 0, nil
	}
	header, err := parseBufferHeader(in[:bufferHeaderSize])
	switch {
	case errors.Is(err, ErrVersion):
		return 0, err
	case err == nil && (header.gateway != s.want.gateway || header.number != s.want.number):
		s.damaged(0, s.size, fmt.Sprintf("the file is that of gateway %s, number %d: give it its name back",
			header.gateway, header.number))
		return 0, nil
	case err == nil:
		s.want.marker = header.marker
		return -1, nil
	}
	return 0, s.markerOfFirstFrame(in[bufferHeaderSize:])
}

// markerOfFirstFrame helps when the header is damaged: the first frame's place is
// known, and it starts with the marker too.
func (s *bufferScan) markerOfFirstFrame(in []byte) error {
	if len(in) == frameHeadSize {
		s.want.marker = marker(in)
		_, size, err := s.frameAt(bufferHeaderSize)
		if err != nil || size > 0 {
			return err
		}
		s.want.marker = marker{}
	}
	zero, err := s.zeroFrom(bufferHeaderSize)
	if err != nil {
		return err
	}
	if zero {
		s.torn = s.size // nothing of it was ever synced
		return nil
	}
	s.damaged(0, s.size, "header and first frame are damaged, so no frame can be told from a record's bytes")
	return nil
}

// frameAt reads the frame at a position; its size is 0 if there is no good one.
func (s *bufferScan) frameAt(position int64) (frame, int64, error) {
	if s.size-position <= frameHeadSize {
		return frame{}, 0, nil
	}
	s.grow(frameHeadSize)
	if err := readFull(s.in, s.space, position); err != nil {
		return frame{}, 0, err
	}
	size := frameSize(s.space, s.want.marker)
	if size == 0 || size > s.size-position {
		return frame{}, 0, nil
	}
	s.grow(int(size))
	if err := readFull(s.in, s.space[frameHeadSize:], position+frameHeadSize); err != nil {
		return frame{}, 0, err
	}
	f, ok := parseFrame(s.space)
	if !ok {
		return frame{}, 0, nil
	}
	if s.keep {
		s.space = nil
	}
	return f, size, nil
}

// grow makes space n bytes long and keeps what it holds.
func (s *bufferScan) grow(n int) {
	if cap(s.space) < n {
		s.space = append(make([]byte, 0, n), s.space...)
	}
	s.space = s.space[:n]
}

// search returns the first place from a position on at which the marker lies, or the
// file's end.
func (s *bufferScan) search(from int64) (int64, error) {
	window := make([]byte, min(searchWindow, max(0, s.size-from)))
	for s.size-from >= markerSize {
		window = window[:min(int64(len(window)), s.size-from)]
		if err := readFull(s.in, window, from); err != nil {
			return 0, err
		}
		if i := bytes.Index(window, s.want.marker[:]); i >= 0 {
			return from + int64(i), nil
		}
		from += int64(len(window)) - markerSize + 1
	}
	return s.size, nil
}

// zeroFrom tells whether the file holds nothing but zeros from a position on.
func (s *bufferScan) zeroFrom(from int64) (bool, error) {
	window := make([]byte, min(searchWindow, s.size-from))
	for from < s.size {
		window = window[:min(int64(len(window)), s.size-from)]
		if err := readFull(s.in, window, from); err != nil {
			return false, err
		}
		for _, b := range window {
			if b != 0 {
				return false, nil
			}
		}
		from += int64(len(window))
	}
	return true, nil
}

// readFull fills p. That the file ends early is an error like any other: it is locked.
func readFull(in io.ReaderAt, p []byte, position int64) error {
	n, err := in.ReadAt(p, position)
	if n == len(p) {
		return nil
	}
	return fmt.Errorf("read %d bytes at %d: %w", len(p), position, err)
}
