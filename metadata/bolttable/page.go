package bolttable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
)

// What bbolt's file consists of, in the byte order of the host: pages of one size, each with a head.
//
//	page     id u64, type u16, count u16, overflow u32 (pages that follow and belong to it)
//	leaf     count × (flags u32, position u32, key size u32, value size u32), keys and values
//	branch   count × (position u32, key size u32, page id u64), keys
//	free     count × page id u64; a count of 65,535 says that the first one is the count
//	head     magic u32, version u32, page size u32, flags u32, root page u64, sequence u64,
//	         free page u64, pages u64, transaction u64, FNV-1a 64 of what stands before it
//
// Positions count from where they stand. A bucket in a leaf has flag 1 and as its value root page
// u64, sequence u64; a root of 0 means that a page of type leaf follows.
const (
	typeBranch = 0x01
	typeLeaf   = 0x02
	typeFree   = 0x10

	pageHeadSize = 16
	elementSize  = 16
	bucketSize   = 16
	fileHeadSize = 64

	flagBucket = 0x01

	boltMagic   = 0xED0CDAED
	boltVersion = 2
)

var native = binary.NativeEndian

var (
	errOutside = errors.New("it points outside itself")
	errOrder   = errors.New("its keys are out of order")
)

// fileHead is what the first two pages hold, one for each of the last two transactions.
type fileHead struct {
	root, free, pages, transaction uint64
}

// parseHead reads a head page.
func parseHead(b []byte, pageSize int) (fileHead, error) {
	b = b[pageHeadSize : pageHeadSize+fileHeadSize]
	sum := fnv.New64a()
	sum.Write(b[:fileHeadSize-8])
	switch {
	case native.Uint32(b) != boltMagic || native.Uint32(b[4:]) != boltVersion || native.Uint64(b[56:]) != sum.Sum64():
		return fileHead{}, errors.New("its checksum is wrong")
	case native.Uint32(b[8:]) != uint32(pageSize):
		return fileHead{}, fmt.Errorf("it has pages of %d bytes", native.Uint32(b[8:]))
	}
	return fileHead{
		root: native.Uint64(b[16:]), free: native.Uint64(b[32:]), pages: native.Uint64(b[40:]), transaction: native.Uint64(b[48:]),
	}, nil
}

// rawPage is a page with all that overflows from it. Nothing in it is to be trusted.
type rawPage []byte

func (p rawPage) kind() uint16     { return native.Uint16(p[8:]) }
func (p rawPage) count() int       { return int(native.Uint16(p[10:])) }
func (p rawPage) overflow() uint32 { return native.Uint32(p[12:]) }

// element returns the i-th of count.
func (p rawPage) element(i int) ([]byte, error) {
	at := pageHeadSize + i*elementSize
	if at+elementSize > len(p) {
		return nil, errOutside
	}
	return p[at:], nil
}

// leaf returns the i-th element of a leaf.
func (p rawPage) leaf(i int) (flags uint32, key, value []byte, err error) {
	e, err := p.element(i)
	if err != nil {
		return 0, nil, nil, err
	}
	keyAt, keySize, valueSize := uint64(native.Uint32(e[4:])), uint64(native.Uint32(e[8:])), uint64(native.Uint32(e[12:]))
	end := keyAt + keySize + valueSize
	if keySize == 0 || end > uint64(len(e)) {
		return 0, nil, nil, errOutside
	}
	return native.Uint32(e), e[keyAt : keyAt+keySize], e[keyAt+keySize : end], nil
}

// eachLeaf visits the elements of a leaf, whose keys are from one, if there is one, to below another.
func (p rawPage) eachLeaf(from, to []byte, visit visitor) error {
	for i := range p.count() {
		flags, key, value, err := p.leaf(i)
		if err != nil {
			return err
		}
		if outOfOrder(key, from, to) || i > 0 && bytes.Equal(key, from) {
			return errOrder
		}
		if err := visit(flags, key, value); err != nil {
			return err
		}
		from = key
	}
	return nil
}

func outOfOrder(key, from, to []byte) bool {
	return bytes.Compare(key, from) < 0 || to != nil && bytes.Compare(key, to) >= 0
}

// branch returns the i-th element of a branch.
func (p rawPage) branch(i int) (key []byte, child uint64, err error) {
	e, err := p.element(i)
	if err != nil {
		return nil, 0, err
	}
	at, size := uint64(native.Uint32(e)), uint64(native.Uint32(e[4:]))
	if size == 0 || at+size > uint64(len(e)) {
		return nil, 0, errOutside
	}
	return e[at : at+size], native.Uint64(e[8:]), nil
}

// freePages returns the ids in a free page.
func (p rawPage) freePages() ([]byte, error) {
	count, at := uint64(p.count()), uint64(pageHeadSize)
	if count == 0xffff {
		if len(p) < pageHeadSize+8 {
			return nil, errOutside
		}
		count, at = native.Uint64(p[at:]), at+8
	}
	if count > uint64(len(p))/8 || at+8*count > uint64(len(p)) {
		return nil, errOutside
	}
	return p[at : at+8*count], nil
}
