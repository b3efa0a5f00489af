package servers

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

func TestInstallOnce(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "tool-1.0")
	program := filepath.Join(folder, "tool")
	present := func() bool { _, err := os.Stat(program); return err == nil }
	var filled atomic.Int32
	fill := func(folder string) error {
		filled.Add(1)
		if present() {
			t.Error("the program is there before it is complete")
		}
		return os.WriteFile(filepath.Join(folder, "tool"), nil, 0o755)
	}
	var group errgroup.Group
	for range 8 {
		group.Go(func() error { return install(t.Context(), folder, present, fill) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	if filled.Load() != 1 || !present() {
		t.Errorf("filled %d times, present = %v", filled.Load(), present())
	}
}

func TestInstallFailsWhole(t *testing.T) {
	parent := t.TempDir()
	fault := errors.New("network unreachable")
	err := install(t.Context(), filepath.Join(parent, "tool"), func() bool { return false }, func(folder string) error {
		return errors.Join(os.WriteFile(filepath.Join(folder, "half"), nil, 0o644), fault)
	})
	if !errors.Is(err, fault) {
		t.Fatalf("error %v, want %v", err, fault)
	}
	entries, err := os.ReadDir(parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			t.Errorf("%s is left over", entry.Name())
		}
	}
}

func TestInstallReplacesWhatIsIncomplete(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "tool")
	if err := os.MkdirAll(filepath.Join(folder, "stale"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := install(t.Context(), folder, func() bool { return false }, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(folder, "stale")); err == nil {
		t.Error("the incomplete folder was kept")
	}
}

func TestPackageFiles(t *testing.T) {
	var manifest struct{ Dependencies map[string]string }
	if err := json.Unmarshal(packageJSON, &manifest); err != nil {
		t.Fatal(err)
	}
	if got := manifest.Dependencies["dynalite"]; got != DynaliteVersion {
		t.Errorf("package.json asks for dynalite %q, DynaliteVersion is %q", got, DynaliteVersion)
	}
	if bytes.Contains(packageLock, []byte(`"resolved"`)) {
		t.Error("package-lock.json names a registry: write it with npm install --omit-lockfile-registry-resolved")
	}
}
