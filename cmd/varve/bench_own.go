package main

import (
	"context"
	"errors"
	"os"

	"github.com/varvelog/varve/client"
)

// ownBench is a gateway of a bench's own, a client of it, and a folder for what is temporary.
type ownBench struct {
	*app   // whose server is the gateway
	client *client.Client
	dir    string
	undo   []func() error // the last of them first
}

// openOwn starts a gateway on a bucket and a table, or on files where they are not given. parent is where the folder is made;
// empty: where the system says.
func (a *app) openOwn(ctx context.Context, parent, segments, metadata string, more ...string) (_ *ownBench, err error) {
	b := &ownBench{}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	if b.dir, err = os.MkdirTemp(parent, "varve-bench-"); err != nil {
		return nil, err
	}
	b.undo = append(b.undo, func() error { return os.RemoveAll(b.dir) })
	var stop func() error
	if b.app, stop, err = a.ownGateway(ctx, b.dir, segments, metadata, more...); err != nil {
		return nil, err
	}
	b.undo = append(b.undo, stop)
	if b.client, err = b.connect(); err != nil {
		return nil, err
	}
	b.undo = append(b.undo, func() error { b.client.Close(); return nil })
	return b, nil
}

// close ends the gateway, and removes what it had.
func (b *ownBench) close() (err error) {
	for i := len(b.undo) - 1; i >= 0; i-- {
		err = errors.Join(err, b.undo[i]())
	}
	return err
}

// filled makes a topic with so many bytes of large batches. It is to be removed, also after an error.
func (b *ownBench) filled(ctx context.Context, partitions int32, bytes byteSize) (benchTopic, error) {
	t, err := openTopic(ctx, b.client, "", partitions)
	if err == nil {
		err = b.fill(ctx, t, limit{bytes: int64(bytes)})
	}
	return t, err
}

// remove deletes a topic that this bench made.
func (b *ownBench) remove(ctx context.Context, t benchTopic) { t.remove(ctx, b.app, b.client, false) }
