package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// startLimit is how long a new gateway may take to its first acked append: what this shows.
	startLimit = 2 * time.Second
	// startPatience is for the run to go on and say so when it takes longer, stopPatience for a drain.
	startPatience, stopPatience = 30 * time.Second, 40 * time.Second
)

// gateway is a varve serve behind the balancer.
type gateway struct {
	number  int
	address string
	cmd     *exec.Cmd
	log     *os.File
	backend *backend
	ended   chan error
}

// startGateway starts one and returns when the first append through it was acked, with the time that took from the start
// of its process.
func (d *demo) startGateway(ctx context.Context, number int, address string) (g *gateway, took time.Duration, err error) {
	if address == "" {
		if address, err = freeAddress(); err != nil {
			return nil, 0, err
		}
	}
	g = &gateway{number: number, address: address, ended: make(chan error, 1)}
	path := filepath.Join(d.backends.folder, fmt.Sprintf("gateway-%d", number))
	if g.log, err = os.OpenFile(path+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, 0, err
	}
	g.cmd = exec.Command(d.options.binary, append([]string{"serve", "--listen", address, "--data", path}, d.backends.args()...)...)
	g.cmd.Stdout, g.cmd.Stderr = g.log, g.log
	for _, v := range os.Environ() { // settings from outside would be for another cluster
		if !strings.HasPrefix(v, "VARVE_") && !strings.HasPrefix(v, "AWS_") {
			g.cmd.Env = append(g.cmd.Env, v)
		}
	}
	g.cmd.Env = append(g.cmd.Env, d.backends.env()...)
	// A process group of its own: Ctrl-C is for the demo, which then stops the gateways in order.
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	began := time.Now()
	if err := g.cmd.Start(); err != nil {
		return nil, 0, errors.Join(err, g.log.Close())
	}
	ended, cmd := g.ended, g.cmd
	go func() { ended <- cmd.Wait() }()
	g.backend = d.balancer.add(address)
	d.gateways = append(d.gateways, g)
	select {
	case <-g.backend.acked:
		return g, time.Since(began), nil
	case err := <-g.ended:
		g.ended <- err
		return nil, 0, fmt.Errorf("gateway %d ended instead of serving: %v; %s says why", number, err, g.log.Name())
	case <-time.After(startPatience):
		return nil, 0, fmt.Errorf("gateway %d takes no appends after %s; %s may say why", number, startPatience, g.log.Name())
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
}

// stopGateway ends one in order: the balancer finds out by itself.
func (d *demo) stopGateway(g *gateway) error {
	for i, other := range d.gateways {
		if other == g {
			d.gateways = append(d.gateways[:i:i], d.gateways[i+1:]...)
			break
		}
	}
	// It may have ended by itself, which the status tells.
	_ = g.cmd.Process.Signal(syscall.SIGTERM)
	var err error
	select {
	case err = <-g.ended:
	case <-time.After(stopPatience):
		err = errors.Join(fmt.Errorf("it does not end within %s", stopPatience), g.cmd.Process.Kill(), <-g.ended)
	}
	d.balancer.remove(g.backend)
	if err != nil {
		err = fmt.Errorf("stopping gateway %d: %w; %s may say why", g.number, err, g.log.Name())
	}
	return errors.Join(err, g.log.Close())
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
