// Package filestore is a [segments.Store] in a folder: one file an object, folders
// for the slashes in its key.
//
//	<folder>/<key>           objects, mode 0600
//	<folder>/~tmp/put-*      objects that are being written; no key can contain a ~
//
// An object is written to a temporary file, synced, linked to its name (which fails
// if the name is taken: exactly one of several writers wins) and the folder is
// synced. Several processes may use one folder, if its file system has locks and
// links.
package filestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/varvelog/varve/segments"
)

// Store keeps objects as files.
type Store struct {
	root string
	// durable holds the folders that this process made sure of: they exist, and their
	// parents were synced since.
	durable sync.Map
}

var _ segments.Store = (*Store)(nil)

// Open returns the store in a folder, which it makes when absent (mode 0700). What a
// crash left half written is removed.
func Open(dir string) (*Store, error) {
	root, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("filestore: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(root, tempFolder), 0o700); err != nil {
		return nil, fmt.Errorf("filestore: %w", translate(err))
	}
	for _, dir := range []string{filepath.Dir(root), root} {
		if err := syncFolder(dir); err != nil {
			return nil, fmt.Errorf("filestore: %w", translate(err))
		}
	}
	s := &Store{root: root}
	if err := s.removeLeftovers(); err != nil {
		return nil, fmt.Errorf("filestore: %w", translate(err))
	}
	return s, nil
}

// String implements [segments.Store].
func (s *Store) String() string { return "file://" + filepath.ToSlash(s.root) }

func (s *Store) path(key string) string { return filepath.Join(s.root, filepath.FromSlash(key)) }

// Put implements [segments.Store].
func (s *Store) Put(ctx context.Context, key string, body segments.Body) error {
	err := segments.CheckCall(ctx, key)
	if err == nil {
		err = s.put(ctx, s.path(key), body)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", key, s.explain(err))
	}
	return nil
}

func (s *Store) put(ctx context.Context, path string, body segments.Body) error {
	if err := s.makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	temp, err := s.createTemp()
	if err != nil {
		return err
	}
	defer temp.Close()
	defer os.Remove(temp.Name())
	if err := reserve(temp, body.Size()); err != nil {
		return err
	}
	if err := writeBody(ctx, temp, body); err != nil {
		return err
	}
	if err := temp.Sync(); err != nil {
		return err
	}
	if err := segments.Interrupted(ctx); err != nil {
		return err
	}
	linked := os.Link(temp.Name(), path)
	if linked != nil && !errors.Is(linked, fs.ErrExist) {
		return linked
	}
	// Also for one who lost: what it is told of must survive a crash as well.
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return err
	}
	return linked
}

// makeFolder makes a folder durable, with those above it. It does so once for each,
// even if it was there: whoever made it may not have come to the sync.
func (s *Store) makeFolder(dir string) error {
	if dir == s.root {
		return nil
	}
	if _, done := s.durable.Load(dir); done {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := s.makeFolder(parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := syncFolder(parent); err != nil {
		return err
	}
	s.durable.Store(dir, nil)
	return nil
}

// Get implements [segments.Store].
func (s *Store) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	err := segments.CheckCall(ctx, key)
	if err != nil {
		return nil, 0, fmt.Errorf("get %s: %w", key, err)
	}
	data, size, err := readFile(s.path(key), offset, length)
	if err != nil {
		return nil, 0, fmt.Errorf("get %s: %w", key, s.explain(err))
	}
	return data, size, nil
}

func openFile(path string) (*os.File, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = segments.ErrNotFound
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// GetInto implements [segments.IntoReader].
func (s *Store) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	return s.GetScattered(ctx, key, [][]byte{into}, offset)
}

// GetScattered implements [segments.ScatterReader].
func (s *Store) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (n int, err error) {
	err = segments.CheckCall(ctx, key)
	if err == nil && offset < 0 {
		err = fmt.Errorf("offset %d is negative", offset)
	}
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", key, err)
	}
	f, _, err := openFile(s.path(key))
	if err != nil {
		return 0, fmt.Errorf("get %s: %w", key, s.explain(err))
	}
	defer f.Close()
	for _, b := range into {
		m, err := f.ReadAt(b, offset+int64(n))
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("get %s: %w", key, s.explain(err))
		}
		if n += m; m < len(b) {
			break
		}
	}
	return n, nil
}

func readFile(path string, offset, length int64) ([]byte, int64, error) {
	f, info, err := openFile(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	start, count := segments.ResolveRange(offset, length, info.Size())
	data := make([]byte, count)
	if _, err := f.ReadAt(data, start); err != nil && !(errors.Is(err, io.EOF) && count == 0) {
		return nil, 0, err
	}
	return data, info.Size(), nil
}

// Delete implements [segments.Store]. It does not sync: what a crash brings back is
// garbage that is found again.
func (s *Store) Delete(ctx context.Context, key string) error {
	err := segments.CheckCall(ctx, key)
	if err == nil {
		err = remove(s.path(key))
	}
	if err != nil {
		return fmt.Errorf("delete %s: %w", key, s.explain(err))
	}
	return nil
}

// remove removes a file; unlike os.Remove it leaves folders alone, for a folder is
// no object.
func remove(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	if err != nil || info.IsDir() {
		return err
	}
	if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return &fs.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}

// explain translates an error, and tells a missing object from a missing folder: a
// file system that is not mounted must not look like lost data.
func (s *Store) explain(err error) error {
	if _, gone := os.Stat(s.root); errors.Is(gone, fs.ErrNotExist) {
		return fmt.Errorf("%w: folder %s: %w", segments.ErrNoBucket, s.root, err)
	}
	return translate(err)
}

func translate(err error) error {
	for _, known := range []error{segments.ErrUnavailable, segments.ErrNotFound} {
		if errors.Is(err, known) {
			return err
		}
	}
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: disk full: free some space: %w", segments.ErrFull, err)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w: %w", segments.ErrExists, err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w: %w", segments.ErrNotFound, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %w", segments.ErrDenied, err)
	}
	return fmt.Errorf("%w: %w", segments.ErrUnavailable, err)
}
