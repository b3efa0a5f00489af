package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readAll(in *input) (lines []string, err error) {
	for {
		line, err := in.next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return lines, err
		}
		lines = append(lines, in.place.String()+" "+string(line))
	}
}

func TestInput(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := write("a", "1\n\n3\r\n")
	empty := write("empty", "")
	b := write("b", "no newline at the end")
	in := &input{ctx: t.Context(), names: []string{a, empty, stdinName, b}, stdin: strings.NewReader("x\n"), maxLine: 100}
	got, err := readAll(in)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{a + ":1 1", a + ":2 ", a + ":3 3\r", "standard input:1 x", b + ":1 no newline at the end"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	in = &input{ctx: t.Context(), names: []string{a, filepath.Join(dir, "absent")}, maxLine: 100}
	if _, err := readAll(in); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestLongLines(t *testing.T) {
	const limit = 1 << 20
	long := strings.Repeat("x", limit-1)
	in := &input{ctx: t.Context(), names: []string{stdinName}, stdin: strings.NewReader("a\n" + long + "\nb\n"), maxLine: limit}
	for _, want := range []string{"a", long, "b"} {
		if got, err := in.next(); err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v, want %d", len(got), err, len(want))
		}
	}
	in = &input{ctx: t.Context(), names: []string{stdinName}, stdin: strings.NewReader("a\n" + strings.Repeat(long, 3)), maxLine: limit}
	_, err := readAll(in)
	if err == nil || !strings.HasPrefix(err.Error(), "standard input:2: the line is longer than 1048576 bytes") {
		t.Errorf("a line that is too long: %v", err)
	}
}

// Ctrl-C ends a read of a terminal, which itself goes on.
func TestInterruptedInput(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	defer w.Close()
	in := &input{ctx: ctx, names: []string{stdinName}, stdin: r, maxLine: 100}
	go func() {
		io.WriteString(w, "a\n")
		cancel()
	}()
	got, err := readAll(in)
	if !errors.Is(err, context.Canceled) || len(got) > 1 {
		t.Errorf("%q, %v", got, err)
	}
}
