package gateway

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/memstore"
)

// TestRefusedAppendsAreNotAwaited has appends refused before they are gathered: no later segment waits for bytes
// that will not come.
func TestRefusedAppendsAreNotAwaited(t *testing.T) {
	for name, refused := range map[string]func(*testing.T, *runningGateway, *shutStore) error{
		"its caller gave up": func(t *testing.T, g *runningGateway, _ *shutStore) error {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			return appendOne(ctx, g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED)
		},
		"the bucket is out": func(t *testing.T, g *runningGateway, store *shutStore) error {
			store.shut.Store(true)
			defer store.shut.Store(false)
			waits, cancel := context.WithTimeout(t.Context(), 2*stalled)
			defer cancel()
			_ = appendOne(waits, g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED)
			return appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &shutStore{Store: memstore.New()}
				g := runGateway(t, Config{Exclusive: true}, Dependencies{Store: store, Table: memtable.New()})
				defer func() {
					g.leave()
					<-g.ended
				}()
				g.create(t, "a", 1, nil)
				for range 200 { // more bytes than the segment below has
					if err := refused(t, g, store); err == nil {
						t.Fatal("the append was not refused")
					}
				}
				if bytes := g.tenure.Load().intake.arrived.Load(); bytes != 0 {
					t.Errorf("%d bytes are waited for", bytes)
				}
				time.Sleep(time.Minute) // all that was taken has landed
				for range 2 {           // the second one a pace after the first
					began := time.Now()
					if err := appendOne(t.Context(), g.testGateway, 0, varvev1.Acks_ACKS_COMMITTED); err != nil {
						t.Fatal(err)
					}
					if took := time.Since(began); took >= stretch {
						t.Errorf("an append took %s", took)
					}
				}
			})
		})
	}
}
