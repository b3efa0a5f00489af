package segments

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ResolveRange says which bytes [Store.Get] returns of an object of size bytes.
func ResolveRange(offset, length, size int64) (start, count int64) {
	if offset < 0 {
		start = max(0, size+offset)
		return start, size - start
	}
	if offset >= size {
		return size, 0
	}
	if length < 0 {
		return offset, size - offset
	}
	return offset, min(length, size-offset)
}

// RangeHeader is the HTTP Range header that asks for what [Store.Get] returns, if
// length is not 0. It is empty for the whole object: some stores refuse a range of an
// empty one.
func RangeHeader(offset, length int64) string {
	switch {
	case offset < 0:
		return fmt.Sprintf("bytes=%d", max(offset, -math.MaxInt64)) // -n: the last n
	case length < 0 && offset == 0:
		return ""
	case length < 0 || length > math.MaxInt64-offset:
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// ParseContentRange reads the header of the answer, "bytes 3-7/10", and checks that it
// is what was asked for: a store that ignores ranges must not pass for one that
// cuts them. It returns how many bytes follow, and the object's size.
func ParseContentRange(header string, offset, length int64) (count, size int64, err error) {
	fail := fmt.Errorf("%w: the store answered a read of %d bytes at %d with the range %q",
		ErrUnavailable, length, offset, header)
	text, isBytes := strings.CutPrefix(header, "bytes ")
	span, total, hasTotal := strings.Cut(text, "/")
	first, last, hasLast := strings.Cut(span, "-")
	if !isBytes || !hasTotal || !hasLast {
		return 0, 0, fail
	}
	size, sizeErr := strconv.ParseInt(total, 10, 64)
	start, startErr := strconv.ParseInt(first, 10, 64)
	end, endErr := strconv.ParseInt(last, 10, 64)
	if sizeErr != nil || startErr != nil || endErr != nil || size < 0 {
		return 0, 0, fail
	}
	wantStart, wantCount := ResolveRange(offset, length, size)
	if start != wantStart || end-start+1 != wantCount {
		return 0, 0, fail
	}
	return wantCount, size, nil
}
