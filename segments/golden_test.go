package segments_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
)

var update = flag.Bool("update", false, "write golden files of the current version")

// Golden files are kept for ever: of each version some, each with what is read from
// it. Those of the current version are also what is written today.
func TestGolden(t *testing.T) {
	for name, batches := range samples() {
		path := filepath.Join("testdata", "v1-"+name+".seg")
		object := buildSample(t, batches)
		written := segments.Bytes(object)
		if *update {
			writeGolden(t, path, written)
			writeGolden(t, path+".txt", []byte(dump(&object.Directory)))
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(golden, written) {
			t.Errorf("%s: %d bytes written now differ from its %d", path, len(written), len(golden))
		}
	}
	paths, err := filepath.Glob(filepath.Join("testdata", "*.seg"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("golden files: %v, %v", paths, err)
	}
	for _, path := range paths {
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(path + ".txt")
		if err != nil {
			t.Fatal(err)
		}
		d, err := segments.ParseDirectory(golden)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if diff := cmp.Diff(string(want), dump(d)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func writeGolden(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
