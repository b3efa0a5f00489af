package main

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestLedger: what is lost, duplicated, failed or out of order shows, each in the phase in which it was sent.
func TestLedger(t *testing.T) {
	l := newLedger()
	l.begin("first", "1")
	whole, lost := l.send(0, 3), l.send(0, 3)
	l.begin("second", "2")
	twice, refused := l.send(0, 3), l.send(1, 4)
	for _, id := range []int64{whole, lost, twice} {
		l.end(id, 20*time.Millisecond, nil)
	}
	if acked, underway := l.totals(); acked != 3 || underway != 1 {
		t.Errorf("%d acked, %d underway", acked, underway)
	}
	l.end(refused, time.Second, errors.New("no"))
	for _, id := range []int64{whole, twice, twice} {
		if err := l.found(id, 3); err != nil {
			t.Error(err)
		}
	}
	if err := l.found(whole, 3); err == nil {
		t.Error("a record behind a later one of the same producer passes")
	}
	if l.found(99, 3) == nil || l.found(whole, 4) == nil {
		t.Error("a record that nobody sent there passes")
	}
	l.settle()
	var out strings.Builder
	if _, lost, duplicated := l.table(&out); lost != 1 || duplicated != 2 {
		t.Errorf("%d lost, %d duplicated", lost, duplicated)
	}
	if first, second := l.phases[0], l.phases[1]; first.lost != 1 || first.duplicated != 1 || second.duplicated != 1 || len(second.acks) != 3 {
		t.Errorf("phases %+v, %+v", first, second)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 4 || !strings.Contains(out.String(), "| 20 ms | 20 ms |") {
		t.Errorf("the table:\n%s", out.String())
	}
}

func TestPercentile(t *testing.T) {
	times := make([]time.Duration, 200)
	for i := range times {
		times[i] = time.Duration(i)
	}
	for n, want := range map[int]time.Duration{0: 0, 50: 100, 99: 198, 100: 199} {
		if got := percentile(times, n); got != want {
			t.Errorf("p%d is %d, want %d", n, got, want)
		}
	}
	if percentile(nil, 50) != 0 {
		t.Error("a percentile of nothing")
	}
}
