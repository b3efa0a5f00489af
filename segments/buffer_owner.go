package segments

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
)

// bufferClusterFile holds the id of the cluster whose appends the folder keeps.
const bufferClusterFile = "cluster-id"

// Claim makes the folder that of a cluster, or checks that it is. Batches of one
// cluster must never be recovered into another. Durable on return; ErrOtherCluster
// when the folder belongs to another one.
func (d *BufferDir) Claim(cluster ClusterID) error {
	if err := cluster.Validate(); err != nil {
		return err
	}
	path := filepath.Join(d.dir, bufferClusterFile)
	file, err := d.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return d.writeClaim(path, cluster)
	}
	if err != nil {
		return fmt.Errorf("segments: open %s: %w", path, err)
	}
	defer file.Close()
	text := make([]byte, maxID+1)
	n, err := file.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("segments: read %s: %w", path, err)
	}
	switch stored := ClusterID(text[:n]); {
	case stored == cluster:
		return nil
	case stored.Validate() != nil:
		// A crash while the first claim was written: nothing was buffered before it.
		if err := d.fs.Remove(path); err != nil {
			return fmt.Errorf("segments: remove torn %s: %w", path, err)
		}
		return d.writeClaim(path, cluster)
	default:
		return fmt.Errorf("%w: buffer folder %s belongs to cluster %s, the table is that of cluster %s: "+
			"use the table it was made with, or another data folder", ErrOtherCluster, d.dir, stored, cluster)
	}
}

// writeClaim writes the file under another name first: a part of an id looks like an id.
func (d *BufferDir) writeClaim(path string, cluster ClusterID) error {
	torn := path + ".new"
	if err := d.fs.Remove(torn); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("segments: remove %s: %w", torn, err)
	}
	file, err := d.fs.Create(torn)
	if err != nil {
		return fmt.Errorf("segments: create %s: %w", torn, err)
	}
	_, err = file.WriteAt([]byte(cluster), 0)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("segments: write %s: %w", torn, err)
	}
	if err := d.fs.Rename(torn, path); err != nil {
		return fmt.Errorf("segments: rename %s: %w", torn, err)
	}
	return d.fs.SyncDir(d.dir)
}

// Register makes the folder of a gateway id, durably, so that the next process on
// this folder knows that the id was used here and, since it holds the lock, is dead.
func (d *BufferDir) Register(gateway GatewayID) error {
	if err := gateway.Validate(); err != nil {
		return err
	}
	folder := filepath.Join(d.dir, string(gateway))
	if err := d.fs.Mkdir(folder); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("segments: folder %s: %w", folder, err)
	}
	return d.fs.SyncDir(d.dir)
}
