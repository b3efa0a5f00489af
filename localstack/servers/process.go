package servers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	readyWithin = 60 * time.Second // a cold start on a busy machine
	stopWithin  = 10 * time.Second // after SIGTERM, and after SIGKILL
	checkEvery  = 20 * time.Millisecond
)

// ErrPortTaken says that another program listens on the port that was asked for.
var ErrPortTaken = errors.New("the port is in use by another program")

// Options say how to start a server.
type Options struct {
	// Port on 127.0.0.1; 0 takes a free one.
	Port int
	// Data is the folder that keeps the server's data; it is made if need be. The
	// path must be absolute.
	Data string
	// Log is the file that the server's output is appended to.
	Log string
	// Detached lets the server live on when the caller ends. Otherwise it ends with
	// it, on Linux even when the caller is killed.
	Detached bool
	// Started, if set, is told of the process before it is waited for, so that it
	// can be found again whatever happens next. An error stops the server.
	Started func(*Process) error
	// Notes is told what takes long.
	Notes io.Writer
}

// A Process is a server that runs, or ran. As JSON it can be kept in a file, and
// works as well when it is read from there by another program.
type Process struct {
	PID     int      `json:"pid"`
	Command []string `json:"command"`
	Port    int      `json:"port"`

	exited chan struct{} // closed when it ended; nil if it is not our child
}

// URL is the server's address, such as http://127.0.0.1:9000.
func (p *Process) URL() string { return "http://" + address(p.Port) }

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Start gets the server's program if need be, runs it, and returns once it is
// ready. When it does not become so, the error ends with what the server said and
// nothing is left running.
func (k Kind) Start(ctx context.Context, o Options) (*Process, error) {
	program, err := k.fetch(ctx, o.Notes)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Data, 0o755); err != nil {
		return nil, err
	}
	port, err := choosePort(o.Port)
	if err != nil {
		return nil, fmt.Errorf("%s on port %d: %w", k.Name, o.Port, err)
	}
	p := &Process{Command: append(program, k.args(port, o.Data)...), Port: port, exited: make(chan struct{})}
	if err := p.run(k.env, o); err != nil {
		return nil, fmt.Errorf("starting %s: %w", k.Name, err)
	}
	if o.Started != nil {
		err = o.Started(p)
	}
	if err == nil {
		err = p.ready(ctx, k)
	}
	if err != nil {
		// The caller's context may be what ended; the server has to go all the same.
		err = errors.Join(err, p.Stop(context.WithoutCancel(ctx)))
		return nil, fmt.Errorf("starting %s on port %d: %w%s", k.Name, port, err, lastLines(o.Log))
	}
	return p, nil
}

func choosePort(wanted int) (int, error) {
	listener, err := net.Listen("tcp", address(wanted))
	if errors.Is(err, syscall.EADDRINUSE) {
		return 0, ErrPortTaken
	}
	if err != nil {
		return 0, err
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port, nil
}

func (p *Process) run(env []string, o Options) error {
	log, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.Command[0], p.Command[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = attributes(o.Detached)
	started := make(chan error)
	go func() {
		defer close(p.exited)
		// Linux ends an attached child with the thread that started it: keep the thread.
		runtime.LockOSThread()
		err := cmd.Start()
		if err == nil {
			p.PID = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			cmd.Wait() // how it ended is in its log
		}
	}()
	return <-started
}

func (p *Process) ready(ctx context.Context, k Kind) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("not ready after %v", readyWithin))
	defer cancel()
	for {
		if k.answers(ctx, p.URL()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-p.exited:
			return errors.New("it ended at once")
		case <-time.After(checkEvery):
		}
	}
}

func (k Kind) answers(ctx context.Context, url string) bool {
	request, err := k.probe(ctx, url)
	if err != nil {
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// lastLines is the end of a log, to stand below an error.
func lastLines(path string) string {
	text, err := os.ReadFile(path)
	if err != nil || len(text) == 0 {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	lines = lines[max(0, len(lines)-10):]
	return "\nthe end of " + path + ":\n  " + strings.Join(lines, "\n  ")
}

// Running says whether the process still runs. One that merely got the same id
// later does not count.
func (p *Process) Running() (bool, error) {
	return runs(p.PID, p.Command)
}

// Stop ends the process, kindly at first, by force after ten seconds, and returns
// when it is gone and its port is free. Of a process that is not running it waits
// for the end only.
func (p *Process) Stop(ctx context.Context) error {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		running, err := p.Running()
		if err != nil {
			return err
		}
		if running {
			if err := syscall.Kill(p.PID, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("stopping process %d: %w", p.PID, err)
			}
		}
		if gone, err := p.gone(ctx, stopWithin); gone || err != nil {
			return err
		}
	}
	return fmt.Errorf("process %d (%s) does not end", p.PID, p.Command[0])
}

// gone waits until the process is gone, for so long at most.
func (p *Process) gone(ctx context.Context, within time.Duration) (bool, error) {
	deadline := time.After(within)
	for {
		running, err := p.Running()
		if err == nil && !running {
			running, err = ending(p.PID)
		}
		if !running || err != nil {
			return err == nil, err
		}
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-deadline:
			return false, nil
		case <-p.exited:
			return true, nil
		case <-time.After(checkEvery):
		}
	}
}
