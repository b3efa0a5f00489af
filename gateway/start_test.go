package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments/memstore"
)

// TestStartWaits: a start goes on when the table does not answer for a while, and what an earlier try of it left in the
// table is closed; without time for that it ends with what is wrong.
func TestStartWaits(t *testing.T) {
	for _, patient := range []bool{true, false} {
		t.Run(fmt.Sprintf("patient %v", patient), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := &hookedTable{Table: memtable.New()}
				began := time.Now()
				table.set(func(op metadata.Op, _ metadata.Key) error {
					if op == metadata.OpRange && time.Since(began) < 20*time.Second { // so that its row is there before it fails
						return metadata.ErrUnavailable
					}
					return nil
				})
				config := Config{PeerAddress: "127.0.0.1:1"}
				if patient {
					config.StartTime = time.Minute
				}
				g, err := New(config, Dependencies{Store: memstore.New(), Table: table, Log: slog.New(slog.DiscardHandler)})
				if err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ended := make(chan error, 1)
				started := make(chan struct{})
				go func() { ended <- g.Run(ctx, func() { close(started) }) }()
				select {
				case <-started:
				case err := <-ended:
					if patient || !errors.Is(err, metadata.ErrUnavailable) {
						t.Fatal(err)
					}
					return
				}
				if !patient {
					t.Error("it started")
				}
				<-g.caughtUp
				rows, err := metadata.ListGateways(t.Context(), table, metadata.Strong, nil)
				if err != nil {
					t.Fatal(err)
				}
				for _, row := range rows {
					if (row.ID == g.ID()) != (row.State == metadata.GatewayLive) || row.State == metadata.GatewaySealed {
						t.Errorf("%s is %s, this gateway is %s", row.ID, row.State, g.ID())
					}
				}
				if len(rows) < 2 {
					t.Errorf("%d rows: nothing was left by an earlier try, so this shows nothing", len(rows))
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
