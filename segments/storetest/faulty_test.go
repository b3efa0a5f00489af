package storetest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

func TestFaultyWithoutFaults(t *testing.T) {
	storetest.Run(t, func(*testing.T) segments.Store { return storetest.NewFaulty(memstore.New()) })
}

func TestFaultyPuts(t *testing.T) {
	lost, refused := errors.New("lost"), errors.New("refused")
	never := make(chan struct{})
	close(never)
	tests := []struct {
		name    string
		fault   storetest.Fault
		wantErr error
		exists  bool
	}{
		{"", storetest.Fault{}, nil, true},
		{"before", storetest.Fault{Before: refused}, refused, false},
		{"after", storetest.Fault{After: lost}, lost, true},
		{"hold", storetest.Fault{Hold: func(context.Context) error { return refused }}, refused, false},
		{"late", storetest.Fault{Late: never}, context.DeadlineExceeded, true},
		{"named", storetest.Fault{Name: "named", Before: refused}, refused, false},
	}
	for _, test := range tests {
		store := storetest.NewFaulty(memstore.New())
		store.Next(storetest.Put, test.fault)
		err := store.Put(t.Context(), "key", segments.NewBody([]byte("x")))
		if !errors.Is(err, test.wantErr) {
			t.Errorf("%s: Put: %v, want %v", test.name, err, test.wantErr)
		}
		store.Settle()
		if _, _, err := store.Get(t.Context(), "key", 0, -1); (err == nil) != test.exists {
			t.Errorf("%s: Get: %v, want the object to exist: %v", test.name, err, test.exists)
		}
		if test.name != "" && store.Fired(test.name) != 1 || store.Calls(storetest.Put) != 1 {
			t.Errorf("%s: fired %d, %d calls", test.name, store.Fired(test.name), store.Calls(storetest.Put))
		}
	}
}

// A late put lands after its caller gave up, and not before it is let go.
func TestFaultyLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := storetest.NewFaulty(memstore.New())
		release := make(chan struct{})
		store.Next(storetest.Put, storetest.Fault{Late: release})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := store.Put(ctx, "key", segments.NewBody()); !errors.Is(err, segments.ErrUnavailable) {
			t.Errorf("Put: %v", err)
		}
		cancel()
		synctest.Wait()
		if _, _, err := store.Get(t.Context(), "key", 0, -1); !errors.Is(err, segments.ErrNotFound) {
			t.Errorf("Get before it lands: %v", err)
		}
		close(release)
		store.Settle()
		if _, _, err := store.Get(t.Context(), "key", 0, -1); err != nil {
			t.Errorf("Get after it landed: %v", err)
		}
	})
}

func TestFaultyDecide(t *testing.T) {
	store := storetest.NewFaulty(memstore.New())
	if err := store.Put(t.Context(), "key", segments.NewBody([]byte("answer"))); err != nil {
		t.Fatal(err)
	}
	store.Decide(func(call storetest.Call) storetest.Fault {
		if call != (storetest.Call{Op: storetest.Get, Key: "key", N: 2}) {
			return storetest.Fault{}
		}
		return storetest.Fault{Data: func(data []byte) []byte { return data[:3] }}
	})
	for _, want := range []string{"answer", "ans", "answer"} {
		if data, _, err := store.Get(t.Context(), "key", 0, -1); err != nil || string(data) != want {
			t.Errorf("Get = %q, %v; want %q", data, err, want)
		}
	}
	store.Decide(nil)
	store.Next(storetest.Delete, storetest.Fault{Before: segments.ErrDenied})
	store.Next(storetest.List, storetest.Fault{After: segments.ErrUnavailable})
	if err := store.Delete(t.Context(), "key"); !errors.Is(err, segments.ErrDenied) {
		t.Errorf("Delete: %v", err)
	}
	if objects, err := store.List(t.Context(), "", "", 1); objects != nil || !errors.Is(err, segments.ErrUnavailable) {
		t.Errorf("List = %v, %v", objects, err)
	}
}

func TestUnconditional(t *testing.T) {
	store := storetest.NewUnconditional(memstore.New())
	for _, text := range []string{"first", "second"} {
		if err := store.Put(t.Context(), "key", segments.NewBody([]byte(text))); err != nil {
			t.Fatal(err)
		}
	}
	if data, _, err := store.Get(t.Context(), "key", 0, -1); err != nil || string(data) != "second" {
		t.Errorf("Get = %q, %v", data, err)
	}
}
