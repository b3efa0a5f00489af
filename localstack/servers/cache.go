package servers

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/gofrs/flock"
)

// MinIOVersion is a Go pseudo-version: MinIO ships source, neither binaries nor images.
const MinIOVersion = "v0.0.0-20260212201848-7aac2a2c5b7c"

// DynaliteVersion is the one that package.json asks for.
const DynaliteVersion = "4.0.0"

// The lock file names no registry, so that npm takes the one it is configured for.
var (
	//go:embed package.json
	packageJSON []byte
	//go:embed package-lock.json
	packageLock []byte
	//go:embed survive.js
	survive []byte
)

func fetchMinIO(ctx context.Context, notes io.Writer) ([]string, error) {
	binary, err := cached("minio-"+MinIOVersion, "minio")
	if err != nil {
		return nil, err
	}
	present := func() bool { info, err := os.Stat(binary); return err == nil && info.Mode().IsRegular() }
	err = install(ctx, filepath.Dir(binary), present, func(folder string) error {
		fmt.Fprintf(notes, "building MinIO %s; this takes about six minutes, once\n", MinIOVersion)
		return command(ctx, notes, folder, []string{"GOBIN=" + folder},
			"Go 1.26 or later", "go", "install", "github.com/minio/minio@"+MinIOVersion)
	})
	if err != nil {
		return nil, fmt.Errorf("getting MinIO: %w", err)
	}
	return []string{binary}, nil
}

func fetchDynalite(ctx context.Context, notes io.Writer) ([]string, error) {
	folder, err := cached("dynalite-" + DynaliteVersion)
	if err != nil {
		return nil, err
	}
	program := filepath.Join(folder, "node_modules", "dynalite", "cli.js")
	files := map[string][]byte{"package.json": packageJSON, "package-lock.json": packageLock, "survive.js": survive}
	present := func() bool {
		for name, content := range files {
			if b, err := os.ReadFile(filepath.Join(folder, name)); err != nil || !bytes.Equal(b, content) {
				return false
			}
		}
		_, err := os.Stat(program)
		return err == nil
	}
	err = install(ctx, folder, present, func(folder string) error {
		fmt.Fprintf(notes, "installing dynalite %s\n", DynaliteVersion)
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
				return err
			}
		}
		return command(ctx, notes, folder, nil,
			"Node.js 18 or later with npm", "npm", "ci", "--no-audit", "--no-fund", "--loglevel=error")
	})
	if err != nil {
		return nil, fmt.Errorf("getting dynalite: %w", err)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		return nil, fmt.Errorf("dynalite needs Node.js 18 or later on the PATH: %w", err)
	}
	return []string{node, "--require", filepath.Join(folder, "survive.js"), program}, nil
}

// cached returns a path below the folder in which programs are kept.
func cached(elem ...string) (string, error) {
	root, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder for the servers; set HOME or XDG_CACHE_HOME: %w", err)
	}
	return filepath.Join(append([]string{root, "varve"}, elem...)...), nil
}

// install fills folder by fill unless present says that it is complete. It
// appears whole or not at all, and of several processes that want it one works
// while the others wait.
func install(ctx context.Context, folder string, present func() bool, fill func(folder string) error) error {
	if present() {
		return nil
	}
	parent := filepath.Dir(folder)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	lock := flock.New(folder + ".lock")
	if _, err := lock.TryLockContext(ctx, 100*time.Millisecond); err != nil {
		return fmt.Errorf("waiting for %s: %w", lock.Path(), err)
	}
	defer lock.Unlock()
	if present() {
		return nil
	}
	fresh, err := os.MkdirTemp(parent, filepath.Base(folder)+".new-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(fresh)
	if err := fill(fresh); err != nil {
		return err
	}
	if err := os.RemoveAll(folder); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(fresh, folder)
}

// command runs a tool in folder and passes on what it says. need names what to
// install when there is no such tool.
func command(ctx context.Context, notes io.Writer, folder string, env []string, need, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("%w: install %s", err, need)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = folder, notes, notes
	cmd.Env = append(os.Environ(), env...)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, args[0], err)
	}
	return nil
}
