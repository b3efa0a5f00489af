package segments

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Errors that every [Store] translates its own failures into, wrapped with
// detail. Callers branch on these and on nothing else.
var (
	// ErrNotFound says that the object does not exist.
	ErrNotFound = errors.New("segments: object not found")
	// ErrExists says that an object of that key exists already. After a retry it
	// may be the caller's own first try: read it back and compare.
	ErrExists = errors.New("segments: object exists already")
	// ErrUnavailable says that the store could not be asked or did not answer in
	// time (throttled, refused, timed out). For a write the outcome is
	// unknown: the object may exist now, or appear later.
	ErrUnavailable = errors.New("segments: store unavailable")
	// ErrFull is an [ErrUnavailable] of a store that takes no more bytes (quota, disk). What it holds can be read, and
	// deleted to make room.
	ErrFull = fmt.Errorf("%w: it is full", ErrUnavailable)
	// ErrDenied says that the store refused the credentials or the permission.
	// Trying again does not help until somebody changes them.
	ErrDenied = errors.New("segments: access denied")
	// ErrNoBucket says that the bucket (or folder) itself does not exist.
	ErrNoBucket = errors.New("segments: bucket does not exist")
	// ErrOtherCluster says that the bucket or folder belongs to another cluster.
	ErrOtherCluster = errors.New("segments: of another cluster")
	// ErrCorrupt says that stored bytes disagree with their checksum or format.
	ErrCorrupt = errors.New("segments: corrupt")
)

// Body is what is written as one object: bytes that can be read more than once,
// because a write may be tried again.
type Body interface {
	io.ReaderAt
	// Size is the length in bytes.
	Size() int64
	// Slices returns the bytes as they lie in memory, in order. The caller must
	// not change them.
	Slices() [][]byte
}

// ObjectInfo names a stored object.
type ObjectInfo struct {
	Key  string
	Size int64 // bytes
}

// Store is the bucket: named immutable objects. Keys are what [ValidateKey] accepts,
// and no key is a folder of another ("a" and "a/b"): in a file system they could not
// both be. All methods may be called at once from many goroutines. A
// cancelled context ends the call early with an error that wraps
// context.Canceled or context.DeadlineExceeded as well as [ErrUnavailable].
//
// Backends try each request once; tries, hedges, metrics and faults are
// decorators above them.
type Store interface {
	// Put creates the object and returns once it is durable. It is atomic: readers
	// see the whole object or none. It never replaces: when the key exists it
	// returns ErrExists and changes nothing, also among racing callers, of whom
	// exactly one wins. A failed or cancelled Put leaves the object whole or absent.
	// Once it returned without an error nobody reads the body any more; after a try
	// that failed somebody may, for a while.
	Put(ctx context.Context, key string, body Body) error
	// Get reads length bytes from offset into a new slice. A negative offset
	// counts from the end (-n: the last n bytes, or the whole object when it is
	// shorter; length is then ignored). A negative length reads to the end.
	// A range that reaches past the end is cut; one that starts at or past the end
	// gives an empty slice. Also returns the object's whole size.
	// ErrNotFound when the object is absent.
	Get(ctx context.Context, key string, offset, length int64) (data []byte, size int64, err error)
	// Delete removes the object; removing what is absent is no error.
	Delete(ctx context.Context, key string) error
	// List returns objects whose key starts with prefix and sorts after `after`, in
	// key order, at most limit of them (limit > 0). An empty result is the end.
	List(ctx context.Context, prefix, after string, limit int) ([]ObjectInfo, error)
	// String describes the store for logs, without secrets: "s3://bucket/prefix".
	String() string
}

// IntoReader is a [Store] that can read into memory of the caller's. Reading much at a
// time, that spares making, clearing and collecting a slice for each read.
type IntoReader interface {
	// GetInto fills into with the object's bytes from offset (0 or more) on, and returns how
	// many there were: fewer than asked for only at the object's end. Errors are those of
	// Get; into then holds anything.
	GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error)
}

// GetInto reads by the store's own GetInto, or by Get and a copy.
func GetInto(ctx context.Context, s Store, key string, into []byte, offset int64) (int, error) {
	if r, ok := s.(IntoReader); ok {
		return r.GetInto(ctx, key, into, offset)
	}
	data, _, err := s.Get(ctx, key, offset, int64(len(into)))
	return copy(into, data), err
}

// ScatterReader is a [Store] that can read one range into several pieces of memory.
type ScatterReader interface {
	// GetScattered fills the slices one after the other. Otherwise it is as GetInto.
	GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (int, error)
}

// GetScattered reads by the store's own GetScattered, or by Get and copies.
func GetScattered(ctx context.Context, s Store, key string, into [][]byte, offset int64) (int, error) {
	if len(into) == 1 {
		return GetInto(ctx, s, key, into[0], offset)
	}
	if r, ok := s.(ScatterReader); ok {
		return r.GetScattered(ctx, key, into, offset)
	}
	length := int64(0)
	for _, b := range into {
		length += int64(len(b))
	}
	data, _, err := s.Get(ctx, key, offset, length)
	return Scatter(into, data), err
}

// Scatter copies data into slices, one after the other, and returns how much there was room for.
func Scatter(into [][]byte, data []byte) (n int) {
	for _, b := range into {
		n += copy(b, data[n:])
	}
	return n
}

// ReadScattered reads count bytes into slices, one after the other. They must have room for it.
func ReadScattered(body io.Reader, into [][]byte, count int64) (n int64, err error) {
	for _, b := range into {
		m, err := io.ReadFull(body, b[:min(int64(len(b)), count-n)])
		if n += int64(m); err != nil || n == count {
			return n, err
		}
	}
	return n, nil
}

// clusterKey names the object that says which cluster a bucket belongs to.
const clusterKey = "cluster-id"

// ClaimStore makes the bucket (below its prefix) that of a cluster, or checks that it
// is: a table that was lost or mixed up must be noticed, not begun anew. It returns
// ErrOtherCluster when the bucket belongs to another one.
func ClaimStore(ctx context.Context, s Store, cluster ClusterID) error {
	err := s.Put(ctx, clusterKey, NewBody([]byte(cluster)))
	if !errors.Is(err, ErrExists) {
		return err
	}
	stored, _, err := s.Get(ctx, clusterKey, 0, maxID+1)
	if err != nil || ClusterID(stored) == cluster {
		return err
	}
	return otherCluster(s, stored, cluster)
}

// CheckStore is ClaimStore for a table that was in use before: some bucket is its cluster's already, so that one that
// says nothing is ErrOtherCluster, too.
func CheckStore(ctx context.Context, s Store, cluster ClusterID) error {
	stored, _, err := s.Get(ctx, clusterKey, 0, maxID+1)
	switch {
	case errors.Is(err, ErrNotFound):
		return fmt.Errorf("%w: %s does not say whose it is, and the table, of cluster %q, has been in use with a bucket: "+
			"give this gateway the same bucket and prefix as the others; if its objects are gone, so are the records", ErrOtherCluster, s, cluster)
	case err != nil || ClusterID(stored) == cluster:
		return err
	}
	return otherCluster(s, stored, cluster)
}

func otherCluster(s Store, stored []byte, cluster ClusterID) error {
	return fmt.Errorf("%w: %s belongs to cluster %q, the table is that of cluster %q: "+
		"use the table that it was made with, or another bucket or prefix", ErrOtherCluster, s, stored, cluster)
}
