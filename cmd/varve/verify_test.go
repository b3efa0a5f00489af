package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/filestore"
)

// lines decodes JSON lines.
func jsonLines(t *testing.T, text string) []map[string]any {
	t.Helper()
	var list []map[string]any
	for line := range strings.Lines(text) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		list = append(list, m)
	}
	return list
}

// servedFolder is a data folder with one segment of three records, and the gateway that serves it.
func servedFolder(t *testing.T) (*testShell, *serving) {
	t.Helper()
	data := t.TempDir()
	g := startServing(t, "--data", data)
	s := &testShell{t: t, data: data, env: map[string]string{"VARVE_SERVER": "http://" + g.address}}
	s.produceBatch("zstd")
	return s, g
}

func TestVerifyByGateway(t *testing.T) {
	s, _ := servedFolder(t)
	r := s.run("", "verify", "--deep")
	if r.status != statusDone || r.stdout != "" || !strings.Contains(r.stderr, "looked at 3 records in 1 partition, 1 object of ") || !strings.Contains(r.stderr, "found 0 breaks") {
		t.Errorf("a healthy cluster: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}

	path, key := s.segmentFile()
	foreign := filepath.Join(filepath.Dir(path), "notes.txt")
	if err := os.WriteFile(foreign, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	r = s.run("", "verify", "--repair")
	if want := "FOREIGN_OBJECT " + strings.ReplaceAll(key, filepath.Base(path), "notes.txt") + ": no gateway writes such a key; it stays: it is not Varve's\n"; r.status != statusDone || r.stdout != want {
		t.Errorf("garbage alone: status %d\n%s\n%s, want %s", r.status, r.stdout, r.stderr, want)
	}
	if lines := jsonLines(t, s.ok("", "verify", "--repair", "-o", "json")); lines[0]["stays"] != "it is not Varve's" {
		t.Errorf("%v, want why it stays", lines[0])
	}
	if lines := jsonLines(t, s.ok("", "verify", "-o", "json")); lines[0]["stays"] != "" {
		t.Errorf("%v: nothing was to be removed", lines[0])
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}

	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[16+61+5] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := s.run("", "verify"); r.status != statusDone {
		t.Errorf("without --deep: status %d\n%s", r.status, r.stderr)
	}
	r = s.run("", "verify", "--deep", "-o", "json")
	lines := jsonLines(t, r.stdout)
	if r.status != statusFailed || len(lines) != 2 {
		t.Fatalf("a flipped bit: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	want := map[string]any{"kind": "BATCH_CORRUPT", "break": true, "topic": "t", "partition": 0.0, "object": key, "row": "", "repaired": false, "stays": "",
		"message": lines[0]["message"]}
	if diff := cmp.Diff(want, lines[0]); diff != "" {
		t.Errorf("finding (-want +got):\n%s", diff)
	}
	want = map[string]any{"kind": "SUMMARY", "cluster_id": lines[1]["cluster_id"], "topics": 1.0, "partitions": 1.0, "entries": 1.0, "batches": 1.0,
		"records": 3.0, "objects": 1.0, "object_bytes": float64(len(data)), "journals": 1.0, "breaks": 1.0, "garbage": 0.0, "repaired": 0.0}
	if diff := cmp.Diff(want, lines[1]); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
}

// stoppedFolder is one whose gateway left in good order.
func stoppedFolder(t *testing.T) *testShell {
	t.Helper()
	s, g := servedFolder(t)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	return s
}

// addOrphan puts a segment beside another that nothing names.
func addOrphan(t *testing.T, data, key string) (path string) {
	t.Helper()
	cluster, uploader, number, err := segments.ParseObjectKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b := segments.NewBuilder(cluster, uploader, number+1)
	if err := b.Add(segments.SpanID{}, []byte("never committed"), segments.BatchInfo{Offsets: 1, Records: 1, ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, ExpectedOffset: -1}); err != nil {
		t.Fatal(err)
	}
	object, err := b.Build(func(segments.SpanID) uint64 { return 0 })
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(data, "segments", filepath.FromSlash(object.Key()))
	if err := os.WriteFile(path, segments.Bytes(object), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestVerifyStopped(t *testing.T) {
	s := stoppedFolder(t)
	data := s.data
	r := s.run("", "verify", "--data", data, "--deep")
	if r.status != statusDone || r.stdout != "" || !strings.Contains(r.stderr, "looked at 3 records") {
		t.Errorf("a stopped store: status %d\n%s\n%s", r.status, r.stdout, r.stderr)
	}
	urls := []string{"verify", "--segments", "file://" + filepath.Join(data, "segments"), "--metadata", "bolt://" + filepath.Join(data, "metadata.db")}
	if r := s.run("", urls...); r.status != statusDone {
		t.Errorf("by URLs: status %d\n%s", r.status, r.stderr)
	}

	// What its closed gateway uploaded and never committed goes, once it is old.
	_, key := s.segmentFile()
	orphan := addOrphan(t, data, key)
	if r := s.run("", "verify", "--data", data, "--repair"); r.stdout != "" {
		t.Errorf("an object within the grace: %s", r.stdout)
	}
	var stdout, stderr strings.Builder
	later := s.app(nil, &stdout, &stderr)
	later.now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	status := execute(t.Context(), []string{"verify", "--data", data, "--repair"}, later)
	if out := stdout.String(); status != statusDone || !strings.HasPrefix(out, "ORPHAN_OBJECT ") || !strings.HasSuffix(out, " (removed)\n") {
		t.Errorf("an orphan: status %d\n%s\n%s", status, out, stderr.String())
	}
	if _, err := os.Stat(orphan); !os.IsNotExist(err) {
		t.Errorf("the orphan: %v, want it gone", err)
	}

	if err := os.Remove(filepath.Join(data, "segments", filepath.FromSlash(key))); err != nil {
		t.Fatal(err)
	}
	r = s.run("", "verify", "--data", data)
	if want := fmt.Sprintf("OBJECT_MISSING t/0 %s: offsets 0 to 2: the object is not there\n", key); r.status != statusFailed || r.stdout != want {
		t.Errorf("an object that is gone: status %d\n%s\n%s, want %s", r.status, r.stdout, r.stderr, want)
	}
}

func TestVerifyInUse(t *testing.T) {
	s := stoppedFolder(t)
	table, err := bolttable.Open(filepath.Join(s.data, "metadata.db"), bolttable.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	}()
	r := s.run("", "verify", "--data", s.data)
	if r.status != statusFailed || !strings.Contains(r.stderr, "ask the gateway that runs on it") {
		t.Errorf("a folder in use: status %d\n%s", r.status, r.stderr)
	}
}

func TestVerifyUsage(t *testing.T) {
	s := &testShell{t: t}
	empty := t.TempDir()
	for _, c := range []struct {
		args   string
		status int
		says   string
	}{
		{"verify --grace 0s", statusUsage, "--grace"},
		{"verify --grace -1h", statusUsage, "--grace"},
		{"verify x", statusUsage, "argument"},
		{"verify --segments file:///x", statusUsage, "go together"},
		{"verify --metadata bolt:///x", statusUsage, "go together"},
		{"verify --data x --segments ftp://x", statusUsage, "ftp"},
		{"verify --segments mem:// --metadata mem://", statusUsage, "mem://"},
		{"verify --data " + empty, statusFailed, "no gateway has served there"},
	} {
		if r := s.run("", strings.Fields(c.args)...); r.status != c.status || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%s: status %d, want %d\n%s, want %q in it", c.args, r.status, c.status, r.stderr, c.says)
		}
	}
	if _, err := os.Stat(filepath.Join(empty, "metadata.db")); !os.IsNotExist(err) {
		t.Errorf("verify made a table: %v", err)
	}
}

// A table that was made and never served on.
func TestVerifyNothing(t *testing.T) {
	data := t.TempDir()
	if _, err := filestore.Open(filepath.Join(data, "segments")); err != nil {
		t.Fatal(err)
	}
	table, err := bolttable.Open(filepath.Join(data, "metadata.db"), bolttable.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Close(); err != nil {
		t.Fatal(err)
	}
	s := &testShell{t: t}
	if r := s.run("", "verify", "--data", data); r.status != statusFailed || !strings.Contains(r.stderr, "nothing to verify") {
		t.Errorf("status %d\n%s", r.status, r.stderr)
	}
	if table, err = bolttable.Open(filepath.Join(data, "metadata.db"), bolttable.Options{}); err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if _, err := metadata.ReadCluster(t.Context(), table); err == nil {
		t.Error("verify named a cluster")
	}
}
