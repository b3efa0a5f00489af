package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

var (
	seedFlag   = flag.Uint64("seed", 0, "what chance begins with; 0: something else each time")
	killsFlag  = flag.Int("kills", 50, "how often TestKill kills")
	idleFlag   = flag.Duration("idle", 20*time.Second, "how long TestIdle watches")
	chaosFlag  = flag.Duration("chaos", time.Minute, "how long TestChaos disturbs")
	fleetFlag  = flag.Int("gateways", 5, "how many gateways TestChaos has")
	binaryFlag = flag.String("binary", "", "absolute path of the varve to test; empty: built for this run")
)

// varve is the path of the binary.
var varve string

func TestMain(m *testing.M) {
	flag.Parse()
	// Four at a time: what runs here mostly waits.
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err) // the flag is Go's own
	}
	status, err := runAll(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// runAll builds the binary, runs the tests, and stops the servers that some of them needed.
func runAll(m *testing.M) (status int, err error) {
	folder, err := os.MkdirTemp("", "varve-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(folder)
	if varve = *binaryFlag; varve == "" {
		varve = filepath.Join(folder, "varve")
		build := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", varve, "github.com/varvelog/varve/cmd/varve")
		if out, err := build.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("building varve: %w\n%s", err, out)
		}
	}
	shared.folder = folder
	defer func() {
		if failed := shared.stop(context.Background()); failed != nil {
			err = failed
		}
	}()
	return m.Run(), nil
}

// newRandom returns chance that hangs on the seed, which it logs, and the test's name.
func newRandom(t *testing.T) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("replay with -run '%s' -seed %d", t.Name(), seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// fork returns chance for a goroutine of its own.
func fork(r *rand.Rand) *rand.Rand { return rand.New(rand.NewPCG(r.Uint64(), r.Uint64())) }
