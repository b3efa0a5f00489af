// Package dynalitetest gives tests a real DynamoDB server, dynalite: one process for all
// tests of a test binary, each with a table of its own. The server is installed into
// the user's cache folder when it is missing; where that fails the tests fail.
package dynalitetest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/varvelog/varve/localstack/servers"
)

// What Start gives its server out for. Dynalite takes any region and credentials.
const (
	Region    = "local"
	AccessKey = servers.AccessKey
	SecretKey = servers.SecretKey
)

var (
	folder string // set by Main
	server atomic.Pointer[servers.Process]
	start  = sync.OnceValue(startServer)
	tables atomic.Int64
)

// Main runs the tests of a package and ends the server that they used:
//
//	func TestMain(m *testing.M) { dynalitetest.Main(m) }
func Main(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	var err error
	if folder, err = os.MkdirTemp("", "dynalitetest-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(folder)
	code = m.Run()
	if p := server.Load(); p != nil {
		if err := p.Stop(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

func startServer() error {
	p, err := servers.Dynalite.Start(context.Background(), servers.Options{
		Data:  filepath.Join(folder, "data"),
		Log:   filepath.Join(folder, "log"),
		Notes: io.Discard,
	})
	if err == nil {
		server.Store(p)
	}
	return err
}

// Start returns the server's URL. The first call starts it.
func Start(t testing.TB) (endpoint string) {
	t.Helper()
	if folder == "" {
		t.Fatal("dynalitetest: TestMain has to call dynalitetest.Main")
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	return server.Load().URL()
}

// NewTableName returns a name that no other test of the binary uses.
func NewTableName() string { return fmt.Sprintf("varve-%d", tables.Add(1)) }
