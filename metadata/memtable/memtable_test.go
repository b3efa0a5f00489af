package memtable_test

import (
	"testing"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/metadata/tabletest"
)

func TestTable(t *testing.T) {
	tabletest.Run(t, func(*testing.T) metadata.Table { return memtable.New() })
}
