package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
)

func decodeCollection(t *testing.T, text string) (c struct {
	Objects, Named, Deleted, Rows, Gateways int64
	Kept                                    map[string]int64
	DryRun                                  bool `json:"dry_run"`
}) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return c
}

// A trim frees its space, by a gateway that runs, once the grace is over.
func TestCollectByGateway(t *testing.T) {
	data := t.TempDir()
	g := startServing(t, "--data", data, "--gc-grace", "1s")
	s := &testShell{t: t, data: data, env: map[string]string{"VARVE_SERVER": "http://" + g.address}}
	s.produceBatch("zstd")
	path, _ := s.segmentFile()
	if c := decodeCollection(t, s.ok("", "gc", "-o", "json")); c.Objects != 1 || c.Named != 1 || c.Deleted != 0 {
		t.Errorf("nothing to collect: %+v", c)
	}
	s.ok("", "topic", "trim", "t", "--to", "latest")
	s.ok("x\n", "produce", "t")
	if c := decodeCollection(t, s.ok("", "gc", "--dry-run", "-o", "json")); c.Deleted != 1 || !c.DryRun {
		t.Errorf("a dry run: %+v", c)
	}
	r := s.run("", "gc")
	if r.status != statusDone || !strings.Contains(r.stdout, "kept 1 object: grace: ") {
		t.Errorf("within the grace: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	// The gateway collects it by itself when its grace is over, and may be the first.
	r = s.run("", "gc", "--wait")
	if r.status != statusDone || !strings.HasPrefix(r.stdout, "deleted ") || !strings.Contains(r.stderr, "1 object and 0 rows wait until the gateway") {
		t.Errorf("after it: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the object: %v, want it gone", err)
	}
	if out := s.ok("", "cat", "t"); out != "x\n" {
		t.Errorf("what is left: %q", out)
	}
	if r := s.run("", "verify"); r.status != statusDone || strings.Contains(r.stdout, "OBJECT") {
		t.Errorf("verify: status %d\n%s", r.status, r.stdout)
	}
}

// On a folder whose gateway is stopped nobody reads: what is garbage goes at once, and the gateway's row once nothing is left of it.
func TestCollectStopped(t *testing.T) {
	s := stoppedFolder(t)
	path, key := s.segmentFile()
	orphan := addOrphan(t, s.data, key)
	if c := decodeCollection(t, s.ok("", "gc", "--data", s.data, "-o", "json")); c.Deleted != 1 || c.Named != 1 || c.Gateways != 0 {
		t.Errorf("%+v", c)
	}
	if _, err := os.Stat(orphan); !os.IsNotExist(err) {
		t.Errorf("the orphan: %v, want it gone", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("what is named: %v", err)
	}
	if r := s.run("", "verify", "--data", s.data, "--deep"); r.status != statusDone || r.stdout != "" {
		t.Errorf("verify: status %d\n%s", r.status, r.stdout)
	}
}

func TestCollectUsage(t *testing.T) {
	s := stoppedFolder(t)
	table, err := bolttable.Open(s.data+"/metadata.db", bolttable.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r := s.run("", "gc", "--data", s.data); r.status != statusFailed || !strings.Contains(r.stderr, "ask the gateway that runs on it") {
		t.Errorf("a folder in use: status %d\n%s", r.status, r.stderr)
	}
	if _, err := metadata.ReadCluster(t.Context(), table); err != nil {
		t.Error(err)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   string
		status int
		says   string
	}{
		{"gc x", statusUsage, "argument"},
		{"gc --grace -1s", statusUsage, "--grace"},
		{"gc --segments file:///x", statusUsage, "go together"},
		{"gc --data " + t.TempDir(), statusFailed, "no gateway has served there"},
		{"serve --gc-interval -1s", statusUsage, "--gc-interval"},
		{"serve --gc-grace -1s", statusUsage, "--gc-grace"},
		{"serve --gc-share 2", statusUsage, "--gc-share"},
	} {
		if r := s.run("", strings.Fields(c.args)...); r.status != c.status || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%s: status %d, want %d\n%s, want %q in it", c.args, r.status, c.status, r.stderr, c.says)
		}
	}
}

// TestWentElsewhere: what waited for the grace was deleted by who was asked, stays, or went by another collector.
func TestWentElsewhere(t *testing.T) {
	for _, c := range []struct {
		waited, deleted, stays, want int64
	}{{0, 0, 0, 0}, {3, 3, 0, 0}, {3, 1, 0, 2}, {3, 0, 0, 3}, {3, 1, 2, 0}, {3, 5, 1, 0}} {
		now := &client.Collection{Kept: map[string]int64{"grace": c.waited, "unsettled": 7}}
		later := &client.Collection{Deleted: c.deleted, Kept: map[string]int64{"refused": c.stays}}
		if got := wentElsewhere(now, later); got != c.want {
			t.Errorf("%+v: %d", c, got)
		}
	}
}
