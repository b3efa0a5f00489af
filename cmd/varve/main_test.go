package main

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// Who signals a process and its group means one stop; half a second later it is another one.
func TestSecondSignal(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	signals := make(chan os.Signal, 5)
	for range cap(signals) {
		signals <- syscall.SIGTERM
	}
	var clock time.Time
	passed := []time.Duration{0, time.Millisecond, signalEcho - time.Millisecond - 1, 1}
	watchSignals(signals, func() time.Time {
		clock, passed = clock.Add(passed[0]), passed[1:]
		return clock
	}, cancel)
	if !errors.Is(context.Cause(ctx), errInterrupted) {
		t.Errorf("the first signal: %v", context.Cause(ctx))
	}
	if len(passed) != 0 || len(signals) != 1 {
		t.Errorf("%d signals are left, want one: two are echoes of the first, the fourth ends it", len(signals))
	}
}
