package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a server's program, with whatever it starts.
type process struct {
	cmd    *exec.Cmd
	said   *bytes.Buffer
	ended  chan struct{}
	status error // once ended is closed
	end    os.Signal
}

// startProcess runs a program until stop is called.
func startProcess(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, said: &bytes.Buffer{}, ended: make(chan struct{}), end: syscall.SIGTERM}
	cmd.Stdout, cmd.Stderr = p.said, p.said
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true // Ctrl-C ends it through this program
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.status = cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

func (p *process) close() error {
	// It fails when the process has ended already.
	_ = p.cmd.Process.Signal(p.end)
	select {
	case <-p.ended:
		return nil
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.ended
		return fmt.Errorf("%s did not end within 30 s and was killed", p.cmd.Path)
	}
}

// ready tries until a check succeeds, which it does within half a minute, or the process ends.
func (p *process) ready(ctx context.Context, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %v\n%s", p.cmd.Path, p.status, p.said)
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%s is not ready: %w", p.cmd.Path, err), p.close())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// cpu adds up the process and all below it, those that have ended included, by what Linux tells.
func (p *process) cpu() (time.Duration, error) {
	below := map[int][]int{}
	ticks := map[int]int64{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		_, rest, ok := strings.Cut(string(data), ") ")
		f := strings.Fields(rest)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if !ok || len(f) < 15 {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		below[parent] = append(below[parent], pid)
		for _, field := range f[11:15] { // utime, stime, and those of children that were waited for
			n, _ := strconv.ParseInt(field, 10, 64)
			ticks[pid] += n
		}
	}
	var sum int64
	list := []int{p.cmd.Process.Pid}
	for len(list) > 0 {
		sum += ticks[list[0]]
		list = append(list[1:], below[list[0]]...)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 on every Linux
	return time.Duration(sum) * tick, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// unprivileged has a command run as a user, if this is root: some servers refuse to be root's.
func unprivileged(cmd *exec.Cmd, name, dir string) error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return fmt.Errorf("%w: there is no user %s to run it as", errAbsent, name)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	cmd.Dir = dir
	return os.Chown(dir, uid, gid)
}

// firstLine is what a program says of its version.
func firstLine(command string, args ...string) string {
	out, err := exec.Command(command, args...).Output()
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimSpace(line)
}
