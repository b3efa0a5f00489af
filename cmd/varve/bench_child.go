package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// startTimeout bounds the start of a child, stopTimeout its end, after which it is killed.
	startTimeout = 60 * time.Second
	stopTimeout  = 40 * time.Second
)

// child is this program as a process of its own, so that its CPU time is counted apart.
type child struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *bufio.Reader
	output *tailBuffer // of standard error
	exited chan struct{}
	err    error // valid once exited is closed
}

// startChild runs `varve args…`. It ends when stop is called; one that reads its standard input
// ends with this process too.
func startChild(args ...string) (*child, error) { return startChildIn(nil, args...) }

// startChildIn adds variables to the child's environment.
func startChildIn(variables []string, args ...string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &child{cmd: exec.Command(self, args...), output: &tailBuffer{}, exited: make(chan struct{})}
	c.cmd.Stderr = c.output
	c.cmd.Env = append(os.Environ(), variables...)
	// A group of its own: Ctrl-C goes to this process, which stops the child when it is done with it.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	c.cmd.Stdout = w
	c.stdout = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		out.Close()
		w.Close()
		return nil, err
	}
	w.Close()
	go func() {
		defer close(c.exited)
		c.err = c.cmd.Wait()
	}()
	return c, nil
}

// stop ends the child by SIGTERM, and by force if it does not end.
func (c *child) stop() error {
	c.stdin.Close()
	// It fails when the child has ended already.
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.exited:
		return nil
	case <-time.After(stopTimeout):
		_ = c.cmd.Process.Kill()
		<-c.exited
		return fmt.Errorf("process %d (%s) did not end within %s and was killed", c.cmd.Process.Pid, c.cmd.Args[1], stopTimeout)
	}
}

// failed explains a child that ended too early.
func (c *child) failed() error {
	<-c.exited
	return fmt.Errorf("varve %s ended: %v\n%s", c.cmd.Args[1], c.err, c.output.String())
}

// tailBuffer keeps the end of what a child says.
type tailBuffer struct {
	mu   sync.Mutex
	data []byte
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	const most = 16 * kib
	b.data = append(b.data, p...)
	if len(b.data) > most {
		b.data = append(b.data[:0], b.data[len(b.data)-most:]...)
	}
	return len(p), nil
}

func (b *tailBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(bytes.TrimSpace(b.data))
}

// startGatewayBy runs `varve serve`, or another command that takes its flags, on a free port and waits until it is ready. It
// has more variables in its environment.
func startGatewayBy(ctx context.Context, variables, command []string, args ...string) (c *child, url string, err error) {
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	c, err = startChildIn(variables, slices.Concat(command, []string{"--listen", address, "--log-level", "warn"}, args)...)
	if err != nil {
		return nil, "", err
	}
	url = "http://" + address
	if err := c.waitReady(ctx, url); err != nil {
		return nil, "", errors.Join(err, c.stop())
	}
	return c, url, nil
}

// freeAddress is a loopback address that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

func (c *child) waitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("varve serve was not ready within %s", startTimeout))
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/readyz", nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(req)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-c.exited:
			return c.failed()
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
