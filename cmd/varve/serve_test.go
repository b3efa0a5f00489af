package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/varvelog/varve/client"
)

// serveFlags are the options after a command line.
func serveFlags(t *testing.T, args ...string) *serveOptions {
	t.Helper()
	o := &serveOptions{}
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.register(f)
	if err := f.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o
}

func TestServeDefaults(t *testing.T) {
	dir := t.TempDir()
	p, err := serveFlags(t, "--data", dir).plan(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if p.segments.path != filepath.Join(dir, "segments") || p.metadata.path != filepath.Join(dir, "metadata.db") || !p.config.Exclusive {
		t.Errorf("%+v", p)
	}
	if c := p.config; c.FlushInterval != localPace || c.CycleInterval >= 0 || c.AutoCreate != 1 || c.Address != "127.0.0.1:7480" {
		t.Errorf("%+v", c)
	}
	p, err = serveFlags(t, "--segments", "s3://b", "--metadata", "dynamodb://t", "--advertise", "host:1", "--zone", "z").plan(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if c := p.config; c.FlushInterval != bucketPace || c.CycleInterval < 0 || c.Exclusive || c.PeerAddress != "host:1" || c.Zone != "z" {
		t.Errorf("%+v", c)
	}
}

func TestServeUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--listen", "0.0.0.0:7480"}, "--insecure"},
		{[]string{"--listen", ":7480"}, "--insecure"},
		{[]string{"--listen", "192.0.2.1:7480"}, "--insecure"},
		{[]string{"--listen", "example.org:7480"}, "--insecure"},
		{[]string{"--listen", "7480"}, "want host:port"},
		{[]string{"--peer-listen", "127.0.0.1:1"}, "give all of them the same --metadata dynamodb://"},
		{[]string{"--metadata", "dynamodb://t", "--peer-listen", "0.0.0.0:1"}, "could put the order of records in disorder"},
		{[]string{"--metadata", "dynamodb://t", "--advertise", "host"}, "--advertise \"host\": want host:port"},
		{[]string{"--debug-listen", "0.0.0.0:1", "--insecure"}, "only a loopback address"},
		{[]string{"--segments", "ftp://x"}, "--segments"},
		{[]string{"--metadata", "sqlite:///x"}, "--metadata"},
		{[]string{"--segments", "mem://"}, "use --metadata mem:// too"},
		{[]string{"--log-format", "xml"}, "text or json"},
		{[]string{"--log-level", "loud"}, "debug, info, warn or error"},
		{[]string{"--auto-create", "-1"}, "auto-create with -1 partitions"},
		{[]string{"--segment-bytes", "1"}, "segment size 1"},
		{[]string{"--flush-interval", "1h"}, "flush interval"},
		{[]string{"--lease-time", "1ms"}, "lease time"},
		{[]string{"--role", "king"}, "role \"king\": want all, gateway or compactor"},
		{[]string{"--role", "compactor"}, "nobody would take appends"},
		{[]string{"--merge-bytes", "100000000"}, "--merge-bytes, --merge-age: merged segments of 100000000 bytes"},
		{[]string{"--merge-age", "1ms"}, "small segments are merged after 1ms"},
		{[]string{"--segment-bytes", "1", "--log-level", "loud"}, "segment size 1"}, // all faults at once
	} {
		_, err := serveFlags(t, c.args...).plan(io.Discard)
		if err != nil && strings.Contains(err.Error(), "no address for peers") {
			t.Errorf("%v: a second line about the same: %v", c.args, err)
		}
		var usage *usageError
		if !errors.As(err, &usage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
	for _, address := range []string{"127.0.0.1:1", "127.1.2.3:1", "[::1]:1", "localhost:1"} {
		if err := checkListen("--listen", address, false); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
	if err := checkListen("--listen", "0.0.0.0:1", true); err != nil {
		t.Error(err)
	}
}

// A second gateway on a folder, or on a table in a file, is told what several gateways need, once.
func TestServeInUse(t *testing.T) {
	data := t.TempDir()
	g := startServing(t, "--data", data)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--data", data}, "--data: " + filepath.Join(data, "buffer") + " is in use by another process: stop that one; " + sharedTableAdvice},
		{[]string{"--metadata", "bolt://" + filepath.Join(data, "metadata.db")}, "the table " + filepath.Join(data, "metadata.db") + " is in use by another process: stop that one; " + sharedTableAdvice},
		{[]string{"--data", data, "--metadata", "dynamodb://t?region=r"}, "--data: " + filepath.Join(data, "buffer") + " is in use by another process: stop that one, or give this one a data folder of its own"},
	} {
		o := serveFlags(t, append([]string{"--listen", "127.0.0.1:0", "--data", t.TempDir()}, c.args...)...)
		if err := serve(t.Context(), o, t.Output(), nil); err == nil || err.Error() != c.want {
			t.Errorf("%v: %v, want %s", c.args, err, c.want)
		}
	}
	if err := g.stop(); err != nil {
		t.Error(err)
	}
}

// TestServeFromTheEnvironment runs the whole command line.
func TestServeFromTheEnvironment(t *testing.T) {
	var errs bytes.Buffer
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: &errs, now: time.Now,
		lookupEnv: func(name string) (string, bool) { return "0.0.0.0:1", name == "VARVE_LISTEN" }}
	if status := execute(t.Context(), []string{"serve", "--data", t.TempDir()}, a); status != statusUsage || !strings.Contains(errs.String(), "--insecure") {
		t.Errorf("status %d: %s", status, errs.String())
	}
}

// serving is a server in this process.
type serving struct {
	address string
	stop    func() error
}

func startServing(t *testing.T, args ...string) *serving {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	started, ended := make(chan net.Addr, 1), make(chan error, 1)
	o := serveFlags(t, append([]string{"--listen", "127.0.0.1:0"}, args...)...)
	logs := t.Output()
	go func() { ended <- serve(ctx, o, logs, func(a net.Addr) { started <- a }) }()
	r := &serving{stop: func() error {
		cancel()
		err := <-ended
		ended <- err // for whoever asks again
		return err
	}}
	t.Cleanup(func() { _ = r.stop() })
	select {
	case a := <-started:
		r.address = a.String()
	case err := <-ended:
		ended <- err
		t.Fatal(err)
	}
	return r
}

func (r *serving) client(t *testing.T) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Servers: []string{"http://" + r.address}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestServeStopAndServeAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := startServing(t, "--data", dir, "--debug-listen", "127.0.0.1:0")
	if _, _, err := first.client(t).CreateTopic(t.Context(), "kept", client.CreateTopicOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := serve(t.Context(), serveFlags(t, "--listen", "127.0.0.1:0", "--data", dir), t.Output(), nil); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a folder in use: %v", err)
	}
	if err := serve(t.Context(), serveFlags(t, "--listen", first.address, "--data", t.TempDir()), t.Output(), nil); err == nil || !strings.Contains(err.Error(), "--listen") {
		t.Errorf("an address in use: %v", err)
	}
	if err := first.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if _, err := http.Get("http://" + first.address + "/livez"); err == nil {
		t.Error("it still answers")
	}
	second := startServing(t, "--data", dir)
	if _, err := second.client(t).DescribeTopic(t.Context(), "kept"); err != nil {
		t.Error(err)
	}
	if err := second.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	checkModes(t, dir)
}

// checkModes sees that others can read nothing.
func checkModes(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestServeInMemoryLeavesNothing(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	dir := filepath.Join(t.TempDir(), "data")
	r := startServing(t, "--data", dir, "--segments", "mem://", "--metadata", "mem://")
	response, err := http.Get("http://" + r.address + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("status %d", response.StatusCode)
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the data folder was made: %v", err)
	}
}
