package segments

import (
	"errors"
	"io"
)

// Errors that every [FS] translates the system's own into, wrapped with detail.
// Names that exist or are absent are told by io/fs.ErrExist and io/fs.ErrNotExist.
var (
	// ErrDiskFull says that the disk, or the user's share of it, has no room left.
	ErrDiskFull = errors.New("segments: disk full")
	// ErrLocked says that another process holds the lock.
	ErrLocked = errors.New("segments: locked by another process")
)

// FS is the seam between the buffer and the disk: the few operations it needs, so
// that a test can make each of them fail, and can cut the power. [OS] is the real
// one, package faultfs the other. All methods may be called at once.
//
// Nothing is durable before it is synced: what a file holds by [File.Sync], its
// name (or a removed name's absence) by SyncDir of the folder that lists it.
type FS interface {
	// Create makes a file for reading and writing, with mode 0600. It fails with
	// fs.ErrExist when there is anything of that name.
	Create(path string) (File, error)
	// Open opens a file for reading.
	Open(path string) (File, error)
	// Rename moves a file within its folder. Whatever has the new name is replaced.
	Rename(from, to string) error
	// Remove removes a file or an empty folder.
	Remove(path string) error
	// Mkdir makes a folder with mode 0700; its parent must exist. It fails with
	// fs.ErrExist when there is anything of that name.
	Mkdir(path string) error
	// ReadDir lists a folder by name.
	ReadDir(path string) ([]DirEntry, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(path string) error
	// Free is how many bytes may still be written to the disk that holds path.
	Free(path string) (int64, error)
	// Lock takes the lock that the file of that name stands for, making the file if
	// need be. It never waits: held by anybody else, the error is ErrLocked. It is
	// let go by Close and by the end of the process, however it ends.
	Lock(path string) (io.Closer, error)
}

// File is an open file. Its methods may be called at once.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Truncate sets the length in bytes.
	Truncate(size int64) error
	// Size is the length in bytes.
	Size() (int64, error)
	// Sync returns once all that was written before the call is durable, the
	// length included. After an error nothing is known of what was written since
	// the last success, and another Sync proves nothing about it: the system may
	// have dropped it and call itself clean.
	Sync() error
}

// DirEntry is one name in a folder.
type DirEntry struct {
	Name string
	Dir  bool
}
