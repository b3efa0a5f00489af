package segments_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

// forgetful loses what it is given; sticky keeps what it is told to delete; whole
// ignores ranges.
type (
	forgetful struct{ segments.Store }
	sticky    struct{ segments.Store }
	whole     struct{ segments.Store }
	liar      struct{ segments.Store }
)

func (f forgetful) Put(context.Context, string, segments.Body) error { return nil }

func (s sticky) Delete(context.Context, string) error { return nil }

func (w whole) Get(ctx context.Context, key string, _, _ int64) ([]byte, int64, error) {
	return w.Store.Get(ctx, key, 0, -1)
}

// Put of a liar keeps the first and tells everybody that he won.
func (l liar) Put(ctx context.Context, key string, body segments.Body) error {
	if err := l.Store.Put(ctx, key, body); !errors.Is(err, segments.ErrExists) {
		return err
	}
	return nil
}

func TestProbe(t *testing.T) {
	tests := []struct {
		name  string
		wrap  func(segments.Store) segments.Store
		wants []string // nothing: passes
	}{
		{"good", func(s segments.Store) segments.Store { return s }, nil},
		{"replaces", func(s segments.Store) segments.Store { return storetest.NewUnconditional(s) },
			[]string{"ignores conditions", "16 of 16 creates", `"replaced" instead of "varve probe"`}},
		{"lies", func(s segments.Store) segments.Store { return liar{s} }, []string{"ignores conditions", "16 of 16 creates"}},
		{"forgets", func(s segments.Store) segments.Store { return forgetful{s} }, []string{"just written is not found"}},
		{"keeps", func(s segments.Store) segments.Store { return sticky{s} }, []string{"deleted object is still read"}},
		{"ignores ranges", func(s segments.Store) segments.Store { return whole{s} }, []string{"read of a range", "read of the end"}},
	}
	for _, test := range tests {
		below := storetest.NewFaulty(memstore.New())
		err := segments.Probe(t.Context(), test.wrap(below), "c/probe")
		var failed *segments.ProbeError
		if (len(test.wants) > 0) != errors.As(err, &failed) || len(test.wants) == 0 && err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
		for _, want := range test.wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", test.name, err, want)
			}
		}
		if below.Calls(storetest.List) != 0 {
			t.Errorf("%s: the probe lists", test.name)
		}
		if left, err := below.List(t.Context(), "", "", 10); test.name != "keeps" && (err != nil || len(left) > 0) {
			t.Errorf("%s: left %v, %v", test.name, left, err)
		}
	}
}

// A store that cannot be asked is not one that misbehaves.
func TestProbeErrors(t *testing.T) {
	for _, op := range []segments.Op{segments.OpPut, segments.OpGet, segments.OpDelete} {
		for _, cause := range []error{segments.ErrUnavailable, segments.ErrDenied, segments.ErrNoBucket} {
			store := storetest.NewFaulty(memstore.New())
			store.Decide(func(call storetest.Call) storetest.Fault {
				if call.Op == op {
					return storetest.Fault{Before: cause}
				}
				return storetest.Fault{}
			})
			err := segments.Probe(t.Context(), store, "c/probe")
			var failed *segments.ProbeError
			if !errors.Is(err, cause) || errors.As(err, &failed) {
				t.Errorf("%s fails: %v, want %v", op, err, cause)
			}
		}
	}
}

// Lost answers are not held against a store.
func TestProbeWithLostAnswers(t *testing.T) {
	below := storetest.NewFaulty(memstore.New())
	below.Decide(func(call storetest.Call) storetest.Fault {
		if call.Op == storetest.Put && call.N%2 == 1 {
			return storetest.Fault{After: segments.ErrUnavailable}
		}
		return storetest.Fault{}
	})
	if err := segments.Probe(t.Context(), below, "c/probe"); err != nil {
		t.Error(err)
	}
	if below.Fired("after") == 0 {
		t.Error("no answer was lost")
	}
}

// late has writes that are held take effect after the second Delete.
type late struct {
	*storetest.Faulty
	deletes int
	landing chan struct{}
}

func (l *late) Delete(ctx context.Context, key string) error {
	err := l.Faulty.Delete(ctx, key)
	if l.deletes++; l.deletes == 2 {
		close(l.landing)
		l.Settle()
	}
	return err
}

// A write that comes late makes a good store look like one that keeps what it is told to delete. That
// says nothing about it, and the next probe passes.
func TestProbeWithLateWrite(t *testing.T) {
	store := &late{Faulty: storetest.NewFaulty(memstore.New()), landing: make(chan struct{})}
	store.Next(storetest.Put, storetest.Fault{Late: store.landing})
	err := segments.Probe(t.Context(), store, "c/probe")
	if !errors.Is(err, segments.ErrUnavailable) || errors.As(err, new(*segments.ProbeError)) || !strings.Contains(err.Error(), "deleted object is still read") {
		t.Errorf("%v, want ErrUnavailable with what it looks like", err)
	}
	if err := segments.Probe(t.Context(), store, "c/probe"); err != nil {
		t.Errorf("the next one: %v", err)
	}
}
