package segments

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"
)

// readingStore reads each body it is given so many times, and fails the first puts.
type readingStore struct {
	Store
	reads, fails int
}

func (s *readingStore) Put(_ context.Context, _ string, body Body) error {
	r := NewReader(body)
	for range s.reads {
		if _, err := io.Copy(io.Discard, r); err != nil {
			return err
		}
		if _, err := r.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if s.fails--; s.fails >= 0 {
		return ErrUnavailable
	}
	return nil
}

// TestRepeated tells of bodies that somebody may still read when they were put.
func TestRepeated(t *testing.T) {
	for _, c := range []struct {
		reads, fails int
		want         bool
	}{{0, 0, false}, {1, 0, false}, {2, 0, true}, {0, 1, true}, {1, 1, true}} {
		body := NewBody([]byte("a"), []byte("bc"))
		store := Retry(&readingStore{reads: c.reads, fails: c.fails}, RetryConfig{Tries: 3, MinWait: time.Nanosecond, MaxWait: time.Nanosecond})
		if err := store.Put(t.Context(), "key", body); err != nil && !errors.Is(err, ErrUnavailable) {
			t.Fatal(err)
		}
		if got := body.Repeated(); got != c.want {
			t.Errorf("read %d times, failed %d times: repeated %v, want %v", c.reads, c.fails, got, c.want)
		}
	}
}
