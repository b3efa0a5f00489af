package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// offline runs a command line that needs no gateway, or must do without.
func offline(t *testing.T, env map[string]string, args ...string) result {
	t.Helper()
	s := &testShell{t: t, env: env}
	return s.run("", args...)
}

// Whatever is wrong with the command line is told before anything is done, with status 2 and a hint.
func TestUsage(t *testing.T) {
	for line, want := range map[string]string{
		"":                                    "varve needs a command: ",
		"frobnicate":                          `unknown command "frobnicate"`,
		"cat":                                 "want: varve cat TOPIC [flags], not 0 arguments",
		"cat t --nope":                        "unknown flag: --nope",
		"cat t --max-records x":               "invalid argument",
		"cat t --from x":                      "--from: place",
		"cat t --until @x":                    "--until: time",
		"cat t --between 1":                   "--between",
		"cat t -f %x":                         "unknown letter %x",
		"cat t -f %s -o json":                 "exclude each other",
		"cat t -o xml":                        "want text or json",
		"cat t -p -1":                         "partitions count from 0",
		"cat t -p 1,1":                        "given twice",
		"cat t --max-bytes -1":                "must not be negative",
		"cat t --timeout 0s":                  "must be more than 0",
		"cat t --server nonsense":             "want http://host:port",
		"tail t -n -1":                        "want 0 to",
		"offsets t --time x":                  "--time: time",
		"offsets t --time 1 --before 2":       "--time and --before exclude each other",
		"produce":                             "not 0 arguments",
		"produce t --format xml":              "want line or json",
		"produce t --acks all":                "want committed or buffered",
		"produce t -z brotli":                 "want none, gzip",
		"produce t -H x":                      "want NAME=VALUE",
		"produce t -k a -K b":                 "key",
		"produce t --key-separator=":          "want at least one character",
		"produce t --keep-partitions":         "needs --format json",
		"produce t --format json -k a":        "is for lines",
		"produce t -p -3":                     "partitions count from 0",
		"produce t --timestamp x":             "--timestamp: time",
		"produce t --expected-offset 5":       "--expected-offset needs -p",
		"produce t --fencing-token x":         "--fencing-token needs -p",
		"produce t -p 0 --expected-offset -1": "offsets count from 0",
		"produce t -p 0 --expected-offset 5 --acks buffered":        "--expected-offset and --acks buffered exclude each other",
		"produce t -p 0 --fencing-token x --acks buffered":          "--fencing-token and --acks buffered exclude each other",
		"produce t -p 0 --fencing-token " + strings.Repeat("x", 37): "37 bytes, a token has at most 36",
		"topic fence t":                                 "want: varve topic fence TOPIC TOKEN -p N [flags], not 1 argument",
		"topic fence t x":                               "-p is missing",
		"topic fence t x -p -1":                         "partitions count from 0",
		"topic fence t x -p 0 --expected-offset -1":     "offsets count from 0",
		"topic fence t -p 0 " + strings.Repeat("x", 37): "want at most 36 bytes",
		"gateways x":                                    "not 1 argument",
		"completion tcsh":                               "want: varve completion bash|zsh|fish",
		"version x":                                     "not 1 argument",
	} {
		r := offline(t, nil, strings.Fields(line)...)
		if r.status != statusUsage || r.stdout != "" || !strings.Contains(r.stderr, want) || !strings.Contains(r.stderr, "--help' for usage.\n") {
			t.Errorf("varve %s: status %d, %q, %q, want %q", line, r.status, r.stdout, r.stderr, want)
		}
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	for _, line := range []string{"--help", "cat --help", "help topic", "topic create -h"} {
		if r := offline(t, nil, strings.Fields(line)...); r.status != statusDone || !strings.Contains(r.stdout, "Usage:") || r.stderr != "" {
			t.Errorf("varve %s: status %d, %q", line, r.status, r.stderr)
		}
	}
}

func TestNoGateway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	for _, verb := range []string{"cat t", "tail t", "offsets t", "topic list", "produce t", "dump t/0@0"} {
		s := &testShell{t: t}
		r := s.run("a\n", append(strings.Fields(verb), "--server", "http://"+l.Addr().String(), "--timeout", "200ms")...)
		if r.status != statusFailed || strings.Count(r.stderr, "trying again") != 1 || !strings.Contains(r.stderr, "start one with 'varve serve'") {
			t.Errorf("%s: status %d, %q", verb, r.status, r.stderr)
		}
	}
}

// Servers that are no gateways: an object store, a table, a path that nobody serves.
func TestServerThatIsNoGateway(t *testing.T) {
	for _, server := range []string{
		refusing(t, http.StatusBadRequest, "application/xml", "<Error><Code>InvalidArgument</Code></Error>"),
		refusing(t, http.StatusBadRequest, "application/json", `{"__type":"UnknownOperationException"}`),
		refusing(t, http.StatusNotFound, "text/plain", "404 page not found"),
	} {
		for _, verb := range []string{"topic list", "cat t", "tail t", "produce t"} {
			r := (&testShell{t: t}).run("a\n", append(strings.Fields(verb), "--server", server, "--timeout", "2s")...)
			if want := "is " + server + " the --listen address of a gateway?\n"; r.status != statusFailed || !strings.HasSuffix(r.stderr, want) {
				t.Errorf("%s: status %d, %q", verb, r.status, r.stderr)
			}
		}
	}
}

// A gateway says itself that it failed.
func TestInternalErrorOfAGateway(t *testing.T) {
	server := refusing(t, http.StatusInternalServerError, "application/json",
		`{"code":"internal","message":"the log has the cause","details":[{"type":"varve.v1.ErrorInfo","value":""}]}`)
	if r := (&testShell{t: t}).run("", "topic", "list", "--server", server); r.status != statusFailed || r.stderr != "varve: the log has the cause\n" {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
}

func TestEnvironment(t *testing.T) {
	s := newShell(t)
	s.quakes()
	s.env["VARVE_MAX_RECORDS"], s.env["VARVE_OUTPUT"], s.env["VARVE_FORMAT"] = "1", "", "%s,"
	if got := s.ok("", "cat", "quakes"); got != "a10," {
		t.Errorf("from the environment: %q", got)
	}
	if got := s.ok("", "cat", "quakes", "--max-records", "2"); got != "a10,b15," {
		t.Errorf("a flag goes before its variable: %q", got)
	}
	s.env["VARVE_MAX_RECORDS"] = "many"
	if r := s.run("", "cat", "quakes"); r.status != statusUsage || !strings.Contains(r.stderr, "VARVE_MAX_RECORDS") {
		t.Errorf("status %d, %q", r.status, r.stderr)
	}
}

// Every flag has a variable, and its usage names it.
func TestEveryFlagNamesItsVariable(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if v := variableOf(f); v != "" && !strings.Contains(f.Usage, v) {
				t.Errorf("%s --%s: %q does not name %s", cmd.CommandPath(), f.Name, f.Usage, v)
			}
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(newRootCommand(&app{stdout: &bytes.Buffer{}, stderr: &bytes.Buffer{}}))
}

func TestVersion(t *testing.T) {
	defer func(v string) { version = v }(version)
	version = "v1.2.3"
	if got := offline(t, nil, "version").stdout; got != "varve v1.2.3 ("+runtime.Version()+", "+runtime.GOOS+"/"+runtime.GOARCH+")\n" {
		t.Errorf("%q", got)
	}
	if got := offline(t, nil, "version", "-o", "json").stdout; !strings.HasPrefix(got, `{"version":"v1.2.3","go":"go`) {
		t.Errorf("%q", got)
	}
	if got := offline(t, nil, "--version").stdout; got != "varve v1.2.3\n" {
		t.Errorf("%q", got)
	}
	version = ""
	if got := buildVersion(); got == "" {
		t.Error("no version at all")
	}
}

func TestCompletion(t *testing.T) {
	s := newShell(t)
	s.quakes()
	s.ok("", "topic", "create", "quiet")
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if got := s.ok("", "completion", shell); !strings.Contains(got, "__complete") {
			t.Errorf("%s: %d bytes", shell, len(got))
		}
	}
	for line, want := range map[string]string{
		"cat |":              "quakes quiet",
		"cat qua|":           "quakes",
		"topic describe q|":  "quakes quiet",
		"topic cre|":         "create",
		"topic create |":     "",
		"produce t --acks |": "committed buffered",
		"cat t -o |":         "text json",
	} {
		words := strings.Split(strings.TrimSuffix(line, "|"), " ")
		out := s.ok("", append([]string{"__complete"}, words...)...)
		var got []string
		for l := range strings.Lines(out) {
			if word, _, _ := strings.Cut(strings.TrimSpace(l), "\t"); !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

// A command that was interrupted before it could do anything says so.
func TestInterruptedAtOnce(t *testing.T) {
	s := newShell(t)
	s.quakes()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errInterrupted)
	for _, args := range [][]string{{"topic", "list"}, {"offsets", "quakes"}, {"produce", "quakes"}} {
		var stdout, stderr bytes.Buffer
		status := execute(ctx, args, s.app(strings.NewReader(""), &stdout, &stderr))
		if status != statusFailed || !strings.HasSuffix(stderr.String(), "varve: interrupted\n") {
			t.Errorf("%v: status %d, %q", args, status, &stderr)
		}
	}
}

func TestFlagsThatExcludeEachOther(t *testing.T) {
	s := &testShell{t: t}
	for args, want := range map[string]string{
		"offsets t --time 5 --before 6":         "varve: --time and --before exclude each other\n",
		"produce t -k a -K b":                   "varve: --key and --key-separator exclude each other\n",
		"produce t -p 1 --keep-partitions":      "varve: --partition and --keep-partitions exclude each other\n",
		"dump t/0@0 --raw --records":            "varve: --raw and --records exclude each other\n",
		"cat t\xff":                             "varve: topic name \"t\\xff\" is not UTF-8\n",
		"topic create t\xff --partitions 3":     "varve: topic name \"t\\xff\" is not UTF-8\n",
		"cat t --format %s -o json -p 1":        "varve: --format and --output json exclude each other\n",
		"offsets t --time=2h --before 5 -p 0,1": "varve: --time and --before exclude each other\n",
	} {
		r := s.run("", strings.Fields(args)...)
		if r.status != statusUsage || !strings.HasPrefix(r.stderr, want) {
			t.Errorf("%q: status %d, %q, want %q", args, r.status, r.stderr, want)
		}
	}
}
