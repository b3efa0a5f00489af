package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/varvelog/varve/bill"
)

// costsOf are the lines of cost -o json.
func costsOf(t *testing.T, text string) (lines []costJSON) {
	t.Helper()
	for scanner := bufio.NewScanner(strings.NewReader(text)); scanner.Scan(); {
		var l costJSON
		if err := json.Unmarshal(scanner.Bytes(), &l); err != nil {
			t.Fatalf("%v in %s", err, scanner.Text())
		}
		lines = append(lines, l)
	}
	return lines
}

func TestCost(t *testing.T) {
	s := newShell(t)
	s.ok(strings.Repeat(strings.Repeat("x", 1000)+"\n", 3000), "produce", "large")
	s.ok("y\n", "produce", "small")
	s.ok("", "topic", "create", "unused")
	r := s.run("", "cost")
	for _, want := range []string{
		`(?m)^TOPIC +APPENDED +PUTS +GETS +READ +WRITE UNITS +READ UNITS +USD +USD A GIB +STORED +USD A MONTH$`,
		`(?m)^large +2\.9 MiB .*\nsmall +\d+ B +[0-9.]+ .* - +\d+ B +\S+\n\(cluster\) .*\ntotal +2\.9 MiB `, `(?m)^\d+ % are [^:]+(, \d+ a GiB appended)?: .*\.$`,
	} {
		if !regexp.MustCompile(want).MatchString(r.stdout) {
			t.Errorf("no match of %s in\n%s", want, r.stdout)
		}
	}
	if !strings.Contains(r.stderr, "bucket and table are file:// and ") || !strings.Contains(r.stderr, "counted by 1 gateway") || !strings.Contains(r.stderr, "as of 2") {
		t.Errorf("%q", r.stderr)
	}
	text := s.ok("", "cost", "large")
	for _, want := range []string{`(?m)^PUTs of flushes +\S+ +\S+ +\S+ +\d+ %$`, `(?m)^write units of commits +`, `(?m)^all of it +2\.9 MiB appended +`, `(?m)^stored +2\.9 MiB +\S+ a month`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("no match of %s in\n%s", want, text)
		}
	}
	lines := costsOf(t, s.ok("", "cost", "-o", "json"))
	var money float64
	for _, l := range lines[:len(lines)-1] {
		money += l.Money
	}
	total := lines[len(lines)-1]
	if len(lines) != 4 || lines[0].Topic != "large" || lines[0].AppendedRecords != 3000 || lines[0].StoredBytes == nil || *lines[0].StoredBytes < 3e6 || lines[0].MoneyPerGiB == nil ||
		lines[1].Topic != "small" || lines[2].Kind != "cluster" || total.Kind != "total" || total.Billed || len(total.Gateways) != 1 || total.Gateways[0].Since == 0 {
		t.Errorf("%+v", lines)
	}
	if money < total.Money*0.999999 || money > total.Money*1.000001 || money == 0 {
		t.Errorf("lines come to %v, the total is %v", money, total.Money)
	}
	if text := s.ok("", "topic", "describe", "large"); !regexp.MustCompile(`(?m)^cost +\S+ USD, \S+ a GiB appended \(counted by 1 gateway, .*\); 2\.9 MiB stored, \S+ a month; what nobody bills`).MatchString(text) {
		t.Errorf("no cost in\n%s", text)
	}
	if r := s.run("", "cost", "absent"); r.status != statusFailed || !strings.Contains(r.stderr, "absent") {
		t.Errorf("of a topic that is not there: %d, %q", r.status, r.stderr)
	}
	s.ok("", "topic", "delete", "large")
	if lines := costsOf(t, s.ok("", "cost", "-o", "json")); len(lines) != 4 || lines[1].Kind != "gone" || lines[1].Topic != "" || lines[1].AppendedRecords != 3000 {
		t.Errorf("after it was deleted: %+v", lines)
	}
}

func TestCostPrices(t *testing.T) {
	s := newShell(t)
	s.ok("y\n", "produce", "t")
	printed := s.ok("", "cost", "--print-prices")
	if printed != string(bill.DefaultPricesText()) {
		t.Errorf("%q", printed)
	}
	file := filepath.Join(t.TempDir(), "prices.yaml")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(regexp.MustCompile(`(_[a-z0-9_]+): [0-9.]+`).ReplaceAllString(strings.Replace(printed, "USD", "EUR", 1), "$1: 0"))
	if lines := costsOf(t, s.ok("", "cost", "-o", "json", "--prices", file)); lines[0].Currency != "EUR" || lines[len(lines)-1].Money != 0 || lines[0].Advice != "" {
		t.Errorf("%+v", lines)
	}
	write("currency: EUR\n")
	for _, args := range [][]string{{"cost", "--prices", file}, {"cost", "--prices", file + ".absent"}} {
		if r := s.run("", args...); r.status != statusUsage || !strings.Contains(r.stderr, "prices") {
			t.Errorf("%v: %d, %q", args, r.status, r.stderr)
		}
	}
}

// TestCostStopped: without a gateway there is nothing but what is stored, and it says so.
func TestCostStopped(t *testing.T) {
	data := t.TempDir()
	serving := startServing(t, "--data", data)
	s := &testShell{t: t, data: data, env: map[string]string{"VARVE_SERVER": "http://" + serving.address}}
	s.ok("hello\n", "produce", "t")
	r := s.run("", "cost", "--data", s.data)
	if r.status != statusFailed || !strings.Contains(r.stderr, "leave --data away") {
		t.Errorf("while it runs: %d, %q", r.status, r.stderr)
	}
	if err := serving.stop(); err != nil {
		t.Fatal(err)
	}
	r = s.run("", "cost", "--data", s.data)
	if r.status != statusDone || !regexp.MustCompile(`^TOPIC +STORED +USD A MONTH\nt +\d+ B +\S+\n$`).MatchString(r.stdout) || !strings.Contains(r.stderr, "counters are in the memory of a gateway that runs") {
		t.Errorf("%d, %q, %q", r.status, r.stdout, r.stderr)
	}
	if lines := costsOf(t, s.ok("", "cost", "t", "--data", s.data, "-o", "json")); len(lines) != 1 || lines[0].StoredBytes == nil || *lines[0].StoredBytes == 0 {
		t.Errorf("%+v", lines)
	}
	if text := s.ok("", "cost", "t", "--data", s.data, "-o", "json"); !strings.Contains(text, `"money":null`) || !strings.Contains(text, `"appended_bytes":null`) {
		t.Errorf("what is not known: %s", text)
	}
	if r := s.run("", "cost", "--data", t.TempDir()); r.status != statusFailed || !strings.Contains(r.stderr, "no gateway has had its table there") {
		t.Errorf("%d, %q", r.status, r.stderr)
	}
}
