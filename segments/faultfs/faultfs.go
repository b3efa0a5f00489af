// Package faultfs is a file system in memory that fails when a test says so, and
// that can lose its power. It implements segments.FS.
//
// It is as forgetful as the rules allow: a file's bytes are durable only after its
// Sync, a name (or its absence) only after SyncDir of its folder. [FS.Crash] drops
// what was not synced, or keeps a random first part of it. After a failed Sync the
// unsynced bytes are dropped while they can still be read, and the next Sync says
// that all is well: so does Linux.
package faultfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"sync"
	"syscall"

	"github.com/varvelog/varve/segments"
)

// Kind is a kind of operation.
type Kind string

// The operations of segments.FS and segments.File that can be made to fail.
const (
	Create   Kind = "create"
	Open     Kind = "open"
	Read     Kind = "read"
	Write    Kind = "write"
	Truncate Kind = "truncate"
	Sync     Kind = "sync"
	SyncDir  Kind = "sync dir"
	Rename   Kind = "rename"
	Remove   Kind = "remove"
	Mkdir    Kind = "mkdir"
	ReadDir  Kind = "read dir"
	Free     Kind = "free"
	Lock     Kind = "lock"
)

// Op is one operation, about to happen.
type Op struct {
	Kind   Kind
	Path   string
	Offset int64 // of a read or write, bytes
	Length int   // of a read or write, bytes
}

// Fault makes an operation fail.
type Fault struct {
	Err error
	// Short is how many bytes a write leaves behind before it fails.
	Short int
}

// Unlimited is the room on a disk that never fills.
const Unlimited = math.MaxInt64

// FS is a file system in memory. The zero value is not usable: call New.
type FS struct {
	mu     sync.Mutex
	root   *node
	locks  map[string]*lock
	room   int64
	life   int // rises with every crash
	counts map[Kind]int
	hook   func(Op) *Fault
}

// New returns a file system with nothing but the folder "/", without faults.
func New() *FS {
	return &FS{root: newFolder(), locks: make(map[string]*lock), room: Unlimited, counts: make(map[Kind]int)}
}

// Intercept has hook asked before every operation; it may wait, and makes the
// operation fail by returning a fault. It runs without a lock, so perhaps many times
// at once. Nil ends it.
func (f *FS) Intercept(hook func(Op) *Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// SetRoom sets how many bytes may still be written. A write that needs more leaves
// what fits and fails with segments.ErrDiskFull.
func (f *FS) SetRoom(bytes int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.room = bytes
}

// Count is how many operations of a kind were begun, failed ones included.
func (f *FS) Count(kind Kind) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts[kind]
}

// before counts an operation and asks the hook.
func (f *FS) before(op Op) *Fault {
	f.mu.Lock()
	f.counts[op.Kind]++
	hook := f.hook
	f.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(op)
}

// begin is before for operations that fail as a whole. On success it holds the lock.
func (f *FS) begin(kind Kind, path string) error {
	if fault := f.before(Op{Kind: kind, Path: path}); fault != nil {
		return &fs.PathError{Op: string(kind), Path: path, Err: fault.Err}
	}
	f.mu.Lock()
	return nil
}

// Create implements segments.FS.
func (f *FS) Create(path string) (segments.File, error) {
	if err := f.begin(Create, path); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	n := new(node)
	if err := f.add(Create, path, n); err != nil {
		return nil, err
	}
	return &file{fs: f, node: n, path: path, life: f.life, writable: true}, nil
}

// Mkdir implements segments.FS.
func (f *FS) Mkdir(path string) error {
	if err := f.begin(Mkdir, path); err != nil {
		return err
	}
	defer f.mu.Unlock()
	return f.add(Mkdir, path, newFolder())
}

// add gives a new node its name.
func (f *FS) add(kind Kind, path string, n *node) error {
	folder := f.find(filepath.Dir(path))
	switch {
	case folder == nil || !folder.dir:
		return &fs.PathError{Op: string(kind), Path: path, Err: fs.ErrNotExist}
	case f.find(path) != nil:
		return &fs.PathError{Op: string(kind), Path: path, Err: fs.ErrExist}
	}
	folder.change(change{name: filepath.Base(path), node: n})
	return nil
}

// Open implements segments.FS.
func (f *FS) Open(path string) (segments.File, error) {
	if err := f.begin(Open, path); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	n, err := f.get(Open, path)
	if err != nil {
		return nil, err
	}
	return &file{fs: f, node: n, path: path, life: f.life}, nil
}

// find returns nil when there is nothing of that name.
func (f *FS) find(path string) *node {
	if path == "/" {
		return f.root
	}
	if folder := f.find(filepath.Dir(path)); folder != nil {
		return folder.names[filepath.Base(path)]
	}
	return nil
}

func (f *FS) get(kind Kind, path string) (*node, error) {
	if n := f.find(path); n != nil {
		return n, nil
	}
	return nil, &fs.PathError{Op: string(kind), Path: path, Err: fs.ErrNotExist}
}

// Rename implements segments.FS.
func (f *FS) Rename(from, to string) error {
	if err := f.begin(Rename, from); err != nil {
		return err
	}
	defer f.mu.Unlock()
	n, err := f.get(Rename, from)
	if err != nil {
		return err
	}
	if n.dir || filepath.Dir(to) != filepath.Dir(from) {
		return &fs.PathError{Op: string(Rename), Path: from, Err: errors.ErrUnsupported}
	}
	f.find(filepath.Dir(from)).change(change{name: filepath.Base(to), node: n, from: filepath.Base(from)})
	return nil
}

// Remove implements segments.FS.
func (f *FS) Remove(path string) error {
	if err := f.begin(Remove, path); err != nil {
		return err
	}
	defer f.mu.Unlock()
	n, err := f.get(Remove, path)
	if err != nil {
		return err
	}
	if len(n.names) > 0 {
		return &fs.PathError{Op: string(Remove), Path: path, Err: syscall.ENOTEMPTY}
	}
	f.find(filepath.Dir(path)).change(change{name: filepath.Base(path)})
	return nil
}

// ReadDir implements segments.FS.
func (f *FS) ReadDir(path string) ([]segments.DirEntry, error) {
	if err := f.begin(ReadDir, path); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	n, err := f.get(ReadDir, path)
	if err != nil {
		return nil, err
	}
	var entries []segments.DirEntry
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		entries = append(entries, segments.DirEntry{Name: name, Dir: n.names[name].dir})
	}
	return entries, nil
}

// SyncDir implements segments.FS.
func (f *FS) SyncDir(path string) error {
	if err := f.begin(SyncDir, path); err != nil {
		return err
	}
	defer f.mu.Unlock()
	n, err := f.get(SyncDir, path)
	if err != nil {
		return err
	}
	for _, c := range n.changes {
		c.apply(n.durableNames)
	}
	n.changes = nil
	return nil
}

// Free implements segments.FS.
func (f *FS) Free(path string) (int64, error) {
	if err := f.begin(Free, path); err != nil {
		return 0, err
	}
	defer f.mu.Unlock()
	return f.room, nil
}

// Lock implements segments.FS.
func (f *FS) Lock(path string) (io.Closer, error) {
	if err := f.begin(Lock, path); err != nil {
		return nil, err
	}
	defer f.mu.Unlock()
	if f.locks[path] != nil {
		return nil, fmt.Errorf("%w: %s", segments.ErrLocked, path)
	}
	if f.find(path) == nil {
		if err := f.add(Lock, path, new(node)); err != nil {
			return nil, err
		}
	}
	taken := &lock{fs: f, path: path}
	f.locks[path] = taken
	return taken, nil
}

// lock is a lock that is held, until it is closed or the power goes.
type lock struct {
	fs   *FS
	path string
}

func (l *lock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.fs.locks[l.path] == l {
		delete(l.fs.locks, l.path)
	}
	return nil
}
