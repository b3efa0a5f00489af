package bolttable_test

import (
	"path/filepath"
	"testing"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/metadata/tabletest"
)

func TestTable(t *testing.T) {
	tabletest.Run(t, func(t *testing.T) metadata.Table {
		return open(t, filepath.Join(t.TempDir(), "table.db"), bolttable.Options{NoSync: true})
	})
}

// open opens a table for as long as the test runs.
func open(t testing.TB, path string, o bolttable.Options) *bolttable.Table {
	t.Helper()
	table, err := bolttable.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	})
	return table
}

func BenchmarkTable(b *testing.B) {
	tabletest.Benchmark(b, func(b *testing.B) metadata.Table {
		return open(b, filepath.Join(b.TempDir(), "table.db"), bolttable.Options{})
	})
}
