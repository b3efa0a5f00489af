package filestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/varvelog/varve/segments"
)

// tempFolder cannot be part of a key.
const tempFolder = "~tmp"

// createTemp makes a temporary file and locks it, so that a store which is opened
// meanwhile knows that it is in use.
func (s *Store) createTemp() (*os.File, error) {
	const tries = 8 // each fails only if a store is opened at the same instant
	for range tries {
		temp, err := os.CreateTemp(filepath.Join(s.root, tempFolder), "put-*")
		if err != nil {
			return nil, err
		}
		if lock(temp) {
			if _, err := os.Lstat(temp.Name()); err == nil {
				return temp, nil
			}
		}
		temp.Close()
	}
	return nil, fmt.Errorf("%w: temporary files vanish from %s", segments.ErrUnavailable, filepath.Join(s.root, tempFolder))
}

func lock(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// removeLeftovers removes temporary files whose writer is gone.
func (s *Store) removeLeftovers() error {
	folder := filepath.Join(s.root, tempFolder)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := removeUnlocked(filepath.Join(folder, entry.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func removeUnlocked(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if !lock(f) {
		return nil
	}
	return os.Remove(path)
}

// What one system call takes at most; a cancelled write ends after the call. More bytes
// at a time have Linux take memory for its cache in pieces that cost several times as
// much CPU where that memory is used for the first time.
const (
	mostSlices = 1024
	mostBytes  = 1 << 20
)

// writeBody writes a body as it lies in memory, many slices to a system call.
func writeBody(ctx context.Context, f *os.File, body segments.Body) error {
	for rest := advance(slices.Clone(body.Slices()), 0); len(rest) > 0; {
		if err := segments.Interrupted(ctx); err != nil {
			return err
		}
		n, err := writev(f, head(rest))
		if err != nil {
			return err
		}
		rest = advance(rest, n)
	}
	return nil
}

// head returns what the next call writes, of slices whose first is not empty.
func head(parts [][]byte) [][]byte {
	if len(parts[0]) > mostBytes {
		return [][]byte{parts[0][:mostBytes]}
	}
	count, size := 0, 0
	for count < min(len(parts), mostSlices) && size+len(parts[count]) <= mostBytes {
		size += len(parts[count])
		count++
	}
	return parts[:count]
}

// advance drops n bytes, and empty slices after them.
func advance(parts [][]byte, n int) [][]byte {
	for len(parts) > 0 && n >= len(parts[0]) {
		n -= len(parts[0])
		parts = parts[1:]
	}
	if n > 0 {
		parts[0] = parts[0][n:]
	}
	return parts
}

func writev(f *os.File, batch [][]byte) (int, error) {
	for {
		n, err := unix.Writev(int(f.Fd()), batch)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, &fs.PathError{Op: "write", Path: f.Name(), Err: err}
		case n == 0:
			return 0, &fs.PathError{Op: "write", Path: f.Name(), Err: io.ErrShortWrite}
		}
		return n, nil
	}
}

// syncFolder makes the names in a folder durable.
func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
