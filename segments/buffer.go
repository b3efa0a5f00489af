package segments

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/varvelog/varve/internal/seeded"
)

// BufferSuffix ends the name of every buffer file.
const BufferSuffix = ".buf"

// damagedSuffix ends the name of a file that was set aside.
const damagedSuffix = ".damaged"

const lockName = "LOCK"

// DefaultBufferReserve is the room that is kept free on the buffer's disk, in bytes.
const DefaultBufferReserve = 256 << 20

// BufferConfig says how a buffer folder is used. The zero value is the default.
type BufferConfig struct {
	// Reserve is how many bytes of the disk must stay free, so that what is
	// open can still be finished: 0 for DefaultBufferReserve, at most 2^50.
	Reserve int64
	// Entropy gives the random marker of each file; nil for crypto/rand. For tests.
	Entropy io.Reader
}

// Validate returns an error that says what is wrong with the configuration.
func (c BufferConfig) Validate() error {
	if c.Reserve < 0 || c.Reserve > 1<<50 {
		return fmt.Errorf("segments: buffer reserve is %d bytes: must be 0 (for %d) to 2^50", c.Reserve, DefaultBufferReserve)
	}
	return nil
}

// BufferDir is the folder of the write-ahead buffer:
//
//	<dir>/LOCK                                    held while the folder is in use
//	<dir>/<gateway id>/<number>.buf               batches acknowledged before their commit
//	<dir>/<gateway id>/<number>.buf.damaged       set aside, for a person to look at
//
// Nothing is removed but by Remove and RemoveGateway, and what else lies there is
// left alone. Methods may be called at once.
type BufferDir struct {
	fs     FS
	dir    string
	config BufferConfig
	lock   io.Closer

	mu    sync.Mutex
	named map[GatewayID]bool // gateways whose folder's name is durable
}

// OpenBufferDir makes the folder if it is absent and locks it until Close. While
// another process uses it the error is [ErrLocked].
func OpenBufferDir(fs FS, dir string, config BufferConfig) (*BufferDir, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if config.Reserve == 0 {
		config.Reserve = DefaultBufferReserve
	}
	if config.Entropy == nil {
		config.Entropy = rand.Reader
	}
	if err := makeFolder(fs, dir); err != nil {
		return nil, fmt.Errorf("segments: buffer folder %s: %w", dir, err)
	}
	lock, err := fs.Lock(filepath.Join(dir, lockName))
	if errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("segments: buffer folder %s is in use by another process: "+
			"stop that one, or give this one a data folder of its own: %w", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("segments: lock buffer folder %s: %w", dir, err)
	}
	return &BufferDir{fs: fs, dir: dir, config: config, lock: lock, named: make(map[GatewayID]bool)}, nil
}

// makeFolder makes a folder and the missing ones above it, durably. Its own name is
// synced even if it was there: whoever made it may have died before the sync.
func makeFolder(sys FS, dir string) error {
	parent := filepath.Dir(dir)
	err := sys.Mkdir(dir)
	if errors.Is(err, fs.ErrNotExist) && parent != dir {
		if err := makeFolder(sys, parent); err != nil {
			return err
		}
		err = sys.Mkdir(dir)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return sys.SyncDir(parent)
}

// Close gives the folder back. Its files must be closed before.
func (d *BufferDir) Close() error { return d.lock.Close() }

// Free is how many bytes may still be written to the disk.
func (d *BufferDir) Free() (int64, error) { return d.fs.Free(d.dir) }

// Room is how many bytes may be written before the reserve is touched: refuse
// appends when it is 0 or less.
func (d *BufferDir) Room() (int64, error) {
	free, err := d.Free()
	return free - d.config.Reserve, err
}

// Create makes the buffer file of a segment. Nothing of it is durable before the
// first Sync. A number is never used twice: the error is fs.ErrExist then.
func (d *BufferDir) Create(gateway GatewayID, number uint64) (*BufferFile, error) {
	if err := gateway.Validate(); err != nil {
		return nil, err
	}
	if number == 0 {
		return nil, fmt.Errorf("segments: buffer of gateway %s: numbers start at 1", gateway)
	}
	f := &BufferFile{dir: d, gateway: gateway, path: d.path(gateway, number)}
	if _, err := io.ReadFull(d.config.Entropy, f.marker[:]); err != nil {
		return nil, fmt.Errorf("segments: marker for %s: %w", f.path, err)
	}
	f.marker[0] |= 0x80 // zeros, as a lost block leaves them, are no marker
	if err := d.fs.Mkdir(filepath.Dir(f.path)); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("segments: folder of buffer file %s: %w", f.path, err)
	}
	file, err := d.fs.Create(f.path)
	if err != nil {
		return nil, fmt.Errorf("segments: create buffer file %s: %w", f.path, err)
	}
	f.file, f.size = file, bufferHeaderSize
	header := appendBufferHeader(nil, bufferHeader{marker: f.marker, gateway: gateway, number: number})
	if err := f.write(0, header); err != nil {
		return nil, errors.Join(fmt.Errorf("segments: header of %s: %w", f.path, err), f.Remove())
	}
	return f, nil
}

func (d *BufferDir) path(gateway GatewayID, number uint64) string {
	return filepath.Join(d.dir, string(gateway), bufferName(number))
}

func bufferName(number uint64) string {
	return fmt.Sprintf("%0*d%s", numberDigits, number, BufferSuffix)
}

// syncNames makes the names in a gateway's folder durable, and the folder's own name.
func (d *BufferDir) syncNames(gateway GatewayID) error {
	if seeded.Has(seeded.SkipFolderSync) {
		return nil
	}
	if err := d.fs.SyncDir(filepath.Join(d.dir, string(gateway))); err != nil {
		return err
	}
	d.mu.Lock()
	named := d.named[gateway]
	d.mu.Unlock()
	if named {
		return nil
	}
	if err := d.fs.SyncDir(d.dir); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.named[gateway] = true
	return nil
}

// Gateways returns the ids that have a folder here, in order: this process's own,
// once it has made a file, and those of earlier starts that were not removed.
func (d *BufferDir) Gateways() ([]GatewayID, error) {
	entries, err := d.fs.ReadDir(d.dir)
	if err != nil {
		return nil, fmt.Errorf("segments: list buffer folder %s: %w", d.dir, err)
	}
	var ids []GatewayID
	for _, e := range entries {
		if id := GatewayID(e.Name); e.Dir && id.Validate() == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// SettleGateway returns once every removal of a file in the id's folder is durable.
// Call it before the id is marked as closed: batches that a crash brought back could
// not be submitted any more after that. It fails when buffer files are left. The
// folder stays: should the process end before the id is marked, the next one has to
// know that it is its own. An absent folder is no error.
func (d *BufferDir) SettleGateway(gateway GatewayID) error {
	if err := gateway.Validate(); err != nil {
		return err
	}
	folder := filepath.Join(d.dir, string(gateway))
	entries, err := d.fs.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return d.fs.SyncDir(d.dir)
	}
	if err != nil {
		return fmt.Errorf("segments: list buffer folder %s: %w", folder, err)
	}
	for _, e := range entries {
		if _, ok := parseBufferName(e.Name); ok {
			return fmt.Errorf("segments: buffer folder %s still has %s: finish it first", folder, e.Name)
		}
	}
	return d.fs.SyncDir(folder)
}

// RemoveGateway settles an id and removes its folder, durably. Call it once the id is
// marked as closed. A folder with files that were set aside stays, as does one with
// anything foreign in it; that is no error, nor is an absent folder.
func (d *BufferDir) RemoveGateway(gateway GatewayID) error {
	if err := d.SettleGateway(gateway); err != nil {
		return err
	}
	folder := filepath.Join(d.dir, string(gateway))
	entries, err := d.fs.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) || len(entries) > 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("segments: list buffer folder %s: %w", folder, err)
	}
	d.mu.Lock()
	delete(d.named, gateway)
	d.mu.Unlock()
	if err := d.fs.Remove(folder); err != nil {
		return fmt.Errorf("segments: remove buffer folder %s: %w", folder, err)
	}
	return d.fs.SyncDir(d.dir)
}
