package metadata

import (
	"context"
	"fmt"
	"math"
)

// firstProducer is the lowest producer id that is given out: small numbers are left
// to tests and tools.
const firstProducer = 1000

// MaxProducerBlock bounds the producer ids that one call allocates.
const MaxProducerBlock = 1_000_000

// Cluster is what there is once in a table. Its methods may be called at once.
type Cluster struct {
	ID    string
	table Table
}

var (
	clusterKey    = Key{clusterPartition, "id"}
	generationKey = Key{clusterPartition, "generation"}
	producersKey  = Key{clusterPartition, "producers"}
)

type clusterRow struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
}

type generationRow struct {
	Format     int    `json:"format"`
	Generation uint64 `json:"generation"`
}

type producersRow struct {
	Format int   `json:"format"`
	Next   int64 `json:"next"` // lowest id never given out
}

// OpenCluster returns the cluster of the table; the first to ask names it.
func OpenCluster(ctx context.Context, t Table) (*Cluster, error) {
	row, err := update(ctx, t, clusterKey, func(was Row) (any, error) {
		if was.Stamp != (Stamp{}) {
			return nil, nil
		}
		return clusterRow{formatV1, NewClusterID()}, nil
	})
	if err != nil {
		return nil, fmt.Errorf("cluster id: %w", err)
	}
	var r clusterRow
	if err := decodeJSON(row, &r); err != nil {
		return nil, err
	}
	if r.ID == "" {
		return nil, fmt.Errorf("%w: row %s has no id", ErrCorrupt, row.Key)
	}
	return &Cluster{ID: r.ID, table: t}, nil
}

// Generation counts how often the generation was raised, by a strong read. It tells a
// table from an older copy of itself.
func (c *Cluster) Generation(ctx context.Context) (uint64, error) {
	row, err := getOrNone(ctx, c.table, generationKey)
	if err != nil {
		return 0, fmt.Errorf("generation: %w", err)
	}
	r, err := decodeGeneration(row)
	return r.Generation, err
}

func decodeGeneration(row Row) (generationRow, error) {
	r := generationRow{Format: formatV1}
	if row.Stamp == (Stamp{}) {
		return r, nil
	}
	err := decodeJSON(row, &r)
	return r, err
}

// RaiseGeneration raises the generation and returns it as this call made it: no other
// call returns the same. It may leave some out.
func (c *Cluster) RaiseGeneration(ctx context.Context) (uint64, error) {
	var r generationRow
	_, err := update(ctx, c.table, generationKey, func(was Row) (value any, err error) {
		r, err = decodeGeneration(was)
		r.Generation++
		return r, err
	})
	if err != nil {
		return 0, fmt.Errorf("raise generation: %w", err)
	}
	return r.Generation, nil
}

// AllocateProducers gives out count producer ids from first on, which nobody had and
// nobody else gets. Ids in doubt are left out.
func (c *Cluster) AllocateProducers(ctx context.Context, count int64) (first int64, err error) {
	if count < 1 || count > MaxProducerBlock {
		return 0, fmt.Errorf("%w: %d producer ids at once; 1 to %d can be had", ErrInvalid, count, MaxProducerBlock)
	}
	_, err = update(ctx, c.table, producersKey, func(was Row) (any, error) {
		r := producersRow{formatV1, firstProducer}
		if was.Stamp != (Stamp{}) {
			if err := decodeJSON(was, &r); err != nil {
				return nil, err
			}
		}
		if r.Next < firstProducer || r.Next > math.MaxInt64-count {
			return nil, fmt.Errorf("%w: row %s: producer ids go on at %d", ErrCorrupt, was.Key, r.Next)
		}
		first = r.Next
		r.Next += count
		return r, nil
	})
	if err != nil {
		return 0, fmt.Errorf("allocate producer ids: %w", err)
	}
	return first, nil
}
