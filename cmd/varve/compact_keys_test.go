package main

import (
	"fmt"
	"strings"
	"testing"
)

// What key compaction left is read, tailed, looked up and described as it is.
func TestCompactByKey(t *testing.T) {
	data := t.TempDir()
	g := startServing(t, "--data", data)
	s := &testShell{t: t, data: data, env: map[string]string{"VARVE_SERVER": "http://" + g.address}}
	s.ok("", "topic", "create", "kv", "--config", "cleanup.policy=compact")
	if r := s.run(`{"value":"v"}`, "produce", "kv", "--format", "json"); r.status != statusFailed || !strings.Contains(r.stderr, "give every record a key") {
		t.Errorf("a record without a key: status %d, %q", r.status, r.stderr)
	}
	for i := range 40 {
		s.ok(fmt.Sprintf(`{"key":"k%d","value":"v%d","timestamp":%d}`, i%7, i, 1000*i), "produce", "kv", "--format", "json")
	}
	s.ok("", "compact", "kv", "--wait")
	const format = `%o %k %s\n`
	want := "32 k4 v32\n33 k5 v33\n34 k6 v34\n35 k0 v35\n36 k1 v36\n37 k2 v37\n38 k3 v38\n39 k4 v39\n"
	if got := s.ok("", "cat", "kv", "-f", format); got != want {
		t.Errorf("cat says %q", got)
	}
	s.ok(`{"key":"k0","value":"v40","timestamp":40000}`, "produce", "kv", "--format", "json")
	s.ok("", "compact", "kv", "--wait")
	if got := s.ok("", "cat", "kv", "-f", format, "--from", "3", "--max-records", "1"); got != "33 k5 v33\n" {
		t.Errorf("from an offset that is gone: %q", got)
	}
	if got := s.ok("", "cat", "kv", "-f", format, "--between", "1970-01-01T00:00:30Z,1970-01-01T00:00:35Z"); got != "33 k5 v33\n34 k6 v34\n" {
		t.Errorf("between: %q", got)
	}
	if got := s.ok("", "offsets", "kv", "--time", "1970-01-01T00:00:01Z"); got != "kv:0:33\n" {
		t.Errorf("at or after: %q", got)
	}
	s.ok(`{"key":"k0","value":"v41","timestamp":41000}`, "produce", "kv", "--format", "json")
	s.ok("", "compact", "kv", "--wait") // now 35 is gone: the last record takes nothing's place
	if got := s.ok("", "offsets", "kv", "--before", "1970-01-01T00:00:36Z"); got != "kv:0:34\n" {
		t.Errorf("before: %q", got)
	}
	if got := s.ok("", "offsets", "kv"); got != "kv:0:42\n" {
		t.Errorf("the end: %q", got)
	}
	c := s.start(strings.NewReader(""), "tail", "kv", "-n", "7", "-f", `%o\n`)
	for _, want := range []string{"34", "36", "37", "38", "39", "40", "41"} {
		c.expect(t, want)
	}
	s.ok(`{"key":"k0","value":"v42","timestamp":42000}`, "produce", "kv", "--format", "json")
	c.expect(t, "42")
	c.interrupt()
	c.expectStatus(t, statusDone)
}
