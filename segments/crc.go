package segments

import (
	"hash/crc32"
	"sync/atomic"
)

// worthCombining is the length, in bytes, from which on a known CRC is put into a body's instead of going over
// the bytes: putting it there takes about a microsecond.
const worthCombining = 64 << 10

// knownSums are CRC-32Cs of parts of a body, by what was checked before: of part i all bytes but the
// first skip, if there is one.
type knownSums struct {
	skip int
	of   map[int]uint32
	used atomic.Bool
}

// CRC32C is the CRC-32C (Castagnoli) of the whole body. Those of a segment's large batches, if its builder knows them, are
// taken as they are the first time. If it is asked for again, the object was refused, or its answer lost: then all bytes are
// gone over, so that a bit that flipped in memory does not have a store refuse the object for ever.
func CRC32C(body Body) uint32 {
	var known *knownSums
	if parts := partsOf(body); parts != nil {
		known = parts.sums
	}
	if known != nil && known.used.Swap(true) {
		known = nil
	}
	var sum uint32
	for i, part := range body.Slices() {
		if known != nil && len(part) >= worthCombining {
			if of, ok := known.of[i]; ok {
				sum = crc32.Update(sum, castagnoli, part[:known.skip])
				sum = combine(sum, of, len(part)-known.skip)
				continue
			}
		}
		sum = crc32.Update(sum, castagnoli, part)
	}
	return sum
}

// combine is the CRC of bytes with the CRC first, and n bytes after them with the CRC second. Bits are
// coefficients of polynomials modulo that of Castagnoli, the highest one that of x^0, as in zlib: n bytes more multiply
// what came before by x^(8n).
func combine(first, second uint32, n int) uint32 {
	shift := uint32(1) << 31 // x^0
	for k := 3; n > 0; k, n = k+1, n>>1 {
		if n&1 != 0 {
			shift = multiply(powers[k], shift)
		}
	}
	return multiply(shift, first) ^ second
}

// powers has x^(2^k).
var powers = func() (p [66]uint32) {
	p[0] = 1 << 30
	for k := 1; k < len(p); k++ {
		p[k] = multiply(p[k-1], p[k-1])
	}
	return p
}()

func multiply(a, b uint32) uint32 {
	var product uint32
	for bit := uint32(1) << 31; bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		if b&1 != 0 {
			b = b>>1 ^ crc32.Castagnoli
		} else {
			b >>= 1
		}
	}
	return product
}
