package main

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
)

// scrub replaces what differs from run to run.
func scrub(text string) string {
	for pattern, with := range map[string]string{
		`[0-9a-f]{32}`: "ID", `g[0-9a-f]{15,}`: "GATEWAY", `"created_at":\d+`: `"created_at":0`,
		`20\d\d-\d\d-\d\dT[0-9:.]+Z`: "TIME", `  +`: "  ", ` +\n`: "\n",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, with)
	}
	return text
}

func TestTopics(t *testing.T) {
	s := newShell(t)
	expect := func(wantStatus int, wantStdout, wantStderr string, args ...string) {
		t.Helper()
		r := s.run("", append([]string{"topic"}, args...)...)
		if r.status != wantStatus || scrub(r.stdout) != wantStdout || r.stderr != wantStderr {
			t.Errorf("%v: status %d, %q, %q", args, r.status, scrub(r.stdout), r.stderr)
		}
	}
	expect(0, "TOPIC  PARTITIONS  STATE  CREATED  CONFIG\n", "", "list")
	expect(0, "", "", "list", "-o", "json")
	expect(0, "", "varve: created topic a with 1 partition\n", "create", "a")
	expect(0, "", "varve: created topic b.long with 4 partitions\n", "create", "b.long", "--partitions", "4", "--config", "retention.ms=1000", "--config", "cleanup.policy=compact,delete")
	expect(0, "", "varve: topic a is there already, with 1 partition\n", "create", "a", "--partitions", "3", "--if-not-exists")
	expect(0, `TOPIC  PARTITIONS  STATE  CREATED  CONFIG
a  1  active  TIME
b.long  4  active  TIME  cleanup.policy=compact,delete retention.ms=1000
`, "", "list")
	expect(0, `{"name":"b.long","id":"ID","partitions":4,"config":{"cleanup.policy":"compact,delete","retention.ms":"1000"},"state":"active","created_at":0}
`, "", "list", "b", "-o", "json")
	expect(0, `{"name":"c","id":"ID","partitions":1,"config":{},"state":"active","created_at":0,"created":true}`+"\n", "", "create", "c", "-o", "json")
	expect(0, "", "varve: topic b.long has 5 partitions, cleanup.policy=compact,delete\n", "alter", "b.long", "--partitions", "5", "--unset", "retention.ms")
	expect(0, `{"name":"c","deleted":true}`+"\n", "", "delete", "c", "-o", "json")
	expect(0, "", "varve: topic a is deleted\n", "delete", "a")
	expect(0, "", "varve: there is no topic a: nothing was deleted\n", "delete", "a", "--if-exists")
}

func TestTopicsRefused(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "2")
	for line, want := range map[string]struct {
		status int
		text   string
	}{
		"create t":                           {1, "--if-not-exists makes that a success"},
		"create a/b":                         {1, "a/b"},
		"create x --config retention.ms=x":   {1, "retention.ms"},
		"create x --config nope=1":           {1, "nope"},
		"create x --config retention.ms":     {2, "want NAME=VALUE"},
		"create x --config a=1 --config a=2": {2, "given twice"},
		"create x --partitions 0":            {2, "at least 1"},
		"create":                             {2, "want: varve topic create TOPIC [flags], not 0 arguments"},
		"alter t":                            {2, "nothing to change"},
		"alter t --partitions 1":             {1, "partitions"},
		"alter absent --partitions 3":        {1, "varve topic list"},
		"delete":                             {2, "want: varve topic delete TOPIC [flags], not 0 arguments"},
		"delete t u":                         {2, "not 2 arguments"},
		"delete absent":                      {1, "absent"},
		"describe absent":                    {1, "absent"},
		"trim t":                             {2, "--to is missing"},
		"trim t --to 5":                      {2, "an offset needs -p"},
		"trim t --to earliest":               {2, "would trim nothing"},
		"trim t --to 5 -p 0":                 {1, "t/0"},
		"trim t --to x":                      {2, "want earliest, latest"},
		"":                                   {2, "varve topic needs a command: alter, create, delete, describe, fence, list, trim"},
		"drop t":                             {2, `varve topic has no command "drop"`},
	} {
		r := s.run("", append([]string{"topic"}, strings.Fields(line)...)...)
		if r.status != want.status || !strings.Contains(r.stderr, want.text) || r.stdout != "" {
			t.Errorf("topic %s: status %d, %q, %q", line, r.status, r.stdout, r.stderr)
		}
	}
}

func TestTopicDescribe(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "2", "--config", "retention.bytes=5000")
	s.ok(`{"timestamp":1517966773840,"value":"v"}`, "produce", "t", "--format", "json", "-p", "1")
	text := s.ok("", "topic", "describe", "t")
	for _, want := range []string{
		`(?m)^topic +t$`, `(?m)^partitions +2$`, `(?m)^retention.bytes +5000 +set +\w`, `(?m)^retention.ms +-1 +default +\w`,
		`(?m)^PARTITION +START +END +BYTES +GATEWAY +EPOCH +MAX TIMESTAMP +TOKEN +HELD BY$`, `(?m)^0 +0 +0 +0 .* - +- +-$`, `(?m)^1 +0 +1 +\d+ +g\w+ +\d+ +2018-02-07T01:26:13.840Z +- +-$`,
	} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no match of %s in\n%s", want, text)
		}
	}
	var d descriptionJSON
	if err := json.Unmarshal([]byte(s.ok("", "topic", "describe", "t", "-o", "json")), &d); err != nil {
		t.Fatal(err)
	}
	if d.Name != "t" || d.Partitions != 2 || len(d.Settings) < 6 || len(d.PartitionInfo) != 2 ||
		d.PartitionInfo[0].MaxTimestamp != -1 || d.PartitionInfo[1].MaxTimestamp != 1517966773840 || d.PartitionInfo[1].EndOffset != 1 {
		t.Errorf("%+v", d)
	}
}

func TestTopicTrim(t *testing.T) {
	s := newShell(t)
	s.quakes()
	if got := scrub(s.ok("", "topic", "trim", "quakes", "--to", "-1")); got != "PARTITION  START  END\n0  2  3\n1  2  3\n" {
		t.Errorf("%q", got)
	}
	if got := s.ok("", "topic", "trim", "quakes", "--to", "latest", "-p", "1", "-o", "json"); got != `{"topic":"quakes","partition":1,"start_offset":3,"end_offset":3}`+"\n" {
		t.Errorf("%q", got)
	}
	if got := s.ok("", "cat", "quakes"); got != "a20\n" {
		t.Errorf("after the trims: %q", got)
	}
}

// TestTopicTrimDryRun tells what a trim then does, and does nothing itself.
func TestTopicTrimDryRun(t *testing.T) {
	s := newShell(t)
	s.quakes()
	look := func() string { // the line of costs above it changes
		_, partitions, _ := strings.Cut(s.ok("", "topic", "describe", "quakes"), "\nPARTITION")
		return partitions
	}
	before := look()
	for _, args := range []string{"--to -1", "--to latest", "--to 1 -p 0", "--to 2 -p 0 -p 1", "--to @1970-01-01", "--to @2100-01-01", "--to -100"} {
		r := s.run("", append(append([]string{"topic", "trim", "quakes", "--dry-run"}, strings.Fields(args)...), "-o", "json")...)
		if r.status != statusDone || !strings.Contains(r.stderr, "nothing was changed") {
			t.Errorf("%s: status %d, %q", args, r.status, r.stderr)
		}
		if got := look(); got != before {
			t.Fatalf("%s: a dry run left %q", args, got)
		}
		foretold := make(map[int32]int64)
		for _, line := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
			var f struct {
				Partition                      int32
				Start_offset, New_start_offset int64
				End_offset, Records, Bytes     int64
			}
			if err := json.Unmarshal([]byte(line), &f); err != nil {
				t.Fatalf("%s: %q: %v", args, line, err)
			}
			foretold[f.Partition] = f.New_start_offset
			if f.Records != f.New_start_offset-f.Start_offset || (f.Bytes > 0) != (f.New_start_offset == f.End_offset && f.Records > 0) && args == "--to latest" {
				t.Errorf("%s: %+v", args, f)
			}
		}
		fresh := newShell(t)
		fresh.quakes()
		done := fresh.ok("", append(append([]string{"topic", "trim", "quakes", "--yes"}, strings.Fields(args)...), "-o", "json")...)
		for _, line := range strings.Split(strings.TrimSpace(done), "\n") {
			var f struct {
				Partition    int32
				Start_offset int64
			}
			if err := json.Unmarshal([]byte(line), &f); err != nil || foretold[f.Partition] != f.Start_offset {
				t.Errorf("%s: foretold was %d, it came to %+v, %v", args, foretold[f.Partition], f, err)
			}
		}
	}
	for args, want := range map[string]string{"--to 5 -p 0": "quakes/0: cannot trim to offset 5", "--to 1 -p 9": "partition"} {
		if r := s.run("", append([]string{"topic", "trim", "quakes", "--dry-run"}, strings.Fields(args)...)...); r.status != 1 || !strings.Contains(r.stderr, want) {
			t.Errorf("%s: status %d, %q", args, r.status, r.stderr)
		}
	}
	if got := s.run("", "topic", "trim", "quakes", "--to", "-1", "--dry-run"); !strings.HasPrefix(scrub(got.stdout), "PARTITION  START  NEW START  END  RECORDS  BYTES\n0  0  2  3  2  ") {
		t.Errorf("%q", got.stdout)
	}
}

// TestTopicAlterDryRun tells what a retention would remove, and describe what holds the start then.
func TestTopicAlterDryRun(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "t", "--partitions", "2")
	for _, at := range []string{"1517966773840", "1517966774840"} {
		s.ok(`{"timestamp":`+at+`,"value":"v"}`, "produce", "t", "--format", "json", "-p", "1")
	}
	const nothing = "varve: retention would remove nothing from topic t now; nothing was changed\n"
	const byKey = "varve: t/1: compaction by key takes out records that have a newer one of their key, among offsets 0 to 0; how many, 'varve compact t --wait' tells once it is done\n"
	for args, want := range map[string][2]string{
		"--config retention.ms=86400000": {"PARTITION  FROM  TO  RECORDS  BYTES  LAST TIMESTAMP\n1  0  1  2  138  TIME\n", "varve: 2 records of 138 bytes would be removed from topic t now; nothing was changed\n"},
		"--config retention.bytes=69 -o json": {`{"topic":"t","partition":1,"start_offset":0,"end_offset":1,"records":1,"bytes":69,"last_timestamp":1517966773840}` + "\n",
			"varve: 1 record of 69 bytes would be removed from topic t now; nothing was changed\n"},
		"--config retention.bytes=70":                                       {"", nothing},
		"--config cleanup.policy=compact --config retention.ms=1":           {"", nothing + byKey},
		"--config cleanup.policy=compact,delete --config retention.bytes=1": {"PARTITION  FROM  TO  RECORDS  BYTES  LAST TIMESTAMP\n1  0  0  1  69  TIME\n", "varve: 1 record of 69 bytes would be removed from topic t now; nothing was changed\n" + byKey},
	} {
		r := s.run("", append([]string{"topic", "alter", "t", "--dry-run"}, strings.Fields(args)...)...)
		if r.status != 0 || scrub(r.stdout) != want[0] || r.stderr != want[1] {
			t.Errorf("%s: status %d\n%s%s", args, r.status, scrub(r.stdout), r.stderr)
		}
	}
	if text := s.ok("", "topic", "list"); strings.Contains(text, "retention") {
		t.Errorf("something was changed: %s", text)
	}
	if r := s.run("", "topic", "alter", "t", "--dry-run", "--config", "retention.ms=x"); r.status != 1 || !strings.Contains(r.stderr, "not a whole number") {
		t.Errorf("status %d, %s", r.status, r.stderr)
	}
	s.ok("", "topic", "alter", "t", "--config", "retention.ms=9000000000000")
	if text := s.ok("", "topic", "describe", "t"); !regexp.MustCompile(`(?m)^1 +0 +2 .* 2018-02-07T01:26:14.840Z +- +2018-02-07T01:26:13.840Z$`).MatchString(text) {
		t.Errorf("%s", text)
	}
}

// What a user may not mean is refused, or told.
func TestTopicWords(t *testing.T) {
	s := newShell(t)
	s.ok("", "topic", "create", "kv")
	s.ok(`{"key":"a","value":"1"}
{"key":"a","value":"2"}
{"key":"b","value":"3"}
`, "produce", "kv", "--format", "json")
	if r := s.run("", "topic", "alter", "kv", "--config", "cleanup.policy=compact", "--dry-run"); r.status != statusDone || !strings.Contains(r.stderr, "kv/0: compaction by key takes out records that have a newer one of their key, among offsets 0 to 1") {
		t.Errorf("a dry run: status %d, %q", r.status, r.stderr)
	}
	if r := s.run("", "topic", "trim", "kv", "--to", "@2027-01-01"); r.status != statusUsage || !strings.Contains(r.stderr, "lies in the future") {
		t.Errorf("a trim to the future: status %d, %q", r.status, r.stderr)
	}
	if got := s.ok("", "topic", "trim", "kv", "--to", "@2027-01-01", "--yes", "-o", "json"); !strings.Contains(got, `"start_offset":3`) {
		t.Errorf("a trim to the future that is meant: %s", got)
	}
	for _, want := range []string{"topic kv is deleted", "there is no topic kv: nothing was deleted"} {
		if r := s.run("", "topic", "delete", "kv", "--if-exists"); r.status != statusDone || !strings.Contains(r.stderr, want) {
			t.Errorf("status %d, %q, want %q", r.status, r.stderr, want)
		}
	}
	if got := s.ok("", "topic", "delete", "kv", "--if-exists", "-o", "json"); !strings.Contains(got, `"deleted":false`) {
		t.Errorf("JSON: %s", got)
	}
}
