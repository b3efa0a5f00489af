package faultfs

import (
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/varvelog/varve/segments"
)

// file is an open file. A crash ends it.
type file struct {
	fs       *FS
	node     *node
	path     string
	life     int
	writable bool
	closed   bool
}

// begin asks the hook, then takes the lock unless the file is of no use any more.
func (f *file) begin(op Op) (*Fault, error) {
	fault := f.fs.before(op)
	f.fs.mu.Lock()
	if f.closed || f.life != f.fs.life {
		f.fs.mu.Unlock()
		return nil, f.failed(op.Kind, fs.ErrClosed)
	}
	return fault, nil
}

func (f *file) failed(kind Kind, err error) error {
	return &fs.PathError{Op: string(kind), Path: f.path, Err: err}
}

// ReadAt implements segments.File.
func (f *file) ReadAt(p []byte, offset int64) (int, error) {
	fault, err := f.begin(Op{Kind: Read, Path: f.path, Offset: offset, Length: len(p)})
	if err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	if fault != nil {
		return 0, f.failed(Read, fault.Err)
	}
	if offset >= int64(len(f.node.bytes)) {
		return 0, io.EOF
	}
	n := copy(p, f.node.bytes[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt implements segments.File.
func (f *file) WriteAt(p []byte, offset int64) (int, error) {
	fault, err := f.begin(Op{Kind: Write, Path: f.path, Offset: offset, Length: len(p)})
	if err != nil {
		return 0, err
	}
	defer f.fs.mu.Unlock()
	if !f.writable {
		return 0, f.failed(Write, fs.ErrPermission)
	}
	if fault == nil && int64(len(p)) > f.fs.room {
		fault = &Fault{Err: segments.ErrDiskFull, Short: int(f.fs.room)}
	}
	if fault != nil {
		p = p[:min(fault.Short, len(p))]
		err = f.failed(Write, fault.Err)
	}
	if f.fs.room != Unlimited {
		f.fs.room -= int64(len(p))
	}
	f.node.write(write{offset: offset, bytes: slices.Clone(p)})
	return len(p), err
}

// Truncate implements segments.File.
func (f *file) Truncate(size int64) error {
	fault, err := f.begin(Op{Kind: Truncate, Path: f.path, Offset: size})
	if err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if fault != nil {
		return f.failed(Truncate, fault.Err)
	}
	if freed := int64(len(f.node.bytes)) - size; f.fs.room != Unlimited {
		f.fs.room += freed
	}
	f.node.write(write{offset: size, cut: true})
	return nil
}

// Size implements segments.File.
func (f *file) Size() (int64, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	return int64(len(f.node.bytes)), nil
}

// Sync implements segments.File. What is written while the hook holds it is not
// covered, as little as a real one would promise.
func (f *file) Sync() error {
	f.fs.mu.Lock()
	end := f.node.settled + len(f.node.writes)
	f.fs.mu.Unlock()
	fault, err := f.begin(Op{Kind: Sync, Path: f.path})
	if err != nil {
		return err
	}
	defer f.fs.mu.Unlock()
	if fault != nil {
		f.node.settle(len(f.node.writes))
		return f.failed(Sync, fault.Err)
	}
	f.node.sync(max(0, end-f.node.settled))
	return nil
}

// Close implements segments.File.
func (f *file) Close() error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if f.closed {
		return fmt.Errorf("close %s: %w", f.path, fs.ErrClosed)
	}
	f.closed = true
	return nil
}
