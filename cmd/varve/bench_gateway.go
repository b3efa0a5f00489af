package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/varvelog/varve/gateway"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// newBenchGatewayCommand is `varve serve` with a bucket that may be slowed down, and a table and a bucket whose rows and objects
// are counted: a line on standard input is answered by one with the counts.
func newBenchGatewayCommand() *cobra.Command {
	o := &serveOptions{}
	var putRate, foldBytes byteSize
	var apart bool
	cmd := &cobra.Command{
		Use: "gateway", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows := &rowCounter{live: make(map[metadata.Key]struct{}), sizes: make(map[string]int64)}
			o.wrap = func(c *gateway.Config, b *backends) {
				c.FoldBytes = int(foldBytes)
				if apart {
					table := newApartTable(b.table)
					b.table = table
					b.closers = append(b.closers, func() error { return table.empty(context.Background()) })
				}
				b.table = metadata.Observe(b.table, rows.observe)
				b.store = &countedStore{b.store, rows}
				if putRate > 0 {
					b.store = &slowStore{Store: b.store, rate: float64(putRate)}
				}
			}
			go rows.answer(cmd.InOrStdin(), cmd.OutOrStdout()) // ends with standard input
			return serve(cmd.Context(), o, cmd.ErrOrStderr(), nil)
		},
	}
	o.register(cmd.Flags())
	cmd.Flags().Var(&foldBytes, "fold-bytes", "bytes of journal entries that no checkpoint has before there are checkpoints (default: the gateway's)")
	cmd.Flags().Var(&putRate, "put-rate", "bytes a second that the bucket takes (default: as many as it can)")
	cmd.Flags().BoolVar(&apart, "apart", false, "keep rows under a prefix of their own, and remove them at the end")
	return cmd
}

// rowCounts are the rows of a table by what they are for; see docs/metadata.md.
type rowCounts struct {
	Journal int `json:"journal"`
	Topics  int `json:"topics"`
	Leases  int `json:"leases"`  // of partitions, those of deleted topics too, for a minute
	Removed int `json:"removed"` // that say which topics were deleted; see docs/retention.md
	Index   int `json:"index"`   // all other rows of partitions: pages, nodes, producers
	Others  int `json:"others"`
	// Objects in the bucket, and their bytes.
	Objects int   `json:"objects"`
	Bytes   int64 `json:"bytes"`
}

// rowCounter knows which rows a table, and which objects a bucket holds that were empty at first.
type rowCounter struct {
	mu    sync.Mutex
	live  map[metadata.Key]struct{}
	sizes map[string]int64
	sums  rowCounts
}

// holds takes note of an object and its size; below 0: it is gone.
func (r *rowCounter) holds(key string, size int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if was, there := r.sizes[key]; there {
		delete(r.sizes, key)
		r.sums.Objects, r.sums.Bytes = r.sums.Objects-1, r.sums.Bytes-was
	}
	if size >= 0 {
		r.sizes[key] = size
		r.sums.Objects, r.sums.Bytes = r.sums.Objects+1, r.sums.Bytes+size
	}
}

// countedStore tells of what it comes to hold.
type countedStore struct {
	segments.Store
	counter *rowCounter
}

// Put implements [segments.Store].
func (s *countedStore) Put(ctx context.Context, key string, body segments.Body) error {
	err := s.Store.Put(ctx, key, body)
	if err == nil {
		s.counter.holds(key, body.Size())
	}
	return err
}

// Delete implements [segments.Store].
func (s *countedStore) Delete(ctx context.Context, key string) error {
	err := s.Store.Delete(ctx, key)
	if err == nil {
		s.counter.holds(key, -1)
	}
	return err
}

// GetInto implements [segments.IntoReader].
func (s *countedStore) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	return segments.GetInto(ctx, s.Store, key, into, offset)
}

// GetScattered implements [segments.ScatterReader].
func (s *countedStore) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (int, error) {
	return segments.GetScattered(ctx, s.Store, key, into, offset)
}

func (r *rowCounter) observe(o metadata.Observation) {
	if o.Op.Reads() || o.Err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, was := r.live[o.Key]
	switch {
	case o.Op == metadata.OpPut && !was:
		r.live[o.Key] = struct{}{}
		r.sums.add(o.Key, 1)
	case o.Op == metadata.OpDelete && was:
		delete(r.live, o.Key)
		r.sums.add(o.Key, -1)
	}
}

func (s *rowCounts) add(key metadata.Key, n int) {
	switch ofPartition := strings.HasPrefix(key.Partition, "partition/"); {
	case strings.HasPrefix(key.Partition, "journal/"):
		s.Journal += n
	case key.Partition == metadata.TopicRange().Partition:
		s.Topics += n
	case ofPartition && key.Sort == "lease":
		s.Leases += n
	case ofPartition:
		s.Index += n
	case key.Partition == metadata.RemovedRange().Partition:
		s.Removed += n
	default:
		s.Others += n
	}
}

func (r *rowCounter) answer(in io.Reader, out io.Writer) {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		r.mu.Lock()
		sums := r.sums
		r.mu.Unlock()
		if json.NewEncoder(out).Encode(sums) != nil {
			return
		}
	}
}

// rows asks a gateway that newBenchGatewayCommand runs.
func (c *child) rows() (r rowCounts, err error) {
	if _, err := fmt.Fprintln(c.stdin); err != nil {
		return r, err
	}
	line, err := c.stdout.ReadBytes('\n')
	if err != nil {
		return r, c.failed()
	}
	return r, json.Unmarshal(line, &r)
}

// slowStore takes so many bytes a second, of all callers together.
type slowStore struct {
	segments.Store
	rate float64 // bytes a second
	mu   sync.Mutex
	free time.Time // when what was taken is through
}

// Put waits until the bytes are through, which the others that wait go before.
func (s *slowStore) Put(ctx context.Context, key string, body segments.Body) error {
	s.mu.Lock()
	now := time.Now()
	if s.free.Before(now) {
		s.free = now
	}
	s.free = s.free.Add(time.Duration(float64(body.Size()) / s.rate * float64(time.Second)))
	wait := s.free.Sub(now)
	s.mu.Unlock()
	if !sleep(ctx, wait) {
		return fmt.Errorf("%w: %w", segments.ErrUnavailable, ctx.Err())
	}
	return s.Store.Put(ctx, key, body)
}

// GetInto implements [segments.IntoReader].
func (s *slowStore) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	return segments.GetInto(ctx, s.Store, key, into, offset)
}

// GetScattered implements [segments.ScatterReader].
func (s *slowStore) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (int, error) {
	return segments.GetScattered(ctx, s.Store, key, into, offset)
}
