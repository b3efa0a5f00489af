package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/varvelog/varve/client"
)

const wantTime = "want a time such as 2018-02-07T01:26:13Z, milliseconds since 1970, or a duration back from now such as -2h"

// timeLayouts are RFC 3339 and what people shorten it to. Without a zone it is UTC, whatever the zone of
// this machine: the same command line has to mean the same everywhere. Fractions of a second need no layout.
var timeLayouts = []string{
	time.RFC3339,
	"2006-01-02T15:04:05", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02",
	"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05", "2006-01-02 15:04Z07:00", "2006-01-02 15:04",
}

// parseTime reads a TIME. Durations go back from now, with or without a minus: no time lies ahead.
func parseTime(s string, now time.Time) (time.Time, error) {
	if isDigits(s) {
		ms, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return time.Time{}, fmt.Errorf("time %q: too large for milliseconds since 1970", s)
		}
		return time.UnixMilli(ms), nil
	}
	if s == "now" {
		return now, nil
	}
	for _, layout := range timeLayouts {
		if t, err := time.Parse(layout, s); err == nil {
			return notBefore1970(s, t)
		}
	}
	back, err := parseDuration(strings.TrimPrefix(s, "-"))
	if err != nil {
		return time.Time{}, fmt.Errorf("time %q: %s", s, wantTime)
	}
	return notBefore1970(s, now.Add(-back))
}

func notBefore1970(s string, t time.Time) (time.Time, error) {
	if t.UnixMilli() < 0 {
		return time.Time{}, fmt.Errorf("time %q: is before 1970, and no record is", s)
	}
	return t, nil
}

func isDigits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// parseDuration reads what time.ParseDuration does, and days and weeks in front of it: 1d12h, 2w.
func parseDuration(s string) (time.Duration, error) {
	var total time.Duration
	rest := s
	for _, unit := range []struct {
		name string
		size time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		number, after, found := strings.Cut(rest, unit.name)
		if !found {
			continue
		}
		n, err := strconv.ParseUint(number, 10, 31)
		if err != nil || n > uint64((1<<62)/unit.size) {
			return 0, fmt.Errorf("duration %q: want something like 90m, 2h or 1d12h", s)
		}
		total += time.Duration(n) * unit.size
		rest = after
	}
	if rest == "" && rest != s {
		return total, nil
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || strings.HasPrefix(rest, "+") || total+d < total {
		return 0, fmt.Errorf("duration %q: want something like 90m, 2h or 1d12h", s)
	}
	return total + d, nil
}

// parsePlace reads a PLACE. offset is the number of a plain offset, -1 for every other place.
func parsePlace(s string, now time.Time) (place client.Place, offset int64, err error) {
	switch {
	case s == "earliest":
		return client.Earliest(), -1, nil
	case s == "latest":
		return client.Latest(), -1, nil
	case strings.HasPrefix(s, "@"):
		t, err := parseTime(s[1:], now)
		return client.AtTime(t), -1, err
	case isDigits(s):
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return client.Place{}, -1, fmt.Errorf("place %q: too large for an offset", s)
		}
		return client.At(n), n, nil
	case strings.HasPrefix(s, "-") && isDigits(s[1:]):
		n, err := strconv.ParseInt(s[1:], 10, 64)
		if err != nil {
			return client.Place{}, -1, fmt.Errorf("place %q: too large a number of records", s)
		}
		return client.BeforeEnd(n), -1, nil
	}
	hint := ""
	if _, err := parseTime(s, now); err == nil {
		hint = fmt.Sprintf("; for a time, write @%s", s)
	}
	return client.Place{}, -1, fmt.Errorf("place %q: want earliest, latest, an offset, -N or @TIME%s", s, hint)
}

// parseRange reads the T1,T2 of --between.
func parseRange(s string, now time.Time) (*client.TimeRange, error) {
	first, second, found := strings.Cut(s, ",")
	if !found {
		return nil, fmt.Errorf("%q: want two times with a comma between them", s)
	}
	start, err := parseTime(strings.TrimSpace(first), now)
	end, err2 := parseTime(strings.TrimSpace(second), now)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	if end.Before(start) {
		return nil, fmt.Errorf("%q: the second time lies before the first", s)
	}
	return &client.TimeRange{Start: start, End: end}, nil
}
