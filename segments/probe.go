package segments

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	probeRacers = 16
	// probeCleanup bounds the deletes after a probe, which run even if its context has
	// ended.
	probeCleanup = 10 * time.Second
)

// probeRetry is for objects of a few bytes, and for a store that drops a call now and then.
// Who waits for one that is away calls again.
var probeRetry = RetryConfig{Tries: 4, MinWait: 50 * time.Millisecond, MaxWait: time.Second, TryTimeout: 5 * time.Second}

// ProbeError says that a store answers, but not as the contract of [Store] demands.
// Several gateways must not share such a store.
type ProbeError struct {
	Store    string   // its name
	Failures []string // a sentence each
}

func (e *ProbeError) Error() string {
	return fmt.Sprintf("segments: %s cannot be trusted: %s", e.Store, strings.Join(e.Failures, "; "))
}

// Probe tries what the log depends on and some stores get wrong: that a create
// succeeds once, also among 16 at the same time; that a write is read back, whole
// and in ranges; that a deleted object is gone. It writes two small objects under the
// prefix, under names never used before, and deletes them. It lists nothing. Calls
// that fail as [ErrUnavailable] are tried a few times.
//
// The error is a [*ProbeError] if the store misbehaves, and otherwise what kept the
// probe from being made: [ErrUnavailable], [ErrDenied], [ErrNoBucket]. A store that left
// calls without an answer is not said to misbehave: one of these may have taken effect late.
func Probe(ctx context.Context, store Store, prefix string) (err error) {
	name := strings.Trim(prefix, "/") + "/probe-" + rand.Text()
	answers := &answering{Store: store}
	p := &probe{ctx: ctx, store: Retry(answers, probeRetry), once: name + "-once", race: name + "-race"}
	defer func() {
		if cleanup := p.cleanup(); cleanup != nil && err == nil {
			err = fmt.Errorf("segments: probe of %s left objects behind at %s-*: %w", store, name, cleanup)
		}
	}()
	for _, step := range []func() error{p.createTwice, p.createAtOnce, p.remove} {
		if err := step(); err != nil {
			return fmt.Errorf("segments: probe of %s: %w", store, err)
		}
	}
	if len(p.failures) == 0 {
		return nil
	}
	failed := &ProbeError{Store: store.String(), Failures: p.failures}
	if missing := answers.missing.Load(); missing > 0 {
		// Not wrapped: it proves nothing.
		return fmt.Errorf("%w: %d calls of a probe went without an answer, so this may be their doing: %v", ErrUnavailable, missing, failed)
	}
	return failed
}

// answering counts the calls that a store gives no answer to.
type answering struct {
	Store
	missing atomic.Int64
}

func (a *answering) note(err error) error {
	if errors.Is(err, ErrUnavailable) {
		a.missing.Add(1)
	}
	return err
}

func (a *answering) Put(ctx context.Context, key string, body Body) error {
	return a.note(a.Store.Put(ctx, key, body))
}

func (a *answering) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	data, size, err := a.Store.Get(ctx, key, offset, length)
	return data, size, a.note(err)
}

func (a *answering) Delete(ctx context.Context, key string) error {
	return a.note(a.Store.Delete(ctx, key))
}

// probe gathers what is wrong; steps return only what ends the probe.
type probe struct {
	ctx        context.Context
	store      Store
	once, race string // keys
	failures   []string
}

func (p *probe) fail(format string, args ...any) {
	p.failures = append(p.failures, fmt.Sprintf(format, args...))
}

func (p *probe) put(key, text string) error {
	return p.store.Put(p.ctx, key, NewBody([]byte(text)))
}

func (p *probe) createTwice() error {
	const text = "varve probe"
	// The name is new: what exists is from a try whose answer was lost, as the read
	// below shows.
	if err := p.put(p.once, text); err != nil && !errors.Is(err, ErrExists) {
		return fmt.Errorf("create: %w", err)
	}
	switch err := p.put(p.once, "replaced"); {
	case err == nil:
		p.fail("it ignores conditions: a second create of an object succeeds (If-None-Match has no effect)")
	case !errors.Is(err, ErrExists):
		return fmt.Errorf("second create: %w", err)
	}
	return p.readBack(text)
}

func (p *probe) readBack(text string) error {
	for _, read := range []struct {
		what           string
		offset, length int64
		want           string
	}{
		{"a whole object", 0, -1, text},
		{"a range", 2, 3, text[2:5]},
		{"the end", -5, 0, text[len(text)-5:]},
	} {
		data, _, err := p.store.Get(p.ctx, p.once, read.offset, read.length)
		switch {
		case errors.Is(err, ErrNotFound):
			p.fail("an object that was just written is not found")
		case err != nil:
			return fmt.Errorf("read of %s: %w", read.what, err)
		case string(data) != read.want:
			p.fail("a read of %s returns %.40q instead of %q", read.what, data, read.want)
		}
	}
	return nil
}

func (p *probe) createAtOnce() error {
	var errs [probeRacers]error
	var racers sync.WaitGroup
	for i := range probeRacers {
		racers.Go(func() { errs[i] = p.put(p.race, racerText(i)) })
	}
	racers.Wait()
	var winners []string
	for i, err := range errs {
		switch {
		case err == nil:
			winners = append(winners, racerText(i))
		case errors.Is(err, ErrExists), errors.Is(err, ErrUnavailable):
			// Unavailable is what a store may say to one of two racers.
		default:
			return fmt.Errorf("create at once: %w", err)
		}
	}
	data, _, err := p.store.Get(p.ctx, p.race, 0, -1)
	switch {
	case len(winners) > 1:
		p.fail("%d of %d creates of one object at the same time succeed", len(winners), probeRacers)
	case len(winners) == 1 && (errors.Is(err, ErrNotFound) || err == nil && string(data) != winners[0]):
		p.fail("of %d creates at the same time one is told that it won (%q), and another is kept (%.40q)", probeRacers, winners[0], data)
	case err != nil: // without a winner: none got through
		return fmt.Errorf("read after creates at once: %w", errors.Join(err, errs[0]))
	}
	return nil
}

func racerText(i int) string { return fmt.Sprintf("racer %d", i) }

func (p *probe) remove() error {
	for range 2 {
		if err := p.store.Delete(p.ctx, p.once); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
	}
	switch _, _, err := p.store.Get(p.ctx, p.once, 0, -1); {
	case err == nil:
		p.fail("a deleted object is still read")
	case !errors.Is(err, ErrNotFound):
		return fmt.Errorf("read after delete: %w", err)
	}
	return nil
}

func (p *probe) cleanup() error {
	ctx, stop := context.WithTimeout(context.WithoutCancel(p.ctx), probeCleanup)
	defer stop()
	return errors.Join(p.store.Delete(ctx, p.once), p.store.Delete(ctx, p.race))
}
