package segments_test

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/segments"
)

func TestObjectKey(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		id := rapid.StringMatching(`[a-zA-Z0-9-]{1,64}`)
		cluster, gateway := segments.ClusterID(id.Draw(r, "cluster")), segments.GatewayID(id.Draw(r, "gateway"))
		number := rapid.Uint64Range(1, math.MaxUint64).Draw(r, "number")
		key := segments.ObjectKey(cluster, gateway, number)
		if err := segments.ValidateKey(key); err != nil {
			r.Fatal(err)
		}
		c, g, n, err := segments.ParseObjectKey(key)
		if err != nil || c != cluster || g != gateway || n != number {
			r.Fatalf("ParseObjectKey(%q) = %q, %q, %d, %v", key, c, g, n, err)
		}
		if other := rapid.Uint64Range(1, math.MaxUint64).Draw(r, "other"); (segments.ObjectKey(cluster, gateway, other) < key) != (other < number) {
			r.Fatalf("keys of %d and %d sort otherwise", other, number)
		}
	})
	if got, want := segments.ObjectKey("c", "g", 7), "c/g/00000000000000000007.seg"; got != want {
		t.Errorf("ObjectKey = %q, want %q", got, want)
	}
	const digits = "00000000000000000007"
	for _, key := range []string{
		"", "c/g/7.seg", "c/g/" + digits, "c/g/" + digits + ".tmp", "c/g/00000000000000000000.seg", "c/" + digits + ".seg",
		"p/c/g/" + digits + ".seg", "/g/" + digits + ".seg", "c//" + digits + ".seg", "c/g/+0000000000000000007.seg",
		"c/g/0" + digits + ".seg", "c/g/99999999999999999999.seg", "c/g_/" + digits + ".seg", "../g/" + digits + ".seg",
		strings.Repeat("c", 65) + "/g/" + digits + ".seg", "c/generation/" + digits, "c/g/0x000000000000000007.seg", "c/g/0000000000000000000_.seg",
	} {
		if c, g, n, err := segments.ParseObjectKey(key); err == nil {
			t.Errorf("ParseObjectKey(%q) = %q, %q, %d", key, c, g, n)
		}
	}
}

func TestTopicID(t *testing.T) {
	id := segments.TopicID{0: 0xab, 15: 1}
	const text = "ab000000000000000000000000000001"
	if id.String() != text {
		t.Errorf("String = %q", id)
	}
	if written, err := id.MarshalText(); err != nil || string(written) != text {
		t.Errorf("MarshalText = %q, %v", written, err)
	}
	var read segments.TopicID
	if err := read.UnmarshalText([]byte(text)); err != nil || read != id {
		t.Errorf("UnmarshalText = %v, %v", read, err)
	}
	for _, bad := range []string{"", text[1:], text + "0", strings.ToUpper(text), "x" + text[1:], " " + text[1:]} {
		if err := read.UnmarshalText([]byte(bad)); err == nil || read != id {
			t.Errorf("UnmarshalText(%q): %v, %v", bad, err, read)
		}
	}
}

func TestRanges(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(0, 20), rapid.Int64Range(0, math.MaxInt64)).Draw(r, "size")
		offset := rapid.OneOf(rapid.Int64Range(-25, 25), rapid.Int64()).Draw(r, "offset")
		length := rapid.OneOf(rapid.Int64Range(-2, 25), rapid.Int64()).Draw(r, "length")
		start, count := segments.ResolveRange(offset, length, size)
		if start < 0 || count < 0 || start > size || count > size-start {
			r.Fatalf("ResolveRange(%d, %d, %d) = %d, %d", offset, length, size, start, count)
		}
		if offset >= 0 && offset < size && start != offset || offset >= 0 && length >= 0 && count > length {
			r.Fatalf("ResolveRange(%d, %d, %d) = %d, %d", offset, length, size, start, count)
		}
	})
	for header, want := range map[string]string{
		segments.RangeHeader(0, -1): "", segments.RangeHeader(0, 5): "bytes=0-4", segments.RangeHeader(5, -1): "bytes=5-",
		segments.RangeHeader(5, math.MaxInt64): "bytes=5-", segments.RangeHeader(-7, 3): "bytes=-7",
		segments.RangeHeader(math.MinInt64, 0): "bytes=-9223372036854775807",
	} {
		if header != want {
			t.Errorf("RangeHeader = %q, want %q", header, want)
		}
	}
	if count, size, err := segments.ParseContentRange("bytes 3-9/10", 3, 100); err != nil || count != 7 || size != 10 {
		t.Errorf("ParseContentRange = %d, %d, %v", count, size, err)
	}
	for _, bad := range []string{
		"", "bytes 0-9/10", "bytes 3-6/10", "bytes 3-4/10", "bytes 3-5/*", "bytes */10", "3-5/10", "bytes 3-5", "bytes 3/10",
		"bytes 3-5/-10", "bytes a-5/10", "bytes 3-5/4",
	} {
		if count, size, err := segments.ParseContentRange(bad, 3, 3); err == nil {
			t.Errorf("ParseContentRange(%q) = %d, %d", bad, count, size)
		}
	}
}
