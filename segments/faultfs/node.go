package faultfs

import (
	"maps"
	"slices"
)

// node is a file or a folder: what the system shows, what the disk has, and what lies
// between the two, in the order in which it was done.
type node struct {
	dir bool

	// Of a folder.
	names        map[string]*node
	durableNames map[string]*node
	changes      []change

	// Of a file.
	bytes   []byte
	durable []byte
	writes  []write
	settled int // writes before these, which are on disk, or dropped
}

func newFolder() *node {
	return &node{dir: true, names: make(map[string]*node), durableNames: make(map[string]*node)}
}

// change is a change of names in a folder.
type change struct {
	name string
	node *node  // nil: gone
	from string // its earlier name, when it was renamed
}

func (c change) apply(names map[string]*node) {
	delete(names, c.from)
	if c.node == nil {
		delete(names, c.name)
		return
	}
	names[c.name] = c.node
}

func (n *node) change(c change) {
	c.apply(n.names)
	n.changes = append(n.changes, c)
}

// write is a change of a file: bytes at an offset, or a new length.
type write struct {
	offset int64
	bytes  []byte
	cut    bool // to offset
}

// apply makes the change to a file's bytes, in place where they have room.
func (w write) apply(to []byte) []byte {
	end := int(w.offset) + len(w.bytes)
	if w.cut {
		to = to[:min(len(to), end)]
	}
	if end > len(to) {
		to = append(to, make([]byte, end-len(to))...)
	}
	copy(to[w.offset:], w.bytes)
	return to
}

func (n *node) write(w write) {
	n.bytes = w.apply(n.bytes)
	n.writes = append(n.writes, w)
}

// sync makes the oldest writes durable.
func (n *node) sync(count int) {
	for _, w := range n.writes[:count] {
		n.durable = w.apply(n.durable)
	}
	n.settle(count)
}

// settle forgets the oldest writes, which are on disk or never will be.
func (n *node) settle(count int) {
	n.writes = n.writes[count:]
	n.settled += count
}

// crash leaves what the disk has, and a picked first part of the rest.
func (n *node) crash(pick func(n int) int) {
	if !n.dir {
		n.crashFile(pick)
		return
	}
	for _, c := range n.changes[:pick(len(n.changes))] {
		c.apply(n.durableNames)
	}
	n.changes = nil
	n.names = maps.Clone(n.durableNames)
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		n.names[name].crash(pick)
	}
}

func (n *node) crashFile(pick func(n int) int) {
	n.sync(pick(len(n.writes)))
	if len(n.writes) > 0 && !n.writes[0].cut {
		torn := n.writes[0]
		torn.bytes = torn.bytes[:pick(len(torn.bytes))]
		n.durable = torn.apply(n.durable)
	}
	n.settle(len(n.writes))
	n.bytes = slices.Clone(n.durable)
}
