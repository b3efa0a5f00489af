package segments_test

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
	"slices"
	"testing"
	"testing/iotest"

	"pgregory.net/rapid"

	"github.com/varvelog/varve/segments"
)

func TestBody(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		parts := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 20), 0, 12).Draw(r, "parts")
		want := slices.Concat(parts...)
		body := segments.NewBody(parts...)
		if body.Size() != int64(len(want)) || !bytes.Equal(segments.Bytes(body), want) {
			r.Fatalf("%d bytes of %d", body.Size(), len(want))
		}
		if sum := crc32.Checksum(want, crc32.MakeTable(crc32.Castagnoli)); segments.CRC32C(body) != sum {
			r.Fatalf("CRC32C = %x, want %x", segments.CRC32C(body), sum)
		}
		// TestReader reads, seeks and reads at many places.
		if err := iotest.TestReader(segments.NewReader(body), want); err != nil {
			r.Fatal(err)
		}
		section := io.NewSectionReader(body, 0, body.Size())
		if err := iotest.TestReader(section, want); err != nil {
			r.Fatal(err)
		}
		reader := segments.NewReader(body)
		offset := rapid.Int64Range(0, body.Size()).Draw(r, "offset")
		if _, err := reader.Seek(offset, io.SeekStart); err != nil {
			r.Fatal(err)
		}
		var out bytes.Buffer
		if n, err := reader.(io.WriterTo).WriteTo(&out); err != nil || n != int64(len(want))-offset || !bytes.Equal(out.Bytes(), want[offset:]) {
			r.Fatalf("WriteTo from %d: %d, %v", offset, n, err)
		}
		if n, err := reader.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			r.Fatalf("Read after all: %d, %v", n, err)
		}
	})
}

func TestBodyRefuses(t *testing.T) {
	body := segments.NewBody([]byte("abc"))
	if _, err := body.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("ReadAt before the start")
	}
	if _, err := segments.NewReader(body).Seek(-1, io.SeekStart); err == nil {
		t.Error("Seek before the start")
	}
	failing := errors.New("failing")
	_, err := segments.NewReader(body).(io.WriterTo).WriteTo(writerFunc(func([]byte) (int, error) { return 0, failing }))
	if !errors.Is(err, failing) {
		t.Errorf("WriteTo a failing writer: %v", err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
