package segments

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

// HedgeConfig says when a read is sent a second time. The zero value of a field means its default.
type HedgeConfig struct {
	// Share of all reads that may be sent a second time (default 0.05).
	Share float64
	// Quantile of the latest reads of about the same size that a read must outlast before it is sent again (default 0.95).
	Quantile float64
	// MinWait is what it must outlast at the least (default 5 ms).
	MinWait time.Duration
	// Sent is told of each second try, Won of each that was answered first. Both may be nil.
	Sent, Won func()
}

const (
	// hedgeSamples is of how many reads of a size it is remembered how long they took; before half of
	// them are known, nothing is sent twice.
	hedgeSamples = 128
	// hedgeSaved is how many second tries can be saved up, for a store that is slow for a moment.
	hedgeSaved = 8
)

// hedgeSizes part reads by size, in bytes: a large one takes longer, and is not late for that.
var hedgeSizes = [...]int64{64 << 10, 1 << 20, 4 << 20}

// Hedge returns the store with reads that take long sent a second time: the first answer counts, the other call is
// cancelled. Writes, deletions and lists are never sent twice. It belongs below [Retry], since it does not try again what failed.
func Hedge(store Store, config HedgeConfig) Store {
	if config.Share == 0 {
		config.Share = 0.05
	}
	if config.Quantile == 0 {
		config.Quantile = 0.95
	}
	if config.MinWait == 0 {
		config.MinWait = 5 * time.Millisecond
	}
	if config.Sent == nil {
		config.Sent = func() {}
	}
	if config.Won == nil {
		config.Won = func() {}
	}
	return &hedging{Store: store, config: config}
}

type hedging struct {
	Store
	config HedgeConfig

	mu      sync.Mutex
	allowed float64 // second tries
	sizes   [len(hedgeSizes) + 1]pastReads
}

// pastReads is how long reads of about a size took.
type pastReads struct {
	took  [hedgeSamples]time.Duration
	count int           // of all there ever were
	late  time.Duration // the quantile, as of the last time it was worked out
}

func (p *pastReads) add(d time.Duration, quantile float64) {
	p.took[p.count%hedgeSamples] = d
	p.count++
	if p.count%(hedgeSamples/8) != 0 || p.count < hedgeSamples/2 {
		return
	}
	sorted := p.took
	known := sorted[:min(p.count, hedgeSamples)]
	slices.Sort(known)
	p.late = known[int(quantile*float64(len(known)-1))]
}

func (h *hedging) past(size int64) *pastReads {
	for i, most := range hedgeSizes {
		if size <= most {
			return &h.sizes[i]
		}
	}
	return &h.sizes[len(hedgeSizes)]
}

// begin counts a read, and says how long to wait before it may be sent again; 0: it is not.
func (h *hedging) begin(size int64) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.allowed = min(h.allowed+h.config.Share, hedgeSaved)
	late := h.past(size).late
	if late == 0 {
		return 0
	}
	return max(late+late/4, h.config.MinWait) // where reads take much the same time, being last is not being late
}

func (h *hedging) end(size int64, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.past(size).add(took, h.config.Quantile)
}

// spend takes a second try off what is allowed.
func (h *hedging) spend() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.allowed < 1 {
		return false
	}
	h.allowed--
	return true
}

// errOvertaken ends a try whose answer is no longer wanted.
var errOvertaken = errors.New("segments: another try was answered first")

// race runs first, and second too once first is late. It returns when first has, with the error of the one that
// counts; won says that it is second.
func (h *hedging) race(ctx context.Context, size int64, first, second func(context.Context) error) (won bool, err error) {
	began := time.Now()
	defer func() {
		if err == nil {
			h.end(size, time.Since(began))
		}
	}()
	wait := h.begin(size)
	if wait == 0 {
		return false, first(ctx)
	}
	one, stopOne := context.WithCancelCause(ctx)
	defer stopOne(nil)
	two, stopTwo := context.WithCancelCause(ctx)
	defer stopTwo(errOvertaken)
	answered := make(chan error, 1)
	timer := time.AfterFunc(wait, func() {
		if !h.spend() {
			answered <- errOvertaken
			return
		}
		h.config.Sent()
		err := second(two)
		answered <- err
		if err == nil {
			stopOne(errOvertaken)
		}
	})
	err = first(one)
	if timer.Stop() || err == nil || !errors.Is(err, ErrUnavailable) {
		return false, err
	}
	if <-answered != nil { // it ends with ctx, at the latest
		return false, err
	}
	h.config.Won()
	return true, nil
}

func (h *hedging) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	type answer struct {
		data []byte
		size int64
	}
	var first, second answer
	try := func(a *answer) func(context.Context) error {
		return func(ctx context.Context) (err error) {
			a.data, a.size, err = h.Store.Get(ctx, key, offset, length)
			return err
		}
	}
	won, err := h.race(ctx, max(length, 0), try(&first), try(&second))
	if won {
		first = second
	}
	if err != nil {
		return nil, 0, err
	}
	return first.data, first.size, nil
}

// GetInto implements [IntoReader].
func (h *hedging) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	return h.GetScattered(ctx, key, [][]byte{into}, offset)
}

// GetScattered implements [ScatterReader]. The second try has memory of its own, and the first has ended when the call
// returns: a late one would write to memory that is in other use by then.
func (h *hedging) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (n int, err error) {
	size := int64(0)
	for _, b := range into {
		size += int64(len(b))
	}
	var data []byte
	won, err := h.race(ctx, size,
		func(ctx context.Context) (err error) {
			n, err = GetScattered(ctx, h.Store, key, into, offset)
			return err
		},
		func(ctx context.Context) (err error) {
			data, _, err = h.Store.Get(ctx, key, offset, size)
			return err
		})
	if won {
		n = Scatter(into, data)
	}
	return n, err
}
