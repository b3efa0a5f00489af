package gateway

import (
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/faultfs"
	"github.com/varvelog/varve/segments/memstore"
)

// TestBrokenDiskMakesNoSegments refuses buffered appends, since the disk takes none, among committed ones: those are one
// segment a flush interval all the same, not one for each refusal. Once the disk is mended it takes them again.
func TestBrokenDiskMakesNoSegments(t *testing.T) {
	for _, kind := range []faultfs.Kind{faultfs.Create, faultfs.Write} {
		t.Run(string(kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				disk := faultfs.New()
				buffers := openBuffers(t, disk)
				defer buffers.Close()
				g := runGateway(t, Config{Exclusive: true, FlushInterval: 10 * time.Second},
					Dependencies{Store: memstore.New(), Table: memtable.New(), Buffers: buffers})
				defer func() {
					g.leave()
					<-g.ended
				}()
				g.create(t, "a", 1, nil)
				if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); err != nil {
					t.Fatal(err)
				}
				disk.Intercept(func(op faultfs.Op) *faultfs.Fault {
					if op.Kind == kind {
						return &faultfs.Fault{Err: syscall.EIO}
					}
					return nil
				})
				number := func() uint64 {
					in := g.tenure.Load().intake
					in.mu.Lock()
					defer in.mu.Unlock()
					return in.number
				}
				before := number()
				var committed sync.WaitGroup
				for range 20 {
					committed.Go(func() {
						if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); err != nil {
							t.Error(err)
						}
					})
					synctest.Wait()
					if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_BUFFERED); !errors.Is(err, syscall.EIO) {
						t.Errorf("a buffered append to a broken disk: %v", err)
					}
				}
				committed.Wait()
				if n := number() - before; n > 2 {
					t.Errorf("%d segments for one flush interval", n)
				}
				disk.Intercept(nil)
				if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_BUFFERED); err != nil {
					t.Errorf("a buffered append to a disk that was mended: %v", err)
				}
			})
		})
	}
}
