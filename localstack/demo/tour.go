package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// tour runs command lines and shows them.
type tour struct {
	binary, server string
	// folder is where the commands run, so that they name files shortly.
	folder string
	out    io.Writer
}

// The times that are asked for: around the strongest quake of the week off Hualien, and a busy hour.
const (
	quakeTime  = "2018-02-06T15:50:00Z"
	quakeHour  = "2018-02-06T15:30:00Z,2018-02-06T16:30:00Z"
	flightHour = "2001-02-02T17:00:00Z,2001-02-02T18:00:00Z"
	line       = `%p:%o  %k  %s\n`
)

func (t *tour) run(ctx context.Context, files dataset) error {
	if err := t.load(ctx, "quakes", files.quakes, "Earthquakes, sorted by time, keyed by the network that saw them."); err != nil {
		return err
	}
	if err := t.load(ctx, "flights", files.flights, "Flights, in the order of the file, which is none, keyed by origin."); err != nil {
		return err
	}
	steps := []struct {
		say  string
		args []string
	}{
		{"What was the first earthquake after " + quakeTime + "?",
			[]string{"cat", "quakes", "--from", "@" + quakeTime, "--max-records", "1", "-f", line}},
		{"At which offset does each partition reach that time?",
			[]string{"offsets", "quakes", "--time", quakeTime}},
		{"And the offset just before it: everything up to there is older.",
			[]string{"offsets", "quakes", "--before", quakeTime}},
		{"Everything within one hour.",
			[]string{"cat", "quakes", "--between", quakeHour, "-f", line}},
		{"The flights of one hour, from all over the log: look at the offsets.",
			[]string{"cat", "flights", "--between", flightHour, "-f", line}},
	}
	for _, s := range steps {
		t.say("%s", s.say)
		if err := t.show(ctx, s.args...); err != nil {
			return err
		}
	}
	t.say("The ten latest earthquakes; tail would go on with new ones, so Ctrl-C ends it.")
	return t.showTail(ctx, 10, "tail", "quakes", "-n", "10", "-f", line)
}

// load makes a topic and imports its file, unless an earlier tour did.
func (t *tour) load(ctx context.Context, topic string, want int, title string) error {
	t.say("%s", title)
	if err := t.show(ctx, "topic", "create", topic, "--partitions", "4", "--if-not-exists"); err != nil {
		return err
	}
	have, err := t.records(ctx, topic)
	if err != nil {
		return err
	}
	switch have {
	case 0:
		return t.show(ctx, "produce", topic, topic+".jsonl", "--format", "json")
	case want:
		t.say("The %d records are there from an earlier tour.", have)
		return nil
	}
	return fmt.Errorf("topic %s on %s has %d records, not the %d of this tour: delete it (varve topic delete %s) or take another server",
		topic, t.server, have, want, topic)
}

// records is the sum of the partitions' next offsets.
func (t *tour) records(ctx context.Context, topic string) (int, error) {
	out, err := t.command(ctx, "offsets", topic, "-o", "json").Output()
	if err != nil {
		return 0, fmt.Errorf("varve offsets %s: %w", topic, err)
	}
	total := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var o struct {
			EndOffset int `json:"end_offset"`
		}
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return total, nil
		} else if err != nil {
			return 0, err
		}
		total += o.EndOffset
	}
}

func (t *tour) say(format string, args ...any) {
	fmt.Fprintf(t.out, "\n# "+format+"\n", args...)
}

func (t *tour) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, t.binary, args...)
	cmd.Dir = t.folder
	cmd.Env = append(os.Environ(), "VARVE_SERVER="+t.server)
	cmd.Stderr = os.Stderr
	return cmd
}

// show prints a command line, and then what it prints.
func (t *tour) show(ctx context.Context, args ...string) error {
	fmt.Fprintf(t.out, "$ varve %s\n", shellLine(args))
	cmd := t.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = t.out, t.out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("varve %s: %w", args[0], err)
	}
	return nil
}

// showTail does the same with a command that does not end: after some lines it gets the signal of Ctrl-C.
func (t *tour) showTail(ctx context.Context, lines int, args ...string) error {
	fmt.Fprintf(t.out, "$ varve %s\n", shellLine(args))
	cmd := t.command(ctx, args...)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	scanner := bufio.NewScanner(stdout)
	for i := 0; i < lines && scanner.Scan(); i++ {
		fmt.Fprintln(t.out, scanner.Text())
	}
	err = errors.Join(scanner.Err(), cmd.Process.Signal(syscall.SIGINT), cmd.Wait())
	fmt.Fprintln(t.out, "^C")
	return err
}

// shellLine quotes what a shell would not take as it is.
func shellLine(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = a
		if a == "" || strings.ContainsAny(a, " \\%$*?'\"<>|&;") {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
