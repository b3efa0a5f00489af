package bolttable

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/varvelog/varve/metadata"
)

// Options of Open. The zero value is the one for use.
type Options struct {
	// NoSync leaves out the fsync of each commit, for tests: a crash of the host
	// then loses rows or the file.
	NoSync bool
	// MaxSize bounds the file in bytes; 0 is no bound. Writes that would need more
	// are refused with ErrUnavailable.
	MaxSize int
}

const (
	// lockTimeout is how long Open waits for a file in use. At 50 ms bbolt tries once.
	lockTimeout = 100 * time.Millisecond
	// mapSize is how much address space is mapped at first, in bytes. Growing beyond what is mapped
	// waits for all readers; a map of a gigabyte costs nothing until it is used.
	mapSize = 1 << 30
)

// Table is a metadata.Table in one file. Strong and Eventual reads are the same.
type Table struct {
	path string
	db   *bolt.DB
	file *os.File // the same that db has, to let go of it when db cannot

	requests chan *request
	closing  chan struct{}
	ended    chan struct{} // closed by the writer when it is done
	close    sync.Once
	closeErr error

	// broken is why the table refuses everything since a commit failed.
	broken atomic.Pointer[error]
}

var _ metadata.Table = (*Table)(nil)

// Open opens the file, or makes it (its folder must exist), and starts the writer,
// which Close ends. A file in use is ErrUnavailable, a damaged one ErrCorrupt: all of a file is read,
// if not more than 256 MiB of it are in use. A refused file is left as it is.
func Open(path string, o Options) (*Table, error) {
	info, statErr := os.Stat(path)
	t := &Table{
		path:     path,
		requests: make(chan *request),
		closing:  make(chan struct{}),
		ended:    make(chan struct{}),
	}
	if statErr == nil && info.Mode().IsRegular() && info.Size() > 0 && info.Size() < int64(2*os.Getpagesize()) {
		return nil, t.corrupt(fmt.Errorf("it was cut to %d bytes", info.Size()))
	}
	err := guard(func() error { return t.open(o) })
	if err == nil && errors.Is(statErr, fs.ErrNotExist) && !o.NoSync {
		err = syncFolder(filepath.Dir(path))
	}
	if err != nil {
		_ = t.letGo()
		return nil, t.openError(err)
	}
	go t.write()
	return t, nil
}

func (t *Table) open(o Options) error {
	var err error
	t.db, err = bolt.Open(t.path, 0o600, &bolt.Options{
		Timeout:         lockTimeout,
		FreelistType:    bolt.FreelistMapType,
		InitialMmapSize: mapSize,
		MaxSize:         o.MaxSize,
		NoSync:          o.NoSync,
		NoGrowSync:      o.NoSync,
		NoStatistics:    true,
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			file, err := os.OpenFile(name, flag, mode)
			t.file = file
			return file, err
		},
	})
	if err != nil {
		return err
	}
	info, err := t.file.Stat()
	if err != nil {
		return err
	}
	fresh, err := verify(t.file, info.Size(), t.db.Info().PageSize, verifyLimit)
	if err != nil || !fresh {
		return err
	}
	return t.db.Update(func(tx *bolt.Tx) error {
		for _, name := range [][]byte{rowsName, recordName} {
			if _, err := tx.CreateBucket(name); err != nil {
				return err
			}
		}
		return tally{}.write(tx)
	})
}

func (t *Table) openError(err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s is in use by another process: stop that one, or use another file", metadata.ErrUnavailable, t.path)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return t.corrupt(fmt.Errorf("neither of its two head pages is valid: %w", err))
	case errors.Is(err, errPanic), errors.Is(err, metadata.ErrCorrupt):
		return t.corrupt(err)
	}
	return fmt.Errorf("open %s: %w", t.path, err)
}

// corrupt says what to do about a damaged file.
func (t *Table) corrupt(cause error) error {
	return fmt.Errorf("%w: %s is damaged (%w): keep it aside and restore the file from a copy", metadata.ErrCorrupt, t.path, cause)
}

// Close ends the writer after the commit that it is at, and closes the file. Writes
// that wait are refused with ErrUnavailable, later calls too. It returns when all is done.
func (t *Table) Close() error {
	t.close.Do(func() {
		close(t.closing)
		<-t.ended
		t.closeErr = t.letGo()
	})
	return t.closeErr
}

// letGo closes the file. When bbolt panicked in mid-transaction it may hold locks for
// which its own Close would wait for ever: then the file is unlocked and closed beneath it.
// The map of it stays until the process ends, and would keep the lock.
func (t *Table) letGo() error {
	if t.db == nil || t.isCorrupt() {
		if t.file == nil {
			return nil
		}
		_ = unlock(t.file)
		if err := t.file.Close(); !errors.Is(err, os.ErrClosed) {
			return err
		}
		return nil
	}
	if err := t.db.Close(); err != nil {
		return fmt.Errorf("close %s: %w", t.path, err)
	}
	return nil
}

func (t *Table) isCorrupt() bool {
	err := t.broken.Load()
	return err != nil && errors.Is(*err, metadata.ErrCorrupt)
}

func (t *Table) String() string { return "bolt://" + t.path }

// ready refuses what cannot or must not be asked any more: nothing happened yet.
func (t *Table) ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
	}
	if broken := t.broken.Load(); broken != nil {
		return *broken
	}
	select {
	case <-t.closing:
		return t.closed()
	default:
		return nil
	}
}

func (t *Table) closed() error {
	return fmt.Errorf("%w: %s is closed", metadata.ErrUnavailable, t.path)
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}
