package bolttable

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/varvelog/varve/metadata"
)

// verifyLimit is up to how many bytes of pages in use Open reads every row. It bounds the time
// that a start takes: a file of that size takes some tenths of a second, more from a slow disk.
const verifyLimit = 256 << 20

// verifier reads a file that nobody writes to. It does not do so through bbolt, which trusts
// what it reads: a damaged page can send it anywhere, also round in a circle.
type verifier struct {
	file     io.ReaderAt
	size     int64 // of the file, in bytes
	pageSize int

	head  fileHead
	taken []bool  // pages that are free, or that something referred to
	leaf  rawPage // buffer for the next page
}

// verify finds out whether the file holds what was last committed to it: everything if pages of
// not more than limit bytes are in use, else heads, list of free pages and record of the rows. fresh
// says that nothing was ever committed. Damage is ErrCorrupt.
func verify(file io.ReaderAt, size int64, pageSize int, limit int64) (fresh bool, err error) {
	v := &verifier{file: file, size: size, pageSize: pageSize}
	if err := v.heads(); err != nil {
		return false, damaged("%w", err)
	}
	free, err := v.free()
	if err != nil {
		return false, damaged("its list of free pages: %w", err)
	}
	fresh, err = v.buckets(int64(len(v.taken)-free)*int64(pageSize) <= limit)
	if err != nil && !errors.Is(err, metadata.ErrCorrupt) && !errors.Is(err, errVersion) {
		err = damaged("%w", err)
	}
	return fresh, err
}

// heads reads both. bbolt goes on from one as well: after damage to the newer one it would
// forget the last commit. That a crash tore the page that was being written is no reason to allow it:
// what counts is its first 80 bytes, and disks write 512 whole.
func (v *verifier) heads() error {
	for i := range uint64(2) {
		b := make([]byte, v.pageSize)
		if err := v.read(b, i); err != nil {
			return err
		}
		head, err := parseHead(b, v.pageSize)
		if err != nil {
			return fmt.Errorf("head page %d: %w", i, err)
		}
		if i == 0 || head.transaction > v.head.transaction {
			v.head = head
		}
	}
	if uint64(v.size)/uint64(v.pageSize) < v.head.pages {
		return fmt.Errorf("it was cut to %d bytes, of %d pages of %d", v.size, v.head.pages, v.pageSize)
	}
	v.taken = make([]bool, v.head.pages)
	return errors.Join(v.take(0), v.take(1))
}

// free marks what is free, and returns how many pages that is.
func (v *verifier) free() (int, error) {
	p, err := v.page(v.head.free, nil)
	if err != nil {
		return 0, err
	}
	if p.kind() != typeFree {
		return 0, fmt.Errorf("page %d has type %#x", v.head.free, p.kind())
	}
	ids, err := p.freePages()
	if err != nil {
		return 0, err
	}
	for at := 0; at < len(ids); at += 8 {
		if err := v.take(native.Uint64(ids[at:])); err != nil {
			return 0, err
		}
	}
	return len(ids) / 8, nil
}

// buckets reads the root and what it refers to; the rows only when all is asked for.
func (v *verifier) buckets(all bool) (fresh bool, err error) {
	root, err := v.page(v.head.root, nil)
	if err != nil {
		return false, fmt.Errorf("its root: %w", err)
	}
	if v.head.transaction <= 1 && root.kind() == typeLeaf && root.count() == 0 {
		return true, nil
	}
	found := make(map[string][]byte)
	err = root.eachLeaf(nil, nil, func(flags uint32, name, value []byte) error {
		if flags != flagBucket {
			return fmt.Errorf("%q is not a bucket", name)
		}
		found[string(name)] = value
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("its root: %w", err)
	}
	rows, record := found[string(rowsName)], found[string(recordName)]
	if rows == nil || record == nil || len(found) != 2 {
		return false, errors.New("its root does not list what a table has, or the file belongs to another program")
	}
	want, err := v.record(record)
	if err != nil || !all {
		return false, err
	}
	return false, v.compare(rows, want)
}

// record reads what must be the only thing in its bucket.
func (v *verifier) record(bucket []byte) (want tally, err error) {
	found := 0
	err = v.bucket(bucket, func(flags uint32, key, value []byte) error {
		found++
		if flags != 0 || !bytes.Equal(key, recordKey) {
			return fmt.Errorf("%q instead of the record of its rows", key)
		}
		want, err = decodeTally(value)
		return err
	})
	if err == nil && found != 1 {
		err = errors.New("the record of its rows is gone")
	}
	return want, err
}

// compare reads all rows, which are to be those that the record was made of.
func (v *verifier) compare(bucket []byte, want tally) error {
	var found tally
	err := v.bucket(bucket, func(flags uint32, key, value []byte) error {
		if flags != 0 {
			return fmt.Errorf("row %s is marked as something else", rowName(key))
		}
		_, err := checkRow(key, value)
		if err == nil {
			found.add(value)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case found.rows != want.rows:
		return fmt.Errorf("it has %d rows of %d", found.rows, want.rows)
	case found != want:
		return errors.New("its rows are not those that were written last")
	}
	return nil
}

// visitor gets the pairs of a bucket in order. They are valid until it returns.
type visitor func(flags uint32, key, value []byte) error

func (v *verifier) bucket(b []byte, visit visitor) error {
	if len(b) < bucketSize {
		return errOutside
	}
	if root := native.Uint64(b); root != 0 {
		return v.tree(root, nil, nil, visit)
	}
	inline := rawPage(b[bucketSize:])
	if len(inline) < pageHeadSize || inline.kind() != typeLeaf {
		return errors.New("a bucket within its root is not a leaf")
	}
	return inline.eachLeaf(nil, nil, visit)
}

// tree visits what is below a page, whose keys are from one, if there is one, to below another.
func (v *verifier) tree(id uint64, from, to []byte, visit visitor) error {
	p, err := v.page(id, v.leaf)
	if err != nil {
		return err
	}
	switch p.kind() {
	case typeLeaf:
		v.leaf = p
		err = p.eachLeaf(from, to, visit)
	case typeBranch:
		v.leaf = nil // it is this page now
		err = v.branch(p, from, to, visit)
	default:
		err = fmt.Errorf("it has type %#x", p.kind())
	}
	if err != nil && !errors.Is(err, metadata.ErrCorrupt) {
		err = damaged("page %d: %w", id, err)
	}
	return err
}

func (v *verifier) branch(p rawPage, from, to []byte, visit visitor) error {
	if p.count() == 0 {
		return errors.New("it is empty")
	}
	key, child, err := p.branch(0)
	for i := range p.count() {
		if err != nil {
			return err
		}
		next, nextChild := to, uint64(0)
		if i+1 < p.count() {
			next, nextChild, err = p.branch(i + 1)
		}
		if err != nil {
			return err
		}
		if outOfOrder(key, from, next) {
			return errOrder
		}
		if err = v.tree(child, key, next, visit); err != nil {
			return err
		}
		key, child, from = next, nextChild, next
	}
	return nil
}

// page reads a page, into buf if that is large enough, and takes all that belongs to it.
func (v *verifier) page(id uint64, buf rawPage) (rawPage, error) {
	if err := v.take(id); err != nil {
		return nil, err
	}
	b := buf
	if cap(b) < v.pageSize {
		b = make(rawPage, v.pageSize)
	}
	b = b[:v.pageSize]
	if err := v.read(b, id); err != nil {
		return nil, err
	}
	if got := native.Uint64(b); got != id {
		return nil, fmt.Errorf("page %d calls itself %d", id, got)
	}
	more := uint64(b.overflow())
	if more == 0 {
		return b, nil
	}
	if more >= v.head.pages {
		return nil, fmt.Errorf("page %d goes on for %d pages", id, more)
	}
	for i := range more {
		if err := v.take(id + 1 + i); err != nil {
			return nil, err
		}
	}
	whole := make(rawPage, (1+more)*uint64(v.pageSize))
	return whole, v.read(whole, id)
}

// take notes that something refers to a page, as only one thing may.
func (v *verifier) take(id uint64) error {
	switch {
	case id >= uint64(len(v.taken)):
		return fmt.Errorf("page %d of %d", id, len(v.taken))
	case v.taken[id]:
		return fmt.Errorf("page %d is referred to twice", id)
	}
	v.taken[id] = true
	return nil
}

func (v *verifier) read(b []byte, id uint64) error {
	if _, err := v.file.ReadAt(b, int64(id)*int64(v.pageSize)); err != nil {
		return fmt.Errorf("read page %d: %w", id, err)
	}
	return nil
}
