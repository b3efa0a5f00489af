package faultfs

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// Kill ends the process that uses the file system: open files are of no use, locks
// are free. Whatever was written is still there.
func (f *FS) Kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.life++
	clear(f.locks)
}

// Crash cuts the power and starts the machine again: unsynced bytes and names are
// gone, open files are of no use, locks are free. Hook and room stay as they are.
//
// With pick, part of what was not synced survives by chance: pick(n) chooses from 0
// to n, and is asked how many of the changes of each folder's names and of each
// file's bytes are kept, in the order in which they were made, and where the first
// write that is not kept whole is torn. Nil keeps none.
func (f *FS) Crash(pick func(n int) int) {
	if pick == nil {
		pick = func(int) int { return 0 }
	}
	f.Kill()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.root.crash(pick)
}

// Put makes a durable file, or gives it other bytes, whatever was there. Its folder
// must exist. Files that are open do not notice.
func (f *FS) Put(path string, content []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	folder, err := f.get(Create, filepath.Dir(path))
	if err != nil {
		return err
	}
	n := &node{bytes: slices.Clone(content), durable: slices.Clone(content)}
	folder.names[filepath.Base(path)] = n
	folder.durableNames[filepath.Base(path)] = n
	return nil
}

// Content returns a copy of a file's bytes, as the system shows them.
func (f *FS) Content(path string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(path)
	if n == nil {
		return nil, fmt.Errorf("faultfs: %s: %w", path, fs.ErrNotExist)
	}
	return slices.Clone(n.bytes), nil
}

// Flip changes one bit of a file, on disk too: bit 0 is the lowest of byte 0.
func (f *FS) Flip(path string, bit int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.find(path)
	if n == nil || bit/8 >= len(n.bytes) {
		return fmt.Errorf("faultfs: %s has no bit %d", path, bit)
	}
	n.bytes[bit/8] ^= 1 << (bit % 8)
	if bit/8 < len(n.durable) {
		n.durable[bit/8] ^= 1 << (bit % 8)
	}
	return nil
}
