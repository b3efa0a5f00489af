package segments

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/gofrs/flock"
)

// OS is the operating system's file system.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, translate(err)
	}
	return osFile{f}, nil
}

func (osFS) Open(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, translate(err)
	}
	return osFile{f}, nil
}

func (osFS) Rename(from, to string) error { return translate(os.Rename(from, to)) }

func (osFS) Remove(path string) error { return translate(os.Remove(path)) }

func (osFS) Mkdir(path string) error { return translate(os.Mkdir(path, 0o700)) }

func (osFS) ReadDir(path string) ([]DirEntry, error) {
	found, err := os.ReadDir(path)
	if err != nil {
		return nil, translate(err)
	}
	entries := make([]DirEntry, len(found))
	for i, e := range found {
		entries[i] = DirEntry{Name: e.Name(), Dir: e.IsDir()}
	}
	return entries, nil
}

func (osFS) SyncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return translate(err)
	}
	return translate(errors.Join(dir.Sync(), dir.Close()))
}

func (osFS) Free(path string) (int64, error) { return freeBytes(path) }

func (osFS) Lock(path string) (io.Closer, error) {
	lock := flock.New(path, flock.SetPermissions(0o600))
	taken, err := lock.TryLock()
	if err != nil {
		return nil, translate(err)
	}
	if !taken {
		return nil, fmt.Errorf("%w: %s", ErrLocked, path)
	}
	return lock, nil
}

type osFile struct{ *os.File }

func (f osFile) WriteAt(p []byte, offset int64) (int, error) {
	n, err := f.File.WriteAt(p, offset)
	return n, translate(err)
}

func (f osFile) Truncate(size int64) error { return translate(f.File.Truncate(size)) }

func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

func (f osFile) Sync() error { return translate(syncData(f.File)) }

// translate gives a full disk its name.
func translate(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrDiskFull, err)
	}
	return err
}
