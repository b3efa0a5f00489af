package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// startPatience is how long a gateway of our own may take to serve, stopPatience to drain.
const (
	startPatience = 30 * time.Second
	stopPatience  = 40 * time.Second
)

// useServer returns the URL of a gateway that serves, and what ends it if it is our own.
func useServer(ctx context.Context, binary string) (url string, stop func() error, err error) {
	wanted := cmp.Or(os.Getenv("VARVE_SERVER"), "http://127.0.0.1:7480")
	for _, u := range strings.Split(wanted, ",") {
		if ready(ctx, u) {
			fmt.Printf("Using the gateway at %s.\n", u)
			return wanted, func() error { return nil }, nil
		}
	}
	fmt.Printf("No gateway answers at %s: starting one for this tour.\n", wanted)
	return startServer(ctx, binary)
}

func ready(ctx context.Context, url string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(url, "/")+"/readyz", nil)
	if err != nil {
		return false
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// startServer starts a gateway on a free port, with a folder that goes with it.
func startServer(ctx context.Context, binary string) (url string, stop func() error, err error) {
	address, err := freeAddress()
	if err != nil {
		return "", nil, err
	}
	folder, err := os.MkdirTemp("", "varve-demo-")
	if err != nil {
		return "", nil, err
	}
	log, err := os.Create(filepath.Join(folder, "serve.log"))
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(folder))
	}
	serve := exec.Command(binary, "serve", "--listen", address, "--data", filepath.Join(folder, "data"))
	serve.Stdout, serve.Stderr = log, log
	// A process group of its own: Ctrl-C is for the tour, which then stops the gateway in order.
	serve.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := serve.Start(); err != nil {
		return "", nil, errors.Join(err, log.Close(), os.RemoveAll(folder))
	}
	ended := make(chan error, 1)
	go func() { ended <- serve.Wait() }()
	stop = func() error { return stopServer(serve, ended, log, folder) }
	url = "http://" + address
	if err := awaitReady(ctx, url, ended); err != nil {
		text, _ := os.ReadFile(log.Name()) // What it said, if anything.
		return "", nil, errors.Join(fmt.Errorf("varve serve: %w\n%s", err, text), stop())
	}
	return url, stop, nil
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

func awaitReady(ctx context.Context, url string, ended chan error) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ready(ctx, url) {
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("ended before it served: %w", cmp.Or(err, errors.New("exit status 0")))
		case <-ctx.Done():
			return fmt.Errorf("does not serve: %w", ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// stopServer drains the gateway and removes its folder.
func stopServer(serve *exec.Cmd, ended chan error, log *os.File, folder string) error {
	// It may have ended by itself; Wait tells.
	_ = serve.Process.Signal(syscall.SIGTERM)
	var err error
	select {
	case err = <-ended:
	case <-time.After(stopPatience):
		err = errors.Join(fmt.Errorf("the gateway did not stop within %v", stopPatience), serve.Process.Kill(), <-ended)
	}
	if err != nil {
		err = fmt.Errorf("stopping the gateway: %w", err)
	}
	return errors.Join(err, log.Close(), os.RemoveAll(folder))
}
