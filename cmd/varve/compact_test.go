package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCompact merges by hand: told before, done, and told in JSON; then there is nothing left to do.
func TestCompact(t *testing.T) {
	data := t.TempDir()
	g := startServing(t, "--data", data)
	s := &testShell{t: t, data: data, env: map[string]string{"VARVE_SERVER": "http://" + g.address}}
	var want strings.Builder
	for i := range 20 {
		line := fmt.Sprintf("line %d\n", i)
		s.ok(line, "produce", "a")
		s.ok(line, "produce", "b")
		want.WriteString(line)
	}
	r := s.run("", "compact", "a", "--dry-run")
	if r.status != statusDone || !strings.Contains(r.stdout, "looked at 1 partition; in 1 of them 20 index entries would become 1, in 1 new segment of ") {
		t.Errorf("a dry run: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	if r = s.run("", "compact"); r.status != statusDone || r.stdout != "" || !strings.Contains(r.stderr, "1 gateway asked to merge") {
		t.Errorf("without waiting: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	lines := jsonLines(t, s.ok("", "compact", "--wait", "-o", "json")) // after the pass before, which it may find done
	if len(lines) != 1 || lines[0]["partitions"] != 2.0 || lines[0]["merged"] != 0.0 || lines[0]["failed"] != 0.0 || lines[0]["error"] != "" {
		t.Errorf("%v", lines)
	}
	for _, topic := range []string{"a", "b"} {
		if got := s.ok("", "cat", topic); got != want.String() {
			t.Errorf("%s: %s", topic, got)
		}
	}
	if r = s.run("", "verify", "--deep"); r.status != statusDone {
		t.Errorf("verify: %s\n%s", r.stdout, r.stderr)
	}
	s.fails("", "no topic", "compact", "nope")
	if r = s.run("", "gateways"); !strings.Contains(r.stdout, "  all  ") {
		t.Errorf("gateways: %s", r.stdout)
	}
}

// TestCompactStopped merges in the folder of a gateway that is stopped, over damage.
func TestCompactStopped(t *testing.T) {
	data := t.TempDir()
	g := startServing(t, "--data", data)
	s := &testShell{t: t, data: data, env: map[string]string{"VARVE_SERVER": "http://" + g.address}}
	for i := range 10 {
		s.ok(fmt.Sprintln(i), "produce", "a")
	}
	if r := s.run("", "compact", "--data", data, "--wait"); r.status != statusFailed || !strings.Contains(r.stderr, "leave --data away") {
		t.Errorf("a folder in use: status %d\n%s", r.status, r.stderr)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob(filepath.Join(data, "segments", "*", "*", "*.seg"))
	if err != nil || len(paths) != 10 {
		t.Fatal(paths, err)
	}
	if err := os.Remove(paths[4]); err != nil {
		t.Fatal(err)
	}
	r := s.run("", "compact", "--data", data)
	if r.status != statusFailed || !strings.Contains(r.stdout, "9 index entries became 2, in 1 new segment of ") || !strings.Contains(r.stdout, "DAMAGED a/0 ") || !strings.Contains(r.stdout, "offsets 4 to 4") {
		t.Errorf("status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	if r = s.run("", "compact", "--data", filepath.Join(data, "nowhere")); r.status != statusFailed || !strings.Contains(r.stderr, "no gateway has served there") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
	if r = s.run("", "compact", "--segments", "file:///nowhere"); r.status != statusUsage {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
}
