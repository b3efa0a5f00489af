package main

import (
	"fmt"
	"strings"
	"testing"
)

// The table of docs: timestamps 1000 5000 2000 9000 3000 at offsets 0 to 4.
func TestOffsetsByTime(t *testing.T) {
	s := newShell(t)
	var lines strings.Builder
	for _, ms := range []int{1000, 5000, 2000, 9000, 3000} {
		fmt.Fprintf(&lines, `{"timestamp":%d,"value":"v"}`+"\n", ms)
	}
	s.ok(lines.String(), "produce", "t", "--format", "json")
	const none = -1
	for _, c := range []struct{ t, at, before int }{
		{500, 0, none}, {1000, 0, none}, {1500, 1, 0}, {2500, 1, 0}, {4000, 1, 0}, {5000, 1, 0},
		{6000, 3, 2}, {9000, 3, 2}, {9001, none, 4},
	} {
		for flag, want := range map[string]int{"--time": c.at, "--before": c.before} {
			text := ""
			if want != none {
				text = fmt.Sprintf("t:0:%d\n", want)
			}
			r := s.run("", "offsets", "t", flag, fmt.Sprint(c.t))
			if r.stdout != text || r.status != statusDone || (want == none) != strings.Contains(r.stderr, "no record") {
				t.Errorf("%s %d: status %d, %q, %q, want %q", flag, c.t, r.status, r.stdout, r.stderr, text)
			}
		}
	}
	for _, c := range []struct{ time, want string }{
		{"latest", "t:0:5\n"}, {"earliest", "t:0:0\n"}, {"max-timestamp", "t:0:3\n"},
		{"1970-01-01T00:00:05Z", "t:0:1\n"}, {"1970-01-01T00:00:05.0001Z", "t:0:3\n"},
	} {
		if got := s.ok("", "offsets", "t", "--time", c.time); got != c.want {
			t.Errorf("--time %s: %q, want %q", c.time, got, c.want)
		}
	}
	if got := s.ok("", "offsets", "t"); got != "t:0:5\n" {
		t.Errorf("without flags: %q", got)
	}
}

func TestOffsetsJSON(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "2")
	s.ok(`{"timestamp":7,"value":"v"}`, "produce", "t", "--format", "json", "-p", "1")
	want := `{"topic":"t","partition":0,"found":false,"offset":-1,"timestamp":-1,"start_offset":0,"end_offset":0,"linearizable":false}
{"topic":"t","partition":1,"found":true,"offset":0,"timestamp":7,"start_offset":0,"end_offset":1,"linearizable":false}
`
	if got := s.ok("", "offsets", "t", "--time", "0", "-o", "json"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	r := s.run("", "offsets", "t", "--time", "0")
	if r.stdout != "t:1:0\n" || r.stderr != "varve: t/0: no record at or after 0: the partition is empty, its next offset is 0\n" {
		t.Errorf("%q, %q", r.stdout, r.stderr)
	}
	if got := s.ok("", "offsets", "t", "--time", "now", "-o", "json", "-p", "1"); !strings.Contains(got, `"found":false,"offset":-1,"timestamp":-1,"start_offset":0,"end_offset":1`) {
		t.Errorf("a time in the future: %s", got)
	}
}
