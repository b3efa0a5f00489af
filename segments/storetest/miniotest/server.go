// Package miniotest runs a real MinIO server for tests: one process a test binary, on
// a free loopback port, with its data in a temporary folder.
//
//	func TestMain(m *testing.M) { os.Exit(miniotest.Run(m)) }
package miniotest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const (
	version = "v0.0.0-20260212201848-7aac2a2c5b7c"
	module  = "github.com/minio/minio@" + version

	// buildLimit covers a cold build on a small machine, startLimit a busy one.
	buildLimit = 20 * time.Minute
	startLimit = time.Minute
)

// Server is a running MinIO server.
type Server struct {
	Endpoint  string // host:port; it speaks plain HTTP
	AccessKey string
	SecretKey string
	Region    string

	process *exec.Cmd
	exited  chan struct{}
	output  lockedBuffer
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
	binary, err := find()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "varve-miniotest-")
	if err != nil {
		return nil, err
	}
	endpoint, err := freePort()
	if err != nil {
		return nil, err
	}
	s := &Server{
		Endpoint: endpoint, AccessKey: "varvetest", SecretKey: rand.Text(), Region: "us-east-1",
		exited: make(chan struct{}), folder: folder,
	}
	s.process = exec.Command(binary, "server", "--quiet", "--address", endpoint, filepath.Join(folder, "data"))
	s.process.Env = append(os.Environ(),
		"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CI_CD=on", // CI_CD: a root disk will do
		"MINIO_ROOT_USER="+s.AccessKey, "MINIO_ROOT_PASSWORD="+s.SecretKey,
		"HOME="+folder)
	s.process.Stdout, s.process.Stderr = &s.output, &s.output
	dieWithParent(s.process)
	if err := s.launch(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(folder))
	}
	if err := s.awaitReady(); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

// launch starts the process from a thread that lives as long as this one: the kernel
// ties the child to the thread that made it, and not to the process.
func (s *Server) launch() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := s.process.Start()
		started <- err
		if err == nil {
			// How it ended shows in its output.
			_ = s.process.Wait()
			close(s.exited)
		}
	}()
	return <-started
}

func (s *Server) awaitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	for tick := time.NewTicker(20 * time.Millisecond); ; {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Endpoint+"/minio/health/ready", nil)
		if err != nil {
			return err
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-s.exited:
			return fmt.Errorf("MinIO ended at its start:\n%s", s.output.String())
		case <-ctx.Done():
			return fmt.Errorf("MinIO was not ready within %v:\n%s", startLimit, s.output.String())
		}
	}
}

func (s *Server) stop() error {
	// It may have ended by itself.
	_ = s.process.Process.Kill()
	<-s.exited
	return os.RemoveAll(s.folder)
}

// find returns the binary in the user's cache folder, and builds it if absent.
func find() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	folder := filepath.Join(cache, "varve", "minio-"+version)
	binary := filepath.Join(folder, "minio")
	if _, err := os.Stat(binary); err == nil {
		return binary, nil
	}
	return binary, build(folder)
}

// build builds into a folder of its own and renames the result, so that two test
// binaries that build at once don't run a half-written file.
func build(folder string) error {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	work, err := os.MkdirTemp(folder, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	ctx, cancel := context.WithTimeout(context.Background(), buildLimit)
	defer cancel()
	fmt.Fprintf(os.Stderr, "miniotest: building %s, which takes minutes, once\n", module)
	install := exec.CommandContext(ctx, "go", "install", module)
	install.Dir = work // outside any module
	install.Env = append(os.Environ(), "GOBIN="+work, "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	if output, err := install.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot build %s: %w\n%s", module, err, output)
	}
	return os.Rename(filepath.Join(work, "minio"), filepath.Join(folder, "minio"))
}

func freePort() (string, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

// lockedBuffer keeps what the server prints, which is read while it prints on.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
