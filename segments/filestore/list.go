package filestore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/varvelog/varve/segments"
)

// List implements [segments.Store]. It reads only folders that can hold what is
// asked for.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	l := lister{store: s, ctx: ctx, prefix: prefix, after: after, limit: limit}
	if err := l.folder(""); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, s.explain(err))
	}
	return l.found, nil
}

type lister struct {
	store         *Store
	ctx           context.Context
	prefix, after string
	limit         int
	found         []segments.ObjectInfo
}

// folder adds the objects below a folder, which is "" or ends in a slash.
func (l *lister) folder(folder string) error {
	if err := segments.Interrupted(l.ctx); err != nil {
		return err
	}
	entries, err := os.ReadDir(l.store.path(folder))
	if errors.Is(err, fs.ErrNotExist) && folder != "" {
		return nil
	}
	if err != nil {
		return err
	}
	// "a-b" sorts before "a/b", so a folder takes its place with its slash.
	name := func(e fs.DirEntry) string {
		if e.IsDir() {
			return e.Name() + "/"
		}
		return e.Name()
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(name(a), name(b)) })
	for _, entry := range entries {
		if len(l.found) == l.limit {
			return nil
		}
		if err := l.entry(folder+name(entry), entry); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) entry(key string, entry fs.DirEntry) error {
	if entry.IsDir() {
		within := strings.HasPrefix(key, l.prefix) || strings.HasPrefix(l.prefix, key)
		passed := l.after > key && !strings.HasPrefix(l.after, key)
		if !within || passed || key == tempFolder+"/" {
			return nil
		}
		return l.folder(key)
	}
	if !entry.Type().IsRegular() || !strings.HasPrefix(key, l.prefix) || key <= l.after || segments.ValidateKey(key) != nil {
		return nil
	}
	info, err := entry.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	l.found = append(l.found, segments.ObjectInfo{Key: key, Size: info.Size()})
	return nil
}
