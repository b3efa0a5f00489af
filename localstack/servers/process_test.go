package servers

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func options(t *testing.T) Options {
	folder := t.TempDir()
	return Options{
		Data:  filepath.Join(folder, "data"),
		Log:   filepath.Join(folder, "log"),
		Notes: t.Output(),
	}
}

// script is a server that is a few lines of shell.
func script(lines string) Kind {
	return Kind{
		Name:  "script",
		fetch: func(context.Context, io.Writer) ([]string, error) { return []string{"sh", "-c", lines}, nil },
		args:  func(int, string) []string { return nil },
		probe: Dynalite.probe,
	}
}

// shell starts such a script as a Process that nobody waits to be ready.
func shell(t *testing.T, lines string) *Process {
	p := &Process{Command: []string{"sh", "-c", lines}, exited: make(chan struct{})}
	if err := p.run(nil, Options{Log: filepath.Join(t.TempDir(), "log")}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		syscall.Kill(p.PID, syscall.SIGKILL)
		<-p.exited
	})
	return p
}

func TestStartAndStop(t *testing.T) {
	for _, kind := range []Kind{MinIO, Dynalite} {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			o := options(t)
			var told int
			o.Started = func(p *Process) error { told = p.PID; return nil }
			p, err := kind.Start(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if told != p.PID {
				t.Errorf("Started was told of process %d, not %d", told, p.PID)
			}
			if !strings.HasPrefix(p.URL(), "http://127.0.0.1:") {
				t.Errorf("listens at %s, not on loopback", p.URL())
			}
			if !kind.answers(t.Context(), p.URL()) {
				t.Error("does not answer although Start returned")
			}

			// Another program knows the process from its file only.
			text, err := json.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			var read Process
			if err := json.Unmarshal(text, &read); err != nil {
				t.Fatal(err)
			}
			if running, err := read.Running(); !running || err != nil {
				t.Fatalf("Running = %v, %v; it runs", running, err)
			}
			if err := read.Stop(t.Context()); err != nil {
				t.Fatal(err)
			}
			if running, err := p.Running(); running || err != nil {
				t.Errorf("Running = %v, %v after Stop", running, err)
			}
			if _, err := http.Get(p.URL()); err == nil {
				t.Error("still answers after Stop")
			}
		})
	}
}

func TestStopLeavesAnotherProcessAlone(t *testing.T) {
	other := shell(t, "while :; do sleep 0.05; done")
	stale := &Process{PID: other.PID, Command: []string{"minio", "server"}}
	if running, err := stale.Running(); running || err != nil {
		t.Errorf("Running = %v, %v for a process id that is another program's now", running, err)
	}
	if err := stale.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if running, err := other.Running(); !running || err != nil {
		t.Errorf("the other program runs = %v, %v", running, err)
	}
}

func TestStopOfWhatEnded(t *testing.T) {
	p := shell(t, "exit 0")
	<-p.exited
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStopByForce(t *testing.T) {
	ready := filepath.Join(t.TempDir(), "ready")
	if err := syscall.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	p := shell(t, "trap '' TERM; echo > "+ready+"; while :; do sleep 0.05; done")
	if _, err := os.ReadFile(ready); err != nil { // returns when the trap is set
		t.Fatal(err)
	}
	if err := syscall.Kill(p.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if gone, err := p.gone(t.Context(), 100*time.Millisecond); gone || err != nil {
		t.Fatalf("gone = %v, %v on a signal that it ignores", gone, err)
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if gone, err := p.gone(t.Context(), stopWithin); !gone || err != nil {
		t.Fatalf("gone = %v, %v after SIGKILL", gone, err)
	}
}

// A port that a killed server held is free once Stop returns, also for a Stop that
// is not by the parent.
func TestStopFreesThePort(t *testing.T) {
	o := options(t)
	p, err := Dynalite.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		read := &Process{PID: p.PID, Command: p.Command}
		if err := read.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		o.Port = p.Port
		if p, err = Dynalite.Start(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Dynalite outlives clients that go away in the middle of a request, as one does that is killed.
func TestDynaliteOutlivesItsClients(t *testing.T) {
	o := options(t)
	p, err := Dynalite.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		connection, err := net.Dial("tcp", address(p.Port))
		if err != nil {
			t.Fatal(err)
		}
		// "100 Continue" says that the server waits for the body.
		fmt.Fprint(connection, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n{")
		if _, err := connection.Read(make([]byte, 25)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(connection.(*net.TCPConn).SetLinger(0), connection.Close()); err != nil { // a reset
			t.Fatal(err)
		}
	}
	deadline := time.Now().Add(readyWithin)
	for text := []byte(nil); bytes.Count(text, []byte("went away")) < 3; time.Sleep(checkEvery) {
		if text, err = os.ReadFile(o.Log); err != nil || time.Now().After(deadline) {
			t.Fatalf("the log does not tell of the clients (%v):\n%s", err, text)
		}
		if running, err := p.Running(); !running || err != nil {
			t.Fatalf("Running = %v, %v\n%s", running, err, text)
		}
	}
	if !Dynalite.answers(t.Context(), p.URL()) {
		t.Error("does not answer any more")
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// Nothing else that goes wrong in dynalite is passed over.
func TestOtherFaultsEndIt(t *testing.T) {
	node, err := exec.LookPath("node")
	if err != nil {
		t.Fatal(err)
	}
	for fault, survives := range map[string]bool{
		"Object.assign(new Error('aborted'), {code: 'ECONNRESET'})":     true,
		"Object.assign(new Error('aborted'), {code: 'EIO'})":            false,
		"Object.assign(new Error('read failed'), {code: 'ECONNRESET'})": false,
		"new TypeError('a mistake')":                                    false,
		"null":                                                          false,
	} {
		script := "setImmediate(() => console.log('goes on')); throw " + fault
		cmd := exec.Command(node, "--require", "./survive.js", "--eval", script)
		said, err := cmd.CombinedOutput()
		if survived := err == nil && strings.Contains(string(said), "goes on"); survived != survives {
			t.Errorf("%s: survived = %v (%v):\n%s", fault, survived, err, said)
		}
	}
}

func TestStartFails(t *testing.T) {
	t.Run("it ends", func(t *testing.T) {
		_, err := script("echo no such disk; exit 1").Start(t.Context(), options(t))
		if err == nil || !strings.Contains(err.Error(), "no such disk") {
			t.Errorf("error %v does not say what the server said", err)
		}
	})
	t.Run("the caller gives up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		o := options(t)
		var started *Process
		o.Started = func(p *Process) error { started = p; cancel(); return nil }
		if _, err := script("while :; do sleep 0.05; done").Start(ctx, o); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		if running, err := started.Running(); running || err != nil {
			t.Errorf("Running = %v, %v after a start that failed", running, err)
		}
	})
	t.Run("it cannot be remembered", func(t *testing.T) {
		o := options(t)
		fault := errors.New("disk full")
		var started *Process
		o.Started = func(p *Process) error { started = p; return fault }
		if _, err := script("while :; do sleep 0.05; done").Start(t.Context(), o); !errors.Is(err, fault) {
			t.Errorf("error %v, want %v", err, fault)
		}
		if running, err := started.Running(); running || err != nil {
			t.Errorf("Running = %v, %v after a start that failed", running, err)
		}
	})
	t.Run("the port is taken", func(t *testing.T) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		o := options(t)
		o.Port = listener.Addr().(*net.TCPAddr).Port
		if _, err := script("exit 0").Start(t.Context(), o); !errors.Is(err, ErrPortTaken) {
			t.Errorf("error %v, want ErrPortTaken", err)
		}
	})
}

func TestDetachedIsASessionOfItsOwn(t *testing.T) {
	p := &Process{Command: []string{"sh", "-c", "while :; do sleep 0.05; done"}, exited: make(chan struct{})}
	if err := p.run(nil, Options{Log: filepath.Join(t.TempDir(), "log"), Detached: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-p.PID, syscall.SIGKILL); <-p.exited })
	group, err := syscall.Getpgid(p.PID)
	if err != nil {
		t.Fatal(err)
	}
	if group != p.PID {
		t.Errorf("process %d is in group %d: Ctrl-C on the caller would end it", p.PID, group)
	}
}

func TestCommandNamesWhatToInstall(t *testing.T) {
	err := command(t.Context(), t.Output(), t.TempDir(), nil, "the tool from its site", "no-such-tool-anywhere", "x")
	if !errors.Is(err, exec.ErrNotFound) || !strings.Contains(err.Error(), "install the tool from its site") {
		t.Errorf("error %v does not say what to install", err)
	}
}
