package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// stallWatch tells when a command that goes on by itself, whatever the gateways answer, has heard nothing from them
// for as long as a single call may take: without it an outage looks like a program that hangs.
type stallWatch struct {
	a *app
	// waiting returns how much has come so far, and whether the next is up to the gateways.
	waiting func() (moves int64, waits bool)
	// Since when nothing has come, and what had come by then.
	since time.Time
	moves int64
	// told of this silence, and of why: a gateway takes a while to know itself.
	told, explained bool
}

// watchStalls watches until stop is called.
func (a *app) watchStalls(waiting func() (moves int64, waits bool)) (stop func()) {
	w := &stallWatch{a: a, waiting: waiting, since: time.Now()}
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() { w.run(ctx) })
	return func() {
		cancel()
		ended.Wait()
	}
}

func (w *stallWatch) run(ctx context.Context) {
	ticker := time.NewTicker(max(w.a.timeout/4, time.Millisecond))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			w.look(ctx, now)
		}
	}
}

func (w *stallWatch) look(ctx context.Context, now time.Time) {
	moves, waits := w.waiting()
	switch {
	case moves != w.moves || !waits:
		if w.told {
			w.a.notef("it goes on")
		}
		w.since, w.moves, w.told, w.explained = now, moves, false, false
	case !w.explained && now.Sub(w.since) >= w.a.timeout:
		reason := w.a.notReady(ctx)
		if ctx.Err() != nil || w.told && reason == "" {
			return
		}
		w.a.notef("nothing from the gateway for %v, still trying%s", now.Sub(w.since).Round(w.a.timeout), reason)
		w.told, w.explained = true, reason != ""
	}
}

// notReady asks the gateways' /readyz, and returns the first reason that one of them gives, ready for
// the end of a note.
func (a *app) notReady(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for _, server := range a.servers {
		if reason := askReady(ctx, server); reason != "" {
			return fmt.Sprintf(": %s is not ready: %s", server, reason)
		}
	}
	return ""
}

// askReady returns an empty reason for a gateway that is ready, or that does not answer.
func askReady(ctx context.Context, server string) (reason string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/readyz", nil)
	if err != nil {
		return ""
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	var answer struct {
		Ready  bool   `json:"ready"`
		Reason string `json:"reason"`
	}
	const most = 64 << 10
	if json.NewDecoder(io.LimitReader(res.Body, most)).Decode(&answer) != nil || answer.Ready {
		return ""
	}
	return answer.Reason
}
