package segments

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"sync/atomic"
)

// Parts is a [Body] made of slices that lie apart in memory. It copies nothing; the
// slices must not change as long as it is in use.
type Parts struct {
	parts [][]byte
	ends  []int64 // of each part, in the body
	sums  *knownSums
	// tried is how often [Retry] had it put, begun how often it was read from the start by a reader.
	tried, begun atomic.Int32
}

// NewBody returns a body of the parts, one after the other.
func NewBody(parts ...[]byte) *Parts {
	s := &Parts{parts: parts, ends: make([]int64, len(parts))}
	var end int64
	for i, part := range parts {
		end += int64(len(part))
		s.ends[i] = end
	}
	return s
}

// Size is the length in bytes.
func (s *Parts) Size() int64 {
	if len(s.ends) == 0 {
		return 0
	}
	return s.ends[len(s.ends)-1]
}

// Slices returns the parts.
func (s *Parts) Slices() [][]byte { return s.parts }

// Repeated says that it was put more than once by [Retry], or its readers (see [NewReader]) were read from the start more than
// once: a try failed, and whoever sends it may not have noticed yet, and still read.
func (s *Parts) Repeated() bool { return s.tried.Load() > 1 || s.begun.Load() > 1 }

// partsOf is what a body is made of, nil if it is not known.
func partsOf(body Body) *Parts {
	switch b := body.(type) {
	case *Object:
		return b.Parts
	case *Parts:
		return b
	}
	return nil
}

// find returns the part in which the byte at offset lies, and its place there.
func (s *Parts) find(offset int64) (part int, within int64) {
	// The first part that ends beyond it; empty parts never do.
	part = sort.Search(len(s.ends), func(i int) bool { return s.ends[i] > offset })
	if part == len(s.ends) {
		return part, 0
	}
	return part, offset - (s.ends[part] - int64(len(s.parts[part])))
}

// ReadAt implements io.ReaderAt.
func (s *Parts) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("segments: read at negative offset %d", offset)
	}
	n := 0
	part, within := s.find(offset)
	for ; part < len(s.parts) && n < len(p); part++ {
		n += copy(p[n:], s.parts[part][within:])
		within = 0
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// NewReader returns a reader of the body from its start. It hands whole slices to a
// writer (io.WriterTo), seeks at no cost, and serves one goroutine. SDKs that sign,
// measure or repeat a request read the body this way.
func NewReader(body Body) io.ReadSeeker {
	if parts := partsOf(body); parts != nil {
		return &bodyReader{body: parts}
	}
	return &bodyReader{body: NewBody(body.Slices()...)}
}

type bodyReader struct {
	body   *Parts
	offset int64
	// part and within say where offset lies, so that reading on needs no search.
	part   int
	within int64
}

func (r *bodyReader) Read(p []byte) (int, error) {
	r.begin(len(p))
	n := 0
	for n < len(p) && r.part < len(r.body.parts) {
		copied := copy(p[n:], r.body.parts[r.part][r.within:])
		n += copied
		r.within += int64(copied)
		if r.within == int64(len(r.body.parts[r.part])) {
			r.part, r.within = r.part+1, 0
		}
	}
	r.offset += int64(n)
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (r *bodyReader) begin(wanted int) {
	if r.offset == 0 && wanted > 0 {
		r.body.begun.Add(1)
	}
}

func (r *bodyReader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += r.offset
	case io.SeekEnd:
		offset += r.body.Size()
	}
	if offset < 0 {
		return 0, errors.New("segments: seek before the start")
	}
	r.offset = offset
	r.part, r.within = r.body.find(offset)
	return offset, nil
}

func (r *bodyReader) WriteTo(w io.Writer) (int64, error) {
	r.begin(1)
	var total int64
	for r.part < len(r.body.parts) {
		n, err := w.Write(r.body.parts[r.part][r.within:])
		total += int64(n)
		r.offset += int64(n)
		r.within += int64(n)
		if err != nil {
			return total, err
		}
		r.part, r.within = r.part+1, 0
	}
	return total, nil
}

// Bytes returns the body in one new slice.
func Bytes(body Body) []byte {
	data := make([]byte, 0, body.Size())
	for _, part := range body.Slices() {
		data = append(data, part...)
	}
	return data
}
