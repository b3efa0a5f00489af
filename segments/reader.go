package segments

import (
	"context"
	"encoding/binary"
	"fmt"
)

// ReadDirectory opens a segment: one ranged read of its end, a second one if the
// directory is larger than that. It checks the directory wholly, and that the
// object is the one which the key names. Errors are those of [Store.Get],
// [ErrCorrupt] and [ErrVersion].
func ReadDirectory(ctx context.Context, store Store, key string) (*Directory, error) {
	d, err := readDirectory(ctx, store, key)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", key, err)
	}
	return d, nil
}

func readDirectory(ctx context.Context, store Store, key string) (*Directory, error) {
	tail, size, err := store.Get(ctx, key, -tailSize, 0)
	if err != nil {
		return nil, err
	}
	if int64(len(tail)) != min(tailSize, size) {
		return nil, fmt.Errorf("%w: got %d bytes of the end of %d", ErrUnavailable, len(tail), size)
	}
	f, err := parseFooter(tail, size)
	if err != nil {
		return nil, err
	}
	var raw []byte
	if missing := f.directoryLength + footerSize - len(tail); missing <= 0 {
		raw = tail[-missing:][:f.directoryLength]
	} else if raw, _, err = store.Get(ctx, key, f.directoryPosition, int64(f.directoryLength)); err != nil {
		return nil, err
	} else if len(raw) != f.directoryLength {
		return nil, fmt.Errorf("%w: got %d of %d bytes of the directory", ErrUnavailable, len(raw), f.directoryLength)
	}
	d, err := f.parse(raw)
	if err != nil {
		return nil, err
	}
	return d, d.checkKey(key)
}

// checkKey notices an object that lies under another's name.
func (d *Directory) checkKey(key string) error {
	if want := d.Key(); want != key {
		return fmt.Errorf("%w: the object says that it is %s", ErrCorrupt, want)
	}
	return nil
}

// ParseDirectory checks and decodes the directory of a whole segment in memory. It
// checks the header too, but no batch: what their bytes must be is in their
// [BatchInfo].
func ParseDirectory(object []byte) (*Directory, error) {
	size := int64(len(object))
	f, err := parseFooter(object, size)
	if err != nil {
		return nil, err
	}
	if err := checkVersion(object[:8], headerMagic, object[8:12]); err != nil {
		return nil, err
	}
	if reserved := binary.BigEndian.Uint32(object[12:]); reserved != 0 {
		return nil, fmt.Errorf("%w: header's reserved bytes are %08x", ErrCorrupt, reserved)
	}
	return f.parse(object[f.directoryPosition:][:f.directoryLength])
}
