// Package memstore is a [segments.Store] in memory, for tests, simulations and
// mem:// servers that forget everything. It reads no clock and starts no goroutine.
package memstore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/varvelog/varve/segments"
)

// Store keeps objects in memory.
type Store struct {
	mu      sync.RWMutex
	objects map[string][]byte // values never change
}

var _ segments.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	return &Store{objects: make(map[string][]byte)}
}

// Put implements [segments.Store].
func (s *Store) Put(ctx context.Context, key string, body segments.Body) error {
	if err := segments.CheckCall(ctx, key); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	data := segments.Bytes(body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, found := s.objects[key]; found {
		return fmt.Errorf("put %s: %w", key, segments.ErrExists)
	}
	s.objects[key] = data
	return nil
}

// Get implements [segments.Store].
func (s *Store) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	if err := segments.CheckCall(ctx, key); err != nil {
		return nil, 0, fmt.Errorf("get %s: %w", key, err)
	}
	s.mu.RLock()
	data, found := s.objects[key]
	s.mu.RUnlock()
	if !found {
		return nil, 0, fmt.Errorf("get %s: %w", key, segments.ErrNotFound)
	}
	size := int64(len(data))
	start, count := segments.ResolveRange(offset, length, size)
	return append(make([]byte, 0, count), data[start:start+count]...), size, nil
}

// Delete implements [segments.Store].
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := segments.CheckCall(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, key)
	return nil
}

// List implements [segments.Store]. It looks at every object.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	if err := segments.Interrupted(ctx); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	var found []segments.ObjectInfo
	for key, data := range s.objects {
		if strings.HasPrefix(key, prefix) && key > after {
			found = append(found, segments.ObjectInfo{Key: key, Size: int64(len(data))})
		}
	}
	slices.SortFunc(found, func(a, b segments.ObjectInfo) int { return strings.Compare(a.Key, b.Key) })
	return found[:min(limit, len(found))], nil
}

// String implements [segments.Store].
func (s *Store) String() string { return "mem://" }
