package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is for what takes milliseconds on a machine that is not busy.
const patience = 30 * time.Second

// process is a varve serve.
type process struct {
	address string
	cmd     *exec.Cmd
	said    *lines
	serves  chan struct{} // closed once it says so
	exited  chan struct{} // closed when it has ended
	killed  bool          // by kill
	// startTime is from its launch until it served; valid once it does.
	startTime time.Duration
}

func (p *process) url() string { return "http://" + p.address }

// launch starts varve serve and does not wait for it. It ends with the test at the latest.
func launch(t *testing.T, where place, address string) *process {
	t.Helper()
	args := append([]string{"serve", "--data", where.data, "--listen", address, "--log-format", "json"}, where.args...)
	p := &process{address: address, cmd: command(args, where.env), serves: make(chan struct{}), exited: make(chan struct{})}
	began := time.Now()
	p.said = &lines{heard: func(l logLine) {
		if l.Message == "varve serves" {
			p.startTime = time.Since(began)
			close(p.serves)
		}
	}}
	p.cmd.Stderr = p.said
	if where.log != "" {
		file, err := os.OpenFile(where.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		p.cmd.Stderr = io.MultiWriter(file, p.said)
	}
	p.cmd.SysProcAttr = endsWithUs()
	started := make(chan error)
	go func() {
		defer close(p.exited)
		// Linux ends the process with the thread that started it: keep the thread.
		runtime.LockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			p.cmd.Wait() // how it ended is in ProcessState
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		expected := p.killed || p.ended() && p.cmd.ProcessState.Success()
		p.kill()
		if t.Failed() && !expected {
			t.Logf("process %d said:\n%s", p.cmd.Process.Pid, p.said.tail(12))
		}
	})
	return p
}

// command is the binary with arguments, and without settings from outside.
func command(args, env []string) *exec.Cmd {
	cmd := exec.Command(varve, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "VARVE_") || strings.HasPrefix(v, "AWS_") || strings.HasPrefix(v, "MINIO_")
	})
	cmd.Env = append(cmd.Env, env...)
	return cmd
}

// start returns once varve serves.
func start(t *testing.T, where place) *process {
	t.Helper()
	return launch(t, where, freeAddress(t)).ready(t)
}

// ready waits until the process serves.
func (p *process) ready(t *testing.T) *process {
	t.Helper()
	select {
	case <-p.serves:
	case <-p.exited:
		t.Fatalf("varve ended (%s) instead of serving:\n%s", p.cmd.ProcessState, p.said.tail(12))
	case <-time.After(patience):
		t.Fatalf("varve does not serve after %s:\n%s", patience, p.said.tail(12))
	}
	return p
}

// ended says whether the process has.
func (p *process) ended() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// isReady says whether the process served at some time.
func (p *process) isReady() bool {
	select {
	case <-p.serves:
		return true
	default:
		return false
	}
}

// kill ends the process with SIGKILL, unless it has ended.
func (p *process) kill() {
	p.killed = true
	p.signal(syscall.SIGKILL)
	<-p.exited
}

// signal sends one. A process that has ended gets none.
func (p *process) signal(s os.Signal) {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(err) // it is our own child
	}
}

// wait returns the exit status; -1 for a process that a signal ended.
func (p *process) wait(t *testing.T, within time.Duration) int {
	t.Helper()
	select {
	case <-p.exited:
	case <-time.After(within):
		t.Fatalf("varve does not end within %s:\n%s", within, p.said.tail(12))
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop ends the process as an operator would, and expects the best.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(syscall.SIGTERM)
	if status := p.wait(t, patience); status != 0 {
		t.Errorf("exit status %d after SIGTERM:\n%s", status, p.said.tail(12))
	}
}

// freeAddress finds a port that is not among those that the system gives to outgoing connections:
// it stays free while varve is down.
func freeAddress(t *testing.T) string {
	t.Helper()
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(10_000+rand.IntN(20_000)))
		if listener, err := net.Listen("tcp", address); err == nil {
			listener.Close()
			return address
		}
	}
	t.Fatal("no free port")
	return ""
}

// logLine is a line of the log; one that is not JSON has Text only.
type logLine struct {
	Message  string `json:"msg"`
	Level    string `json:"level"`
	Appended int    `json:"appended"`
	Before   int    `json:"appended_before"`
	// What key compaction and collection say that they did.
	Objects  int    `json:"objects"`
	Rows     int    `json:"rows"`
	Gateways int    `json:"gateways"`
	Dropped  int    `json:"dropped"`
	Text     string `json:"-"`
}

// lines keeps what a process says.
type lines struct {
	heard func(logLine)

	mu   sync.Mutex
	rest []byte
	all  []logLine
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		text, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(b), nil
		}
		line := logLine{Text: string(text)}
		if json.Unmarshal(text, &line) != nil {
			line.Message = "" // not a log line
		}
		l.all, l.rest = append(l.all, line), rest
		l.heard(line)
	}
}

// list is what was said so far.
func (l *lines) list() []logLine {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// find lists the lines with a message.
func (l *lines) find(message string) []logLine {
	return slices.DeleteFunc(l.list(), func(line logLine) bool { return line.Message != message })
}

// tail is the end of it.
func (l *lines) tail(n int) string {
	all := l.list()
	var b strings.Builder
	for _, line := range all[max(0, len(all)-n):] {
		b.WriteString("  " + line.Text + "\n")
	}
	return b.String()
}
