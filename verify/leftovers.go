package verify

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// checkLeftovers looks for journals that nobody needs: of gateways that are closed and that no lease
// names. Their opening row and their seal stay for ever, and are no garbage.
func (v *verifier) checkLeftovers(context.Context) error {
	if lost, _ := v.broken(); lost {
		return nil
	}
	for _, id := range sortedKeys(v.gateways) {
		j := v.journals[id]
		if v.gateways[id].State != metadata.GatewayClosed || v.needed[id] || j == nil || j.entries == 0 {
			continue
		}
		v.report(Finding{Kind: OrphanRow, Partition: NoPartition, Row: "journal/" + string(id), Stays: staysForCollector,
			Message: fmt.Sprintf("gateway %s is closed, and no lease names its journal, which has entries still and ends at number %d", id, j.last)})
	}
	return nil
}

// checkObjects lists the bucket and compares it with what was named. It comes last: what was settled
// when the gateways' rows were read has been seen by now, if anything names it.
func (v *verifier) checkObjects(ctx context.Context) error {
	s := &sweep{v: v}
	err := v.objects(ctx, v.cluster.ID+"/", func(o segments.ObjectInfo) error { return s.object(ctx, o) })
	if err != nil {
		return err
	}
	return s.flush(ctx)
}

// sweepSize is how many orphans are held against their partitions once more at a time.
const sweepSize = 200

// sweep goes over the bucket.
type sweep struct {
	v *verifier
	// removable orphans wait for a last look at the partitions that are in them.
	removable []*orphan
}

type orphan struct {
	Finding
	gateway metadata.GatewayID
	number  uint64
}

// keep notes what speaks against an orphan's removal: the first thing that does is told.
func (o *orphan) keep(why string) {
	if o.Stays == "" {
		o.Stays = why
	}
}

func (s *sweep) object(ctx context.Context, o segments.ObjectInfo) error {
	_, gateway, number, err := segments.ParseObjectKey(o.Key)
	if err != nil {
		s.foreign(o.Key)
		return nil
	}
	s.v.count(func(c *Summary) { c.Objects, c.ObjectBytes = c.Objects+1, c.ObjectBytes+o.Size })
	id := metadata.GatewayID(gateway)
	if s.v.named.Has(id, number) || s.v.isYoung(id) {
		return nil
	}
	if lost, _ := s.v.broken(); lost {
		return nil // nobody knows what is named
	}
	why, stays, err := s.v.settled(ctx, id, number)
	if err != nil || why == "" {
		return err
	}
	found := &orphan{Finding: Finding{Kind: OrphanObject, Partition: NoPartition, Object: o.Key,
		Message: fmt.Sprintf("nothing names its %d bytes, and %s", o.Size, why), Stays: stays}, gateway: id, number: number}
	if !s.v.Repair || stays != "" {
		s.v.report(found.Finding)
		return nil
	}
	if s.removable = append(s.removable, found); len(s.removable) < sweepSize {
		return nil
	}
	return s.flush(ctx)
}

// foreign reports a key that is neither a segment nor what gateways write beside them.
func (s *sweep) foreign(key string) {
	if _, ok := s.v.generationOf(key); ok || strings.HasPrefix(key, s.v.cluster.ID+"/probe-") {
		return
	}
	s.v.report(Finding{Kind: ForeignObject, Partition: NoPartition, Object: key, Message: "no gateway writes such a key", Stays: staysAsForeign})
}

// isYoung says that an uploader, and so each of its objects, is younger than the grace.
func (v *verifier) isYoung(id metadata.GatewayID) bool {
	minted, known := id.MintedAt()
	return known && v.Now().Sub(minted) < v.Grace
}

// settled says why no partition will ever name a segment that none names now; empty: one may. It stays unless
// its uploader has ended in good order, or was ended.
func (v *verifier) settled(ctx context.Context, uploader metadata.GatewayID, number uint64) (why, stays string, err error) {
	id := uploader.Owner()
	row, known := v.gateways[id]
	floor := row.Floor
	if uploader.IsMerger() {
		floor = row.MergeFloor
	}
	switch {
	case known && row.State == metadata.GatewayClosed && v.unheard:
		return fmt.Sprintf("gateway %s, which wrote it, is closed", id), staysUnheard, nil
	case known && row.State == metadata.GatewayClosed:
		return fmt.Sprintf("gateway %s, which wrote it, is closed", id), "", nil
	case known && number < floor:
		return fmt.Sprintf("gateway %s, which wrote it, has settled all numbers below %d", id, floor), staysOfOpenGateway, nil
	case known:
		return "", "", nil
	}
	if _, err = v.Table.Get(ctx, id.RowKey(), metadata.Strong); !errors.Is(err, metadata.ErrNotFound) {
		return "", "", err // nil: it began after us
	}
	ended, err := metadata.Ended(ctx, v.Table, id)
	switch {
	case errors.Is(err, metadata.ErrCorrupt), err == nil && !ended:
		return fmt.Sprintf("gateway %s, which wrote it, has no row", id), staysOfNobody, nil
	case err != nil:
		return "", "", err
	}
	return fmt.Sprintf("gateway %s, which wrote it, has ended, as the seal of its journal says", id), "", nil
}

// flush removes what was gathered, if a last look finds it unnamed still.
func (s *sweep) flush(ctx context.Context) error {
	list := s.removable
	s.removable = nil
	if err := s.v.remove(ctx, list); err != nil {
		return err
	}
	for _, o := range list {
		s.v.report(o.Finding)
	}
	return nil
}
