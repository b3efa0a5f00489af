package sim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// errNoAnswer says that a call to bucket or table failed as the weather had it.
var errNoAnswer = errors.New("sim: the call failed")

// tryTime is how long one try of a call may take before its client library gives up.
const tryTime = 5 * time.Second

// way is how one process reaches the bucket or the table.
type way struct {
	weather *weather
	strays  *sync.WaitGroup // effects that nobody waits for
	life    *life
	// ambushes wait for its writes.
	ambushes *ambushes
	from     string
	to       string // bucketName or tableName
	family   Family
	odds     []odds
	latency  time.Duration // of one direction, about
}

// failure is a call that failed. In doubt it may have had its effect, or may yet.
type failure struct {
	fault Fault
	doubt bool
	cause error // of a context
}

func (f *failure) Error() string {
	return fmt.Sprintf("%v: %s", errNoAnswer, f.fault)
}

func (f *failure) Unwrap() error { return f.cause }

// call has an effect at the service and brings its answer back, or not. The effect may happen
// when the caller is long gone.
func (w *way) call(ctx context.Context, key string, effect func() error) error {
	if err := w.life.pass(); err != nil {
		return &failure{"dead", true, err}
	}
	if fault, yes := w.weather.pressed(w.to, key); yes {
		_ = rest(ctx, w.latency)
		return &failure{fault, false, ctx.Err()}
	}
	f := w.weather.draw(w.family, w.odds)
	if w.weather.blocked(w.from, w.to) {
		f = fate{fault: vanished}
		w.weather.fire(blockedOut)
	}
	if f.fault == slow {
		_ = rest(ctx, f.delay)
	}
	if err := rest(ctx, w.travel()); err != nil {
		w.perhaps(effect)
		return &failure{"caller gave up", true, err}
	}
	switch f.fault {
	case refused:
		return &failure{f.fault, false, nil}
	case vanished:
		return &failure{f.fault, true, rest(ctx, tryTime)}
	case late:
		w.strays.Go(func() {
			time.Sleep(f.delay)
			_ = effect() // nobody is there to be told
		})
		return &failure{f.fault, true, rest(ctx, min(f.delay, tryTime))}
	}
	if w.life.dead() {
		w.perhaps(effect)
		return &failure{"dead", true, errDead}
	}
	err := effect()
	if f.fault == ownEcho {
		err = effect()
	}
	return w.answer(ctx, f, err)
}

// answer travels back.
func (w *way) answer(ctx context.Context, f fate, err error) error {
	if w.weather.blocked(w.to, w.from) {
		w.weather.fire(blockedIn)
		return &failure{blockedIn, true, rest(ctx, tryTime)}
	}
	if f.fault == lostAnswer {
		return &failure{f.fault, true, nil}
	}
	if gone := rest(ctx, w.travel()); gone != nil {
		return &failure{"caller gave up", true, gone}
	}
	if dead := w.life.pass(); dead != nil {
		return &failure{"dead", true, dead}
	}
	return err
}

// perhaps lets a call that was under way have its effect, or not.
func (w *way) perhaps(effect func() error) {
	if w.weather.dice.chance(2) {
		_ = effect()
	}
}

// travel is how long one direction takes.
func (w *way) travel() time.Duration { return w.weather.dice.between(w.latency/2, w.latency*3/2) }
