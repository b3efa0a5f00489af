package sim

import (
	"bytes"
	"io"
	"path"
	"syscall"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

// disk is what a host keeps when its process dies. It can be put into another host.
type disk struct {
	fs *faultfs.FS
	// lost: whatever was on it is gone.
	lost bool
	// late: disks are not waited for in this run.
	late bool
}

// newDisk returns an empty disk that fails as the weather has it.
func newDisk(w *weather) *disk {
	d := &disk{fs: faultfs.New(), late: w.options.CloseAfter > 0}
	d.fs.Intercept(func(op faultfs.Op) *faultfs.Fault {
		var list []odds
		switch op.Kind {
		case faultfs.Sync:
			list = []odds{{syncError, 8, 0}}
		case faultfs.Write:
			list = []odds{{diskFull, 25, 0}}
		default:
			return nil
		}
		switch w.draw(DiskCalls, list).fault {
		case syncError:
			return &faultfs.Fault{Err: syscall.EIO}
		case diskFull:
			return &faultfs.Fault{Err: segments.ErrDiskFull, Short: w.dice.upTo(op.Length + 1)}
		}
		return nil
	})
	return d
}

// kept says whether a buffer file that was set aside holds a value, or one that is to be: its
// gateway's id was closed before the disk came back, or while the gateway did not know.
func (d *disk) kept(value string) bool {
	if !d.late {
		return false
	}
	const dir = "/buffer"
	folders, _ := d.fs.ReadDir(dir) // none: the disk was never used
	for _, folder := range folders {
		files, _ := d.fs.ReadDir(path.Join(dir, folder.Name)) // none: it is a file
		for _, file := range files {
			content, err := d.fs.Content(path.Join(dir, folder.Name, file.Name))
			// The number of the record's headers follows.
			if err == nil && bytes.Contains(content, append([]byte(value), 0)) {
				return true
			}
		}
	}
	return false
}

// mounted is a disk as one process sees it: once that is dead, nothing of it gets there. A
// stopped process is not held up here: what it does to its disk nobody else can see, and
// its callers may hold a mutex, which would stop time.
type mounted struct {
	segments.FS
	life *life
}

func (m *mounted) alive() error {
	if m.life.dead() {
		return errDead
	}
	return nil
}

// Create implements segments.FS.
func (m *mounted) Create(path string) (segments.File, error) {
	if err := m.alive(); err != nil {
		return nil, err
	}
	return m.FS.Create(path)
}

// Rename implements segments.FS.
func (m *mounted) Rename(from, to string) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.FS.Rename(from, to)
}

// Remove implements segments.FS.
func (m *mounted) Remove(path string) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.FS.Remove(path)
}

// Mkdir implements segments.FS.
func (m *mounted) Mkdir(path string) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.FS.Mkdir(path)
}

// SyncDir implements segments.FS.
func (m *mounted) SyncDir(path string) error {
	if err := m.alive(); err != nil {
		return err
	}
	return m.FS.SyncDir(path)
}

// Lock implements segments.FS.
func (m *mounted) Lock(path string) (io.Closer, error) {
	if err := m.alive(); err != nil {
		return nil, err
	}
	return m.FS.Lock(path)
}
