package segments

import (
	"context"
	"fmt"
	"strings"
)

// What every backend does the same way, so that they differ in nothing but their
// store.

const (
	// maxKey leaves room for a prefix within the 1,024 bytes that S3 allows.
	maxKey = 768
	// maxKeyPart is what file systems allow for a name.
	maxKeyPart = 255
)

// ValidateKey refuses what is not a key of a [Store]: at most 768 bytes of parts
// between slashes, each 1 to 255 of [a-zA-Z0-9._-] and neither "." nor "..".
func ValidateKey(key string) error {
	if len(key) > maxKey {
		return fmt.Errorf("segments: key %.80q… has %d bytes, the most is %d", key, len(key), maxKey)
	}
	for part := range strings.SplitSeq(key, "/") {
		if part == "" || part == "." || part == ".." || len(part) > maxKeyPart {
			return fmt.Errorf("segments: key %q: %q cannot be a part of it", key, part)
		}
		for i := range len(part) {
			if !isKeyByte(part[i]) {
				return fmt.Errorf("segments: key %q: byte %q is not one of a-z, A-Z, 0-9, '.', '_' and '-'", key, part[i])
			}
		}
	}
	return nil
}

func isKeyByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-'
}

// CheckCall is what a backend does first: it refuses a bad key and a context that has
// ended.
func CheckCall(ctx context.Context, key string) error {
	if err := ValidateKey(key); err != nil {
		return err
	}
	return Interrupted(ctx)
}

// Interrupted returns nil, or the error of a call whose context has ended: it wraps
// the context's error and [ErrUnavailable].
func Interrupted(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return nil
}
