package segments

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Damage is a stretch of a buffer file that was written whole and is not any more.
// It wraps [ErrCorrupt].
type Damage struct {
	Path     string
	Position int64 // bytes from the start of the file
	Length   int64 // bytes
	Reason   string
}

// Error says where the damage is, and what it means.
func (d Damage) Error() string {
	return fmt.Sprintf("%v: buffer file %s, bytes %d to %d: %s", ErrCorrupt, d.Path, d.Position, d.Position+d.Length, d.Reason)
}

// Unwrap returns ErrCorrupt.
func (d Damage) Unwrap() error { return ErrCorrupt }

// RecoveredBatch is one batch found in a buffer file.
type RecoveredBatch struct {
	Span SpanID
	Info BatchInfo // Position is 0
	Data []byte
}

// RecoveredFile is a buffer file that an earlier process left behind.
type RecoveredFile struct {
	Gateway GatewayID
	Number  uint64
	Size    int64 // bytes on disk
	Batches int   // good ones
	// TornBytes is the length of the bad bytes after the last good batch: what was
	// being written when the crash came, and was not acknowledged.
	TornBytes int64
	// Damage lists bad bytes before a good batch. What they held may have been
	// acknowledged and is lost, so such a file is set aside and never removed.
	Damage []Damage

	dir *BufferDir
}

// Scan checks every buffer file in the folder and returns them by gateway id and
// number, both ascending. It is meant for the start, before Create. Damage is not an
// error: it is reported with its file. A file of a newer version is ErrVersion, one
// that cannot be read the system's error, and then nothing is returned: what is
// skipped today could not be sent in order tomorrow. Files that were set aside are
// not looked at.
//
// Memory is bounded by the largest batch.
func (d *BufferDir) Scan() ([]RecoveredFile, error) {
	gateways, err := d.Gateways()
	if err != nil {
		return nil, err
	}
	var files []RecoveredFile
	for _, gateway := range gateways {
		numbers, err := d.numbers(gateway)
		if err != nil {
			return nil, err
		}
		for _, number := range numbers {
			file := RecoveredFile{Gateway: gateway, Number: number, dir: d}
			if err := file.check(); err != nil {
				return nil, err
			}
			files = append(files, file)
		}
	}
	return files, nil
}

// numbers lists the buffer files of a gateway, ascending.
func (d *BufferDir) numbers(gateway GatewayID) ([]uint64, error) {
	folder := filepath.Join(d.dir, string(gateway))
	entries, err := d.fs.ReadDir(folder)
	if err != nil {
		return nil, fmt.Errorf("segments: list buffer folder %s: %w", folder, err)
	}
	var numbers []uint64
	for _, e := range entries {
		if number, ok := parseBufferName(e.Name); ok && !e.Dir {
			numbers = append(numbers, number)
		}
	}
	slices.SortFunc(numbers, cmp.Compare[uint64])
	return numbers, nil
}

// parseBufferName is the inverse of bufferName.
func parseBufferName(name string) (uint64, bool) {
	digits, found := strings.CutSuffix(name, BufferSuffix)
	number, err := strconv.ParseUint(digits, 10, 64)
	return number, found && err == nil && number > 0 && len(digits) == numberDigits
}

// check fills in what the file holds.
func (f *RecoveredFile) check() error {
	scan, err := f.scan(false, func(frame) bool { return true })
	if err != nil {
		return err
	}
	f.Size, f.Batches, f.TornBytes, f.Damage = scan.size, scan.frames, scan.torn, scan.damage
	for i := range f.Damage {
		f.Damage[i].Path = f.Path()
	}
	return nil
}

func (f *RecoveredFile) scan(keep bool, use func(frame) bool) (*bufferScan, error) {
	fail := func(err error) (*bufferScan, error) {
		return nil, fmt.Errorf("segments: scan buffer file %s: %w", f.Path(), err)
	}
	file, err := f.dir.fs.Open(f.Path())
	if err != nil {
		return fail(err)
	}
	size, err := file.Size()
	if err != nil {
		return fail(errors.Join(err, file.Close()))
	}
	scan := &bufferScan{in: file, size: size, keep: keep, want: bufferHeader{gateway: f.Gateway, number: f.Number}}
	if err := errors.Join(scan.run(use), file.Close()); err != nil {
		return fail(err)
	}
	return scan, nil
}

// Path is where the file lies.
func (f *RecoveredFile) Path() string { return f.dir.path(f.Gateway, f.Number) }

// All reads the good batches in the order in which they were appended, one at a time;
// each is the caller's. It ends after an error of reading, which comes without a batch.
func (f *RecoveredFile) All() iter.Seq2[RecoveredBatch, error] {
	return func(yield func(RecoveredBatch, error) bool) {
		more := true
		_, err := f.scan(true, func(fr frame) bool {
			more = yield(RecoveredBatch{Span: fr.span, Info: fr.info, Data: fr.data}, nil)
			return more
		})
		if err != nil && more {
			yield(RecoveredBatch{}, err)
		}
	}
}

// Remove removes the file, when every batch in it is committed. It refuses a damaged
// one. As with [BufferFile.Remove], RemoveGateway makes it durable.
func (f *RecoveredFile) Remove() error {
	if len(f.Damage) > 0 {
		return fmt.Errorf("segments: remove buffer file %s: set it aside instead: %w", f.Path(), f.Damage[0])
	}
	return f.dir.fs.Remove(f.Path())
}

// SetAside renames a damaged file to <name>.damaged, durably, so that later scans
// pass it by and a person can look at it.
func (f *RecoveredFile) SetAside() error {
	from := f.Path()
	to := from + damagedSuffix
	entries, err := f.dir.fs.ReadDir(filepath.Dir(from))
	if err != nil {
		return fmt.Errorf("segments: set buffer file %s aside: %w", from, err)
	}
	for _, e := range entries {
		if e.Name == filepath.Base(to) {
			return fmt.Errorf("segments: set buffer file %s aside: %s exists: move that one away", from, to)
		}
	}
	if err := f.dir.fs.Rename(from, to); err != nil {
		return fmt.Errorf("segments: set buffer file %s aside: %w", from, err)
	}
	return f.dir.fs.SyncDir(filepath.Dir(from))
}
