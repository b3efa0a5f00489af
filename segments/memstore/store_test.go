package memstore_test

import (
	"testing"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) segments.Store { return memstore.New() })
}
