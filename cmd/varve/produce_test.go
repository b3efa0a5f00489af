package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestProduce(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "3")
	for _, c := range []struct {
		name, stdin, args, want string
	}{
		{"lines", "a\n\nb", "", `[null "a"][null ""][null "b"]`},
		{"key", "a\n", "--key k", `["k" "a"]`},
		{"empty key", "a\n", "--key=", `["" "a"]`},
		{"separator", "k=v\nl=w=x\n", "-K =", `["k" "v"]["l" "w=x"]`},
		{"tab", "k\tv\n", `-K \t`, `["k" "v"]`},
		{"null", "k=\n", "-K = -Z", `["k" null]`},
		{"json", `{"value":"v"}` + "\n" + `{"key_base64":"/w==","value":null}` + "\n", "--format json", `[null "v"]["/w==" null]`},
		{"json null", `{"key":"","value":""}`, "--format json -Z", `[null null]`},
	} {
		s.run("", "topic", "delete", "one")
		s.ok(c.stdin, append([]string{"produce", "one"}, strings.Fields(c.args)...)...)
		got := ""
		for d := json.NewDecoder(strings.NewReader(s.ok("", "cat", "one", "-o", "json"))); ; {
			var r struct {
				Key, Value *json.RawMessage
				KeyBase64  *json.RawMessage `json:"key_base64"`
			}
			if err := d.Decode(&r); err != nil {
				break
			}
			text := func(m *json.RawMessage) string {
				if m == nil {
					return "null"
				}
				return string(*m)
			}
			if r.KeyBase64 != nil {
				r.Key = r.KeyBase64
			}
			got += "[" + text(r.Key) + " " + text(r.Value) + "]"
		}
		if got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestProduceFiles(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "3")
	dir := t.TempDir()
	var names []string
	for i := range 2 {
		names = append(names, filepath.Join(dir, fmt.Sprint(i)))
		if err := os.WriteFile(names[i], fmt.Appendf(nil, "line %d\n", i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := s.run("in\n", "produce", "t", names[0], "-", names[1], "-p", "2", "-H", "h=1=2", "-H", "i=", "--timestamp", "1234")
	summary := regexp.MustCompile(`^varve: 3 records acknowledged by t in 1 partition \(2\), 14 bytes, \d+\.\d\d s\n$`)
	if r.status != statusDone || r.stdout != "" || !summary.MatchString(r.stderr) {
		t.Errorf("status %d, %q, %q", r.status, r.stdout, r.stderr)
	}
	if got := s.ok("", "cat", "t", "-f", `%p:%o %T %s %h\n`); got != "2:0 1234 line 0 h=1=2,i=\n2:1 1234 in h=1=2,i=\n2:2 1234 line 1 h=1=2,i=\n" {
		t.Errorf("%q", got)
	}
}

func TestProduceAcks(t *testing.T) {
	s := newShell(t)
	if got, want := s.ok("a\nb\n", "produce", "t", "-o", "json"), `{"topic":"t","partition":0,"base_offset":0,"last_offset":0,"acks":"committed"}
{"topic":"t","partition":0,"base_offset":1,"last_offset":1,"acks":"committed"}
`; got != want {
		t.Errorf("got %swant %s", got, want) // The first record of a topic that is being made goes alone.
	}
	if got, want := s.ok("a\nb\n", "produce", "t", "-o", "json", "--acks", "buffered"), `{"topic":"t","partition":0,"base_offset":-1,"last_offset":-1,"acks":"buffered"}
`; got != want {
		t.Errorf("got %swant %s", got, want)
	}
}

func TestProduceRefused(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--config", "max.message.bytes=1000")
	for _, c := range []struct {
		name, stdin string
		args        []string
		want        string
	}{
		{"bad line", `{"value":"a"}` + "\n{\n", []string{"--format", "json"}, "varve: standard input:2: not JSON: the line ends within the object\n"},
		{"no separator", "a:b\nc\n", []string{"-K", ":"}, `varve: standard input:2: there is no key: the separator ":" is not in the line`},
		{"no such file", "", []string{"absent"}, "varve: open absent: no such file or directory\n"},
		{"no such partition", "a\n", []string{"-p", "5"}, "varve: standard input:1: t/5: "},
		{"future", `{"timestamp":99999999999999,"value":"a"}`, []string{"--format", "json"}, "varve: standard input:1: the batch that begins there was not acknowledged: t/0: "},
		{"too large", "a\n" + strings.Repeat("x", 2000) + "\n", nil, "was not acknowledged: t/0: "},
	} {
		r := s.run(c.stdin, append([]string{"produce", "t"}, c.args...)...)
		if r.status != statusFailed || !strings.Contains(r.stderr, c.want) {
			t.Errorf("%s: status %d, %q, want %q", c.name, r.status, r.stderr, c.want)
		}
	}
}

// Ctrl-C while the input waits: what was read is committed, and the summary says so.
func TestInterruptedProduce(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t")
	r, w := io.Pipe()
	defer w.Close()
	p := s.start(r, "produce", "t", "-o", "json")
	if _, err := io.WriteString(w, "a\n"); err != nil {
		t.Fatal(err)
	}
	p.expect(t, `{"topic":"t","partition":0,"base_offset":0,"last_offset":0,"acks":"committed"}`)
	p.interrupt()
	p.expectStatus(t, statusFailed)
	want := regexp.MustCompile(`^varve: 1 record acknowledged by t in 1 partition \(0\), 1 byte, .* s\nvarve: interrupted\n$`)
	if got := p.stderr.String(); !want.MatchString(got) {
		t.Errorf("%q", got)
	}
}

func TestRanges(t *testing.T) {
	for want, set := range map[string][]int32{"": nil, "3": {3}, "0-2": {2, 0, 1}, "0,2-3,5": {5, 3, 2, 0}} {
		m := map[int32]struct{}{}
		for _, n := range set {
			m[n] = struct{}{}
		}
		if got := ranges(m); got != want {
			t.Errorf("%v: %q, want %q", set, got, want)
		}
	}
}
