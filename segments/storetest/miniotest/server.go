// Package miniotest gives the tests of a package a real MinIO server: one process a test binary,
// on a free loopback port, with its data in a temporary folder.
//
//	func TestMain(m *testing.M) { os.Exit(miniotest.Run(m)) }
package miniotest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varvelog/varve/localstack/servers"
)

// startLimit covers a cold build of MinIO on a small machine.
const startLimit = 20 * time.Minute

// Server is a running MinIO server.
type Server struct {
	Endpoint  string // host:port; it speaks plain HTTP
	AccessKey string
	SecretKey string
	Region    string

	process *servers.Process
	folder  string
}

var shared struct {
	sync.Mutex
	running bool // Run is active
	server  *Server
	err     error
}

// Run runs the tests of a package and stops the server afterwards, if any test
// started it. It returns the exit code.
func Run(m *testing.M) int {
	shared.Lock()
	shared.running = true
	shared.Unlock()
	code := m.Run()
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		if err := shared.server.stop(); err != nil {
			fmt.Fprintln(os.Stderr, "miniotest:", err)
			return max(code, 1)
		}
	}
	return code
}

// Start returns the server of this test binary, which the first call starts. It
// builds MinIO, once for each user, if it is not in the user's cache folder.
func Start(t testing.TB) *Server {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if !shared.running {
		t.Fatal("miniotest: TestMain must call miniotest.Run, so that the server is stopped")
	}
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = start()
	}
	if shared.err != nil {
		t.Fatalf("miniotest: %v", shared.err)
	}
	return shared.server
}

// Bucket makes a bucket for one test and returns its name.
func (s *Server) Bucket(t testing.TB) string {
	t.Helper()
	client, err := minio.New(s.Endpoint, &minio.Options{
		Creds: credentials.NewStaticV4(s.AccessKey, s.SecretKey, ""), Region: s.Region,
	})
	if err != nil {
		t.Fatalf("miniotest: %v", err)
	}
	name := "test-" + strings.ToLower(rand.Text())
	if err := client.MakeBucket(t.Context(), name, minio.MakeBucketOptions{Region: s.Region}); err != nil {
		t.Fatalf("miniotest: make bucket: %v", err)
	}
	return name
}

func start() (*Server, error) {
	folder, err := os.MkdirTemp("", "varve-miniotest-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	process, err := servers.MinIO.Start(ctx, servers.Options{
		Data: filepath.Join(folder, "data"), Log: filepath.Join(folder, "log"), Notes: os.Stderr,
	})
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	return &Server{
		Endpoint:  strings.TrimPrefix(process.URL(), "http://"),
		AccessKey: servers.AccessKey, SecretKey: servers.SecretKey, Region: "us-east-1",
		process: process, folder: folder,
	}, nil
}

func (s *Server) stop() error {
	return errors.Join(s.process.Stop(context.Background()), os.RemoveAll(s.folder))
}
