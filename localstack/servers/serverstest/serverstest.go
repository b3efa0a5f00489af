// Package serverstest runs the servers for the length of a test.
package serverstest

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/varvelog/varve/localstack/servers"
)

// Start runs a server of its own for t, empty, on a free port, and returns its URL.
// It stops when t ends. MinIO takes servers.AccessKey and servers.SecretKey.
func Start(t testing.TB, kind servers.Kind) (url string) {
	t.Helper()
	folder := t.TempDir()
	p, err := kind.Start(t.Context(), servers.Options{
		Data:  filepath.Join(folder, "data"),
		Log:   filepath.Join(folder, "log"),
		Notes: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p.URL()
}
