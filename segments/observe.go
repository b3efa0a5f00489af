package segments

import (
	"context"
	"time"
)

// Op is a method of a [Store].
type Op string

// The methods of a [Store], as metrics and tests name them.
const (
	OpPut    Op = "put"
	OpGet    Op = "get"
	OpDelete Op = "delete"
	OpList   Op = "list"
)

// Observer is told of calls, for metrics. Its functions run in the caller's goroutine,
// many at once, and should be quick. A nil one is left out.
type Observer struct {
	Begin func(op Op)
	// End says what a call came to: bytes put or got (0 when it failed), and its error.
	End func(op Op, bytes int64, took time.Duration, err error)
}

// Observe returns the store with every call of it reported. Below [Retry] it sees
// each try, above it what callers see.
func Observe(store Store, observer Observer) Store {
	if observer.Begin == nil {
		observer.Begin = func(Op) {}
	}
	if observer.End == nil {
		observer.End = func(Op, int64, time.Duration, error) {}
	}
	return &observed{store, observer}
}

type observed struct {
	Store
	observer Observer
}

// begin returns what ends the observation.
func (o *observed) begin(op Op) func(bytes int64, err error) {
	o.observer.Begin(op)
	start := time.Now()
	return func(bytes int64, err error) {
		if err != nil {
			bytes = 0
		}
		o.observer.End(op, bytes, time.Since(start), err)
	}
}

func (o *observed) Put(ctx context.Context, key string, body Body) error {
	end := o.begin(OpPut)
	err := o.Store.Put(ctx, key, body)
	end(body.Size(), err)
	return err
}

func (o *observed) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	end := o.begin(OpGet)
	data, size, err := o.Store.Get(ctx, key, offset, length)
	end(int64(len(data)), err)
	return data, size, err
}

// GetInto implements [IntoReader].
func (o *observed) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	end := o.begin(OpGet)
	n, err := GetInto(ctx, o.Store, key, into, offset)
	end(int64(n), err)
	return n, err
}

// GetScattered implements [ScatterReader].
func (o *observed) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (int, error) {
	end := o.begin(OpGet)
	n, err := GetScattered(ctx, o.Store, key, into, offset)
	end(int64(n), err)
	return n, err
}

func (o *observed) Delete(ctx context.Context, key string) error {
	end := o.begin(OpDelete)
	err := o.Store.Delete(ctx, key)
	end(0, err)
	return err
}

func (o *observed) List(ctx context.Context, prefix, after string, limit int) ([]ObjectInfo, error) {
	end := o.begin(OpList)
	objects, err := o.Store.List(ctx, prefix, after, limit)
	end(0, err)
	return objects, err
}
