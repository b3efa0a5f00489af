package segments_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

var fastRetry = segments.RetryConfig{Tries: 4, MinWait: time.Millisecond, MaxWait: 4 * time.Millisecond, TryTimeout: time.Minute}

func TestDecoratorsKeepTheContract(t *testing.T) {
	storetest.Run(t, func(*testing.T) segments.Store {
		return segments.Retry(segments.Hedge(segments.Observe(memstore.New(), segments.Observer{}), segments.HedgeConfig{}), fastRetry)
	})
}

func TestRetryConfig(t *testing.T) {
	if err := segments.DefaultRetry().Validate(); err != nil {
		t.Error(err)
	}
	for _, bad := range []segments.RetryConfig{
		{}, {Tries: 1, MinWait: 2, MaxWait: 1}, {Tries: 0, MinWait: 1, MaxWait: 1}, {Tries: 1, MinWait: 1, MaxWait: 1, TryTimeout: -1},
	} {
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}

// calls makes one call of each kind.
func calls(ctx context.Context, store segments.Store) map[segments.Op]error {
	_, _, getErr := store.Get(ctx, "there", 0, -1)
	_, listErr := store.List(ctx, "", "", 1)
	return map[segments.Op]error{
		segments.OpPut: store.Put(ctx, "new", segments.NewBody([]byte("x"))), segments.OpGet: getErr,
		segments.OpDelete: store.Delete(ctx, "absent"), segments.OpList: listErr,
	}
}

func TestRetry(t *testing.T) {
	unavailable := storetest.Fault{Before: segments.ErrUnavailable}
	tests := []struct {
		name      string
		faults    []storetest.Fault
		want      error
		wantTries int
	}{
		{"at once", nil, nil, 1},
		{"third try", []storetest.Fault{unavailable, unavailable}, nil, 3},
		{"last try", []storetest.Fault{unavailable, unavailable, unavailable}, nil, 4},
		{"never", []storetest.Fault{unavailable, unavailable, unavailable, unavailable}, segments.ErrUnavailable, 4},
		{"denied", []storetest.Fault{{Before: segments.ErrDenied}}, segments.ErrDenied, 1},
		{"full", []storetest.Fault{{Before: segments.ErrFull}}, segments.ErrFull, 1},
		{"no bucket, then denied", []storetest.Fault{unavailable, {Before: segments.ErrNoBucket}}, segments.ErrNoBucket, 2},
	}
	for _, test := range tests {
		synctest.Test(t, func(t *testing.T) {
			below := storetest.NewFaulty(memstore.New())
			if err := below.Put(t.Context(), "there", segments.NewBody()); err != nil {
				t.Fatal(err)
			}
			before := below.Calls(storetest.Put)
			for _, op := range []segments.Op{storetest.Put, storetest.Get, storetest.Delete, storetest.List} {
				below.Next(op, test.faults...)
			}
			for op, err := range calls(t.Context(), segments.Retry(below, fastRetry)) {
				tries := below.Calls(op)
				if op == storetest.Put {
					tries -= before
				}
				if !errors.Is(err, test.want) || tries != test.wantTries {
					t.Errorf("%s: %s: %v after %d tries; want %v after %d", test.name, op, err, tries, test.want, test.wantTries)
				}
			}
		})
	}
}

// The first try took effect and its answer was lost: the second meets the first.
func TestRetryDoesNotHideExists(t *testing.T) {
	below := storetest.NewFaulty(memstore.New())
	below.Next(storetest.Put, storetest.Fault{After: segments.ErrUnavailable})
	store := segments.Retry(below, fastRetry)
	if err := store.Put(t.Context(), "key", segments.NewBody([]byte("mine"))); !errors.Is(err, segments.ErrExists) {
		t.Errorf("Put: %v, want ErrExists", err)
	}
	if data, _, err := store.Get(t.Context(), "key", 0, -1); err != nil || string(data) != "mine" {
		t.Errorf("Get = %q, %v", data, err)
	}
}

// A slow try is ended and the next one made; waits grow and stay within their limits.
func TestRetryTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		config := segments.RetryConfig{Tries: 5, MinWait: time.Second, MaxWait: 2 * time.Second, TryTimeout: 10 * time.Second}
		below := storetest.NewFaulty(memstore.New())
		var starts []time.Duration
		begin := time.Now()
		below.Decide(func(storetest.Call) storetest.Fault {
			starts = append(starts, time.Since(begin))
			return storetest.Fault{Hold: func(ctx context.Context) error {
				<-ctx.Done()
				return segments.Interrupted(ctx)
			}}
		})
		_, _, err := segments.Retry(below, config).Get(t.Context(), "key", 0, -1)
		if !errors.Is(err, segments.ErrUnavailable) || len(starts) != config.Tries {
			t.Fatalf("Get: %v after %d tries", err, len(starts))
		}
		for i := 1; i < len(starts); i++ {
			wait := starts[i] - starts[i-1] - config.TryTimeout
			if wait < config.MinWait/2 || wait > config.MaxWait*3/2 {
				t.Errorf("waited %v before try %d", wait, i+1)
			}
		}
	})
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		below := storetest.NewFaulty(memstore.New())
		below.Decide(func(storetest.Call) storetest.Fault { return storetest.Fault{Before: segments.ErrUnavailable} })
		config := segments.RetryConfig{Tries: 1000, MinWait: time.Second, MaxWait: time.Second}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		begin := time.Now()
		_, _, err := segments.Retry(below, config).Get(ctx, "key", 0, -1)
		if !errors.Is(err, segments.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != 10*time.Second {
			t.Errorf("Get: %v after %v", err, time.Since(begin))
		}
	})
}

func TestObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type ended struct {
			Op    segments.Op
			Bytes int64
			Took  time.Duration
			Found bool
		}
		var got []ended
		open := 0
		below := storetest.NewFaulty(memstore.New())
		below.Decide(func(storetest.Call) storetest.Fault {
			return storetest.Fault{Hold: func(context.Context) error {
				time.Sleep(time.Second) // of the bubble's clock
				return nil
			}}
		})
		store := segments.Observe(below, segments.Observer{
			Begin: func(segments.Op) { open++ },
			End: func(op segments.Op, bytes int64, took time.Duration, err error) {
				open--
				got = append(got, ended{op, bytes, took, err == nil})
			},
		})
		body := segments.NewBody([]byte("12345"))
		for range 2 {
			_ = store.Put(t.Context(), "key", body)
		}
		_, _, _ = store.Get(t.Context(), "key", 1, 2)
		_, _, _ = store.Get(t.Context(), "absent", 0, -1)
		_, _ = store.List(t.Context(), "", "", 1)
		_ = store.Delete(t.Context(), "key")
		want := []ended{
			{segments.OpPut, 5, time.Second, true}, {segments.OpPut, 0, time.Second, false},
			{segments.OpGet, 2, time.Second, true}, {segments.OpGet, 0, time.Second, false},
			{segments.OpList, 0, time.Second, true}, {segments.OpDelete, 0, time.Second, true},
		}
		if diff := cmp.Diff(want, got); diff != "" || open != 0 {
			t.Errorf("%d open; %s", open, diff)
		}
		if store.String() != below.String() {
			t.Errorf("String = %q", store)
		}
	})
}
