package gateway

import (
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
)

// TestEstateIsSettledSoon kills one of three gateways with a thousand partitions each, at a table that takes 5 ms a call: soon
// after the others have them, nobody keeps its journal, and the table does not either.
func TestEstateIsSettledSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const parts = 3000
		c := newTestCluster(t)
		c.log = slog.New(slog.DiscardHandler)
		c.config.FlushInterval, c.config.LeaseTime, c.config.DrainTime = 250*time.Millisecond, 5*time.Second, 25*time.Second
		first, second, third := c.start(), c.start(), c.start()
		first.create(t, "a", parts, nil)
		c.settle()
		var all sync.WaitGroup
		for p := range int32(parts) {
			all.Go(func() {
				if _, err := first.append("a", p, fmt.Sprint(p)); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		for _, m := range []*member{first, second, third} {
			c.slow(m)
		}
		id, began := first.ID(), time.Now()
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			first.kill()
		}()
		kept := func() (rows int) {
			j, err := metadata.ReadJournal(t.Context(), c.d.Table, id)
			if err != nil {
				t.Fatal(err)
			}
			return len(j.Rows) + second.sealedJournals() + third.sealedJournals()
		}
		for kept() > 0 && time.Since(began) < time.Minute {
			time.Sleep(50 * time.Millisecond)
		}
		took := time.Since(began)
		t.Logf("settled after %v", took)
		if most := c.config.LeaseTime + 2500*time.Millisecond; took > most {
			t.Errorf("%d rows and journals are left, or were until %v after the kill", kept(), took)
		}
		<-gone
		second.table.clear()
		third.table.clear()
		second.drain()
		third.drain()
	})
}

// TestEstatesAreForgotten has the row of a gateway that was taken over from be removed: nothing of it is kept.
func TestEstatesAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newTestCluster(t)
		m := c.start()
		p := patrol{t: m.tenure.Load(), estates: map[metadata.GatewayID]*estate{"gone": {left: make(map[metadata.PartitionID]bool)}}}
		if _, err := p.inspect(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(p.estates) > 0 {
			t.Errorf("%d estates of gateways without a row are kept", len(p.estates))
		}
		m.drain()
	})
}
