package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// Lines longer than a message can be are refused before they fill the memory. JSON takes more
// room than the bytes it stands for: base64 a third, escapes a few times.
const (
	maxLine     = 16 << 20
	maxJSONLine = 4 * maxLine
)

// input reads lines from files, one after the other, and knows where it is.
type input struct {
	ctx     context.Context
	names   []string
	stdin   io.Reader
	maxLine int
	// onRead is told how many bytes were read.
	onRead func(int)

	file   io.Closer
	reader *bufio.Reader
	long   []byte // a line that does not fit into the reader's buffer
	place  position
}

// position is a line of the input.
type position struct {
	file string
	line int64 // from 1
}

func (p position) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }

// stdinName is how standard input is given, and named in errors.
const stdinName = "-"

// next returns the next line without its newline, valid until the call after; io.EOF at the end of the last file.
func (in *input) next() ([]byte, error) {
	for {
		if in.reader == nil {
			if err := in.open(); err != nil {
				return nil, err
			}
		}
		line, err := in.readLine()
		if errors.Is(err, io.EOF) {
			if err := in.close(); err != nil {
				return nil, err
			}
			continue
		}
		return line, err
	}
}

// open goes on to the next file.
func (in *input) open() error {
	if len(in.names) == 0 {
		return io.EOF
	}
	name := in.names[0]
	in.names = in.names[1:]
	if name == stdinName {
		in.place = position{file: "standard input"}
		in.reader = bufio.NewReaderSize(&interruptible{ctx: in.ctx, r: in.stdin, onRead: in.onRead}, 256<<10)
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	in.place = position{file: name}
	in.file = f
	in.reader = bufio.NewReaderSize(&interruptible{ctx: in.ctx, r: f, onRead: in.onRead}, 256<<10)
	return nil
}

func (in *input) close() error {
	in.reader = nil
	if in.file == nil {
		return nil
	}
	f := in.file
	in.file = nil
	return f.Close()
}

// readLine returns io.EOF at the end of a file; a last line without a newline is a line.
func (in *input) readLine() ([]byte, error) {
	line, err := in.reader.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		in.long = append(in.long[:0], line...)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(in.long) > in.maxLine {
				in.place.line++
				return nil, fmt.Errorf("%v: the line is longer than %d bytes, more than any message can be; is this a file of lines?", in.place, in.maxLine)
			}
			line, err = in.reader.ReadSlice('\n')
			in.long = append(in.long, line...)
		}
		line = in.long
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(line) == 0 {
		return nil, io.EOF
	}
	in.place.line++
	return bytes.TrimSuffix(line, []byte{'\n'}), nil
}

// interruptible ends a Read when ctx ends. A read of a terminal or pipe cannot be called off, so
// it goes on by itself, into a buffer of its own, and its bytes are lost.
type interruptible struct {
	ctx     context.Context
	r       io.Reader
	onRead  func(int)
	results chan readResult
	buffer  []byte
}

type readResult struct {
	n   int
	err error
}

func (i *interruptible) Read(p []byte) (int, error) {
	if err := i.ctx.Err(); err != nil {
		return 0, err
	}
	if i.results == nil {
		i.results = make(chan readResult, 1)
		i.buffer = make([]byte, 128<<10)
	}
	b := i.buffer[:min(len(p), len(i.buffer))]
	go func() {
		n, err := i.r.Read(b)
		i.results <- readResult{n, err}
	}()
	select {
	case r := <-i.results:
		if i.onRead != nil {
			i.onRead(r.n)
		}
		return copy(p, b[:r.n]), r.err
	case <-i.ctx.Done():
		return 0, i.ctx.Err()
	}
}

// regularSize is the size of all files together in bytes, or -1 if any is not a regular file.
func regularSize(names []string, stdin io.Reader) int64 {
	var total int64
	for _, name := range names {
		info, err := stat(name, stdin)
		if err != nil || !info.Mode().IsRegular() {
			return -1
		}
		total += info.Size()
	}
	return total
}

func stat(name string, stdin io.Reader) (os.FileInfo, error) {
	if name != stdinName {
		return os.Stat(name)
	}
	f, ok := stdin.(*os.File)
	if !ok {
		return nil, errors.New("not a file")
	}
	return f.Stat()
}
