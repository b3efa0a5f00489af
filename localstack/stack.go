package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gofrs/flock"

	"github.com/varvelog/varve/localstack/servers"
)

// The order in which they start; they stop the other way round.
var kinds = []servers.Kind{servers.MinIO, servers.Dynalite}

// A stack is the state folder. For each server it holds NAME.json (the process, while
// it should be running), NAME.log and the folder NAME with its data.
type stack struct {
	folder string // absolute
	notes  io.Writer
	lock   *flock.Flock

	started []servers.Kind // by this command
}

// openStack takes the state folder for itself until close.
func openStack(folder string, notes io.Writer) (*stack, error) {
	if _, err := os.Stat(filepath.Dir(folder)); err != nil {
		return nil, fmt.Errorf("%w: run it at the top of the checkout, or give --state", err)
	}
	folder, err := filepath.Abs(folder)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, err
	}
	lock := flock.New(filepath.Join(folder, "lock"))
	switch locked, err := lock.TryLock(); {
	case err != nil:
		return nil, err
	case !locked:
		return nil, fmt.Errorf("another localstack command is at work in %s: wait for it to end", folder)
	}
	return &stack{folder: folder, notes: notes, lock: lock}, nil
}

func (s *stack) close() { s.lock.Unlock() }

func (s *stack) path(kind servers.Kind, suffix string) string {
	return filepath.Join(s.folder, kind.Name+suffix)
}

// start returns the running server, started now if it does not run already.
func (s *stack) start(ctx context.Context, kind servers.Kind, port int, portFlag string) (*servers.Process, error) {
	p, err := s.running(kind)
	if err != nil {
		return nil, err
	}
	if p != nil {
		if p.Port != port {
			return nil, fmt.Errorf("%s runs already, on port %d: stop it first (make localstack-down) to have it on %d", kind.Name, p.Port, port)
		}
		fmt.Fprintf(s.notes, "%-9s runs already at %s, process %d\n", kind.Name, p.URL(), p.PID)
		return p, nil
	}
	p, err = kind.Start(ctx, servers.Options{
		Port:     port,
		Data:     s.path(kind, ""),
		Log:      s.path(kind, ".log"),
		Detached: true,
		Started:  func(p *servers.Process) error { return s.remember(kind, p) },
		Notes:    s.notes,
	})
	switch {
	case errors.Is(err, servers.ErrPortTaken):
		return nil, fmt.Errorf("%w: end that program or give another %s", err, portFlag)
	case err != nil:
		return nil, errors.Join(err, s.forget(kind))
	}
	s.started = append(s.started, kind)
	fmt.Fprintf(s.notes, "%-9s started at %s, process %d\n", kind.Name, p.URL(), p.PID)
	return p, nil
}

// down stops the servers that up started, and nothing else.
func (s *stack) down(ctx context.Context) error { return s.stop(ctx, kinds) }

// undo stops what this very command started.
func (s *stack) undo(ctx context.Context) error { return s.stop(ctx, s.started) }

func (s *stack) stop(ctx context.Context, kinds []servers.Kind) error {
	var faults []error
	for _, kind := range slices.Backward(kinds) {
		p, err := s.running(kind)
		switch {
		case err != nil:
		case p == nil:
			fmt.Fprintf(s.notes, "%-9s does not run\n", kind.Name)
		default:
			if err = p.Stop(ctx); err == nil {
				fmt.Fprintf(s.notes, "%-9s stopped, process %d\n", kind.Name, p.PID)
			}
		}
		if err == nil {
			err = s.forget(kind)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

func (s *stack) status(out io.Writer) error {
	for _, kind := range kinds {
		p, err := s.running(kind)
		switch {
		case err != nil:
			return err
		case p == nil:
			fmt.Fprintf(out, "%-9s stopped\n", kind.Name)
		default:
			fmt.Fprintf(out, "%-9s running  %s  process %d\n", kind.Name, p.URL(), p.PID)
		}
	}
	return nil
}

// running returns the server that up started, or nil if it ended since.
func (s *stack) running(kind servers.Kind) (*servers.Process, error) {
	path := s.path(kind, ".json")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	p := new(servers.Process)
	if err := json.Unmarshal(text, p); err != nil || p.PID <= 0 {
		return nil, fmt.Errorf("%s does not name a process (%v): stop %s by hand and remove the file", path, err, kind.Name)
	}
	running, err := p.Running()
	if err != nil || !running {
		return nil, err
	}
	return p, nil
}

func (s *stack) remember(kind servers.Kind, p *servers.Process) error {
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := s.path(kind, ".json")
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (s *stack) forget(kind servers.Kind) error {
	if err := os.Remove(s.path(kind, ".json")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
