package main

import (
	"fmt"
	"io"
	"strings"
	"testing"
)

// quakes makes a topic of two partitions: timestamps 10 30 20 in 0, 15 20 40 in 1.
func (s *testShell) quakes() {
	s.ok("", "topic", "create", "quakes", "--partitions", "2")
	s.ok(`{"partition":0,"timestamp":10,"key":"a","value":"a10"}
{"partition":0,"timestamp":30,"key":"a","value":"a30"}
{"partition":0,"timestamp":20,"key":"a","value":"a20"}
{"partition":1,"timestamp":15,"key":"b","value":"b15"}
{"partition":1,"timestamp":20,"key":"b","value":"b20"}
{"partition":1,"timestamp":40,"key":"b","value":"b40"}
`, "produce", "quakes", "--format", "json", "--keep-partitions")
}

func TestCat(t *testing.T) {
	s := newShell(t)
	s.quakes()
	for _, c := range []struct{ args, want string }{
		{"", "a10 b15 b20 a30 a20 b40"},
		{"-p 0", "a10 a30 a20"},
		{"-p 1,0", "a10 b15 b20 a30 a20 b40"},
		{"--from -1", "a20 b40"},
		{"--from=-2", "b20 a30 a20 b40"},
		{"--from latest", ""},
		{"--from 1 --until 2", "b20 a30"},
		{"--until 1", "a10 b15"},
		{"--until 1000", "a10 b15 b20 a30 a20 b40"},
		{"--until earliest", ""},
		{"--until -2", "a10 b15"},
		{"--from @20", "b20 a30 a20 b40"},
		{"--from @16 --until @25", "b20"}, // In partition 0 both are offset 1.
		{"--until @41", "a10 b15 b20 a30 a20 b40"},
		{"--between 15,21", "b15 a20 b20"},
		{"--between 20,20", ""},
		{"--between 15,31 -p 0", "a30 a20"},
		{"--max-records 2", "a10 b15"},
		{"--max-bytes 9", "a10 b15"},
		{"--max-bytes 1", "a10"},
		{"--from -1 --max-records 1", "a20"},
	} {
		got := strings.Join(strings.Fields(s.ok("", append([]string{"cat", "quakes"}, strings.Fields(c.args)...)...)), " ")
		if got != c.want {
			t.Errorf("cat %s: %q, want %q", c.args, got, c.want)
		}
	}
	if got := s.ok("", "cat", "quakes", "-p", "1", "-f", `%t/%p@%o %T %k %K %s %S\n`, "--max-records", "1"); got != "quakes/1@0 15 b 1 b15 3\n" {
		t.Errorf("with a format: %q", got)
	}
	want := `{"topic":"quakes","partition":0,"offset":0,"timestamp":10,"key":"a","value":"a10","headers":[]}` + "\n"
	if got := s.ok("", "cat", "quakes", "-o", "json", "--max-records", "1"); got != want {
		t.Errorf("JSON: %s", got)
	}
}

// What cat writes, produce reads: a copy of a topic is the topic.
func TestCatIntoProduce(t *testing.T) {
	s := newShell(t)
	s.quakes()
	s.ok("", "topic", "create", "copy", "--partitions", "2")
	original := s.ok("", "cat", "quakes", "-o", "json")
	s.ok(original, "produce", "copy", "--format", "json", "--keep-partitions", "-z", "zstd")
	if got := strings.ReplaceAll(s.ok("", "cat", "copy", "-o", "json"), `"copy"`, `"quakes"`); got != original {
		t.Errorf("got\n%swant\n%s", got, original)
	}
}

func TestCatOutsideTheLog(t *testing.T) {
	s := newShell(t)
	s.quakes()
	s.ok("one more\n", "produce", "quakes", "-p", "1")
	expect := func(wantStatus int, wantStdout, wantStderr string, args ...string) {
		t.Helper()
		r := s.run("", args...)
		if r.status != wantStatus || r.stdout != wantStdout || !strings.Contains(r.stderr, wantStderr) {
			t.Errorf("%v: status %d, %q, %q", args, r.status, r.stdout, r.stderr)
		}
	}
	expect(1, "", "quakes/0: --from 9 is past the end, 3", "cat", "quakes", "-p", "0", "--from", "9")
	expect(0, "", "quakes/0: --from 4 is past the end, 3: nothing of it is printed", "cat", "quakes", "--from", "4")
	s.ok("", "topic", "trim", "quakes", "--to", "2", "-p", "0")
	expect(1, "", "'varve offsets TOPIC --time earliest'", "cat", "quakes", "-p", "0", "--from", "1")
	expect(0, "a20\n", "", "cat", "quakes", "-p", "0")
	expect(1, "", "'varve topic list' shows the topics there are", "cat", "absent")
	expect(1, "", "partitions count from 0", "cat", "quakes", "-p", "7")
}

// A reader that leaves, as head does, is no failure, and nothing is said.
func TestCatIntoHead(t *testing.T) {
	s := newShell(t)
	s.ok(strings.Repeat("line\n", 200_000), "produce", "t")
	r, w := io.Pipe()
	var stderr strings.Builder
	status := make(chan int, 1)
	go func() { status <- execute(t.Context(), []string{"cat", "t"}, s.app(strings.NewReader(""), w, &stderr)) }()
	if _, err := io.ReadFull(r, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	if got := <-status; got != statusDone || stderr.String() != "" {
		t.Errorf("status %d, %q", got, &stderr)
	}
}

func TestInterruptedCat(t *testing.T) {
	s := newShell(t)
	s.ok(strings.Repeat("line\n", 200_000), "produce", "t")
	// The lines are not read: cat has to wait until it is interrupted.
	c := s.start(strings.NewReader(""), "cat", "t")
	c.expect(t, "line")
	c.interrupt()
	c.drain()
	c.expectStatus(t, statusFailed)
	if got := c.stderr.String(); !strings.HasPrefix(got, "varve: interrupted after ") {
		t.Errorf("%q", got)
	}
}

func TestTail(t *testing.T) {
	s := newShell(t)
	s.quakes()
	c := s.start(strings.NewReader(""), "tail", "quakes", "-n", "3", "-f", `%p:%o %s\n`)
	for _, want := range []string{"0:1 a30", "0:2 a20", "1:2 b40"} {
		c.expect(t, want)
	}
	for i := range 3 {
		s.ok(fmt.Sprintf("new %d\n", i), "produce", "quakes", "-p", "0")
		c.expect(t, fmt.Sprintf("0:%d new %d", 3+i, i))
	}
	s.ok("other\n", "produce", "quakes", "-p", "1")
	c.expect(t, "1:3 other")
	c.interrupt()
	c.expectStatus(t, statusDone)
	if got := c.stderr.String(); got != "" {
		t.Errorf("standard error: %q", got)
	}
}

func TestTailFromTheEnd(t *testing.T) {
	s := newShell(t)
	s.quakes()
	s.ok("", "topic", "create", "empty", "--partitions", "2")
	for _, args := range [][]string{{"tail", "quakes", "-n", "0", "-p", "1"}, {"tail", "empty", "-n", "100"}} {
		c := s.start(strings.NewReader(""), args...)
		// A record that comes at any moment from now on is printed, or, without a tail yet, is not: so many are sent.
		stop := make(chan struct{})
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			for {
				select {
				case <-stop:
					return
				default:
					s.run("new\n", "produce", args[1], "-p", "1")
				}
			}
		}()
		c.expect(t, "new")
		close(stop)
		<-sent
		c.interrupt()
		c.drain()
		c.expectStatus(t, statusDone)
	}
}

func TestTailOfWhatIsNotThere(t *testing.T) {
	s := newShell(t)
	if r := s.run("", "tail", "absent"); r.status != statusFailed || !strings.Contains(r.stderr, `there is no topic "absent"`) {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
	s.ok("a\n", "produce", "t")
	c := s.start(strings.NewReader(""), "tail", "t")
	c.expect(t, "a")
	s.ok("", "topic", "delete", "t")
	c.expectStatus(t, statusFailed)
}
