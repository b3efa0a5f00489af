package faultfs

import (
	"fmt"
	"io/fs"
	"maps"
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
// gone, open files are of no use, locks are free, faults and room are as before.
//
// With pick, part of what was not synced survives by chance: pick(n) chooses from 0
// to n, and is asked how many of the changes of each folder's names and of each
// file's bytes are kept, in the order in which they were made, and where the first
// write that is not kept whole is torn.
func (f *FS) Crash(pick func(n int) int) {
	if pick == nil {
		pick = func(int) int { return 0 }
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.life++
	clear(f.locks)
	for _, folder := range slices.Sorted(maps.Keys(f.pending)) {
		changes := f.pending[folder]
		for _, c := range changes[:pick(len(changes))] {
			c.apply(f.durable)
		}
	}
	clear(f.pending)
	f.dropOrphans()
	for _, path := range slices.Sorted(maps.Keys(f.durable)) {
		f.durable[path].crash(pick)
	}
	f.nodes = maps.Clone(f.durable)
}

// dropOrphans removes what lies in folders whose own name did not survive.
func (f *FS) dropOrphans() {
	for _, path := range slices.Sorted(maps.Keys(f.durable)) { // parents come first
		if f.durable[filepath.Dir(path)] == nil {
			delete(f.durable, path)
		}
	}
}

// crash leaves of a file what the disk has, and a picked first part of the rest.
func (n *node) crash(pick func(n int) int) {
	kept := pick(len(n.writes))
	for _, w := range n.writes[:kept] {
		n.durable = w.apply(n.durable)
	}
	if kept < len(n.writes) {
		if torn := n.writes[kept]; !torn.cut {
			torn.bytes = torn.bytes[:pick(len(torn.bytes))]
			n.durable = torn.apply(n.durable)
		}
	}
	n.settle(len(n.writes))
	n.bytes = append([]byte(nil), n.durable...)
}

// Put makes a durable file, or gives it other bytes, whatever was there. Its folder
// must exist. Open files do not notice.
func (f *FS) Put(path string, content []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := &node{bytes: append([]byte(nil), content...), durable: append([]byte(nil), content...)}
	f.nodes[path], f.durable[path] = n, n
}

// Content returns a copy of a file's bytes, as the system shows them.
func (f *FS) Content(path string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[path]
	if n == nil {
		return nil, fmt.Errorf("faultfs: %s: %w", path, fs.ErrNotExist)
	}
	return append([]byte(nil), n.bytes...), nil
}

// Flip changes one bit of a file, on disk too: bit 0 is the lowest of byte 0.
func (f *FS) Flip(path string, bit int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[path]
	if n == nil || bit/8 >= len(n.bytes) {
		return fmt.Errorf("faultfs: %s has no bit %d", path, bit)
	}
	n.bytes[bit/8] ^= 1 << (bit % 8)
	if bit/8 < len(n.durable) {
		n.durable[bit/8] ^= 1 << (bit % 8)
	}
	return nil
}
