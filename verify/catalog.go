package verify

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// listPage is how many keys are listed at once.
const listPage = 1000

// objects lists what is below a prefix.
func (v *verifier) objects(ctx context.Context, prefix string, each func(segments.ObjectInfo) error) error {
	after := ""
	for {
		page, err := v.Store.List(ctx, prefix, after, listPage)
		if err != nil {
			return fmt.Errorf("list %s in %s: %w", prefix, v.Store, err)
		}
		if len(page) == 0 {
			return nil
		}
		for _, o := range page {
			if err := each(o); err != nil {
				return err
			}
		}
		after = page[len(page)-1].Key
	}
}

const generationFolder = "generation/"

// generationOf reads the number in the key of a generation.
func (v *verifier) generationOf(key string) (uint64, bool) {
	text, found := strings.CutPrefix(key, v.cluster.ID+"/"+generationFolder)
	if !found {
		return 0, false
	}
	number, err := strconv.ParseUint(text, 10, 64)
	return number, err == nil && len(text) == 20
}

// checkGeneration compares bucket and table. First the bucket is listed, then the table read: in the
// other order a generation that is raised in between would look like a table that was rolled back.
func (v *verifier) checkGeneration(ctx context.Context) error {
	cluster, err := metadata.ReadCluster(ctx, v.Table)
	if err != nil {
		return fmt.Errorf("cluster of %s: %w", v.Table, err)
	}
	v.cluster, v.summary.ClusterID = cluster, cluster.ID
	highest := uint64(0)
	err = v.objects(ctx, cluster.ID+"/"+generationFolder, func(o segments.ObjectInfo) error {
		if number, ok := v.generationOf(o.Key); ok {
			highest = max(highest, number)
		}
		return nil
	})
	if err != nil {
		return err
	}
	known, err := cluster.Generation(ctx)
	switch {
	case errors.Is(err, metadata.ErrCorrupt):
		v.report(Finding{Kind: RowCorrupt, Partition: NoPartition, Row: "cluster generation", Message: err.Error()})
	case err != nil:
		return err
	case highest > known:
		v.report(Finding{Kind: RolledBack, Partition: NoPartition, Object: fmt.Sprintf("%s/%s%020d", cluster.ID, generationFolder, highest),
			Message: fmt.Sprintf("the bucket has seen generation %d, the table is at %d: it is an older copy; restore the newest one", highest, known)})
	}
	return nil
}

// readGateways takes the gateways as they are before anything that they name is read: what lies below
// their floors is decided by now.
func (v *verifier) readGateways(ctx context.Context) error {
	for row, err := range metadata.Rows(ctx, v.Table, metadata.GatewayRange()) {
		if err != nil {
			return fmt.Errorf("gateways: %w", err)
		}
		g, err := metadata.DecodeGateway(row)
		if err != nil {
			v.reportRow(row.Key, err)
			continue
		}
		v.gateways[g.ID] = g
	}
	return v.ask(ctx)
}

// ask asks the gateways that live whether they know of those that are closed: a late reference may still be taken where that
// is not known.
func (v *verifier) ask(ctx context.Context) error {
	for _, id := range sortedKeys(v.gateways) {
		if g := v.gateways[id]; !v.Repair || g.State != metadata.GatewayLive && g.State != metadata.GatewayDraining {
			continue
		}
		if v.Acknowledge == nil || v.Acknowledge(ctx, id) != nil {
			v.unheard = true
		}
	}
	return context.Cause(ctx)
}

func (v *verifier) reportRow(key metadata.Key, err error) {
	v.report(Finding{Kind: RowCorrupt, Partition: NoPartition, Row: key.String(), Message: err.Error()})
}

func (v *verifier) readTopics(ctx context.Context) error {
	for row, err := range metadata.Rows(ctx, v.Table, metadata.TopicRange()) {
		if err != nil {
			return fmt.Errorf("topics: %w", err)
		}
		t, err := metadata.DecodeTopic(row)
		if err != nil {
			v.reportRow(row.Key, err)
			continue
		}
		v.topics[t.ID] = t
		if !t.Removed() {
			v.count(func(s *Summary) { s.Topics++ })
		}
	}
	return nil
}

// readRemoved adds the topics that were removed, also those whose names were given again.
func (v *verifier) readRemoved(ctx context.Context) error {
	removed, err := metadata.ListRemoved(ctx, v.Table)
	if errors.Is(err, metadata.ErrCorrupt) {
		v.report(Finding{Kind: RowCorrupt, Partition: NoPartition, Row: "removed", Message: err.Error()})
		return nil
	}
	for _, r := range removed {
		v.swept[r.ID] = true
		// Its partitions are closed, and their rows go, also while a deletion that was cut short leaves it in the catalog.
		v.topics[r.ID] = r.Topic()
	}
	return err
}

// checkBucket compares the clusters of bucket and table. A bucket is claimed before there are topics.
func (v *verifier) checkBucket(ctx context.Context) error {
	const key = "cluster-id"
	owner, _, err := v.Store.Get(ctx, key, 0, 128)
	finding := Finding{Kind: OtherCluster, Partition: NoPartition, Object: key}
	switch {
	case errors.Is(err, segments.ErrNotFound):
		if len(v.topics) > 0 {
			finding.Message = fmt.Sprintf("the bucket %s does not say whose it is; the table is that of cluster %s", v.Store, v.cluster.ID)
			v.report(finding)
		}
		return nil
	case err != nil:
		return fmt.Errorf("read %s in %s: %w", key, v.Store, err)
	case string(owner) != v.cluster.ID:
		finding.Message = fmt.Sprintf("the bucket %s is that of cluster %q, the table that of cluster %s: they do not belong together", v.Store, owner, v.cluster.ID)
		v.report(finding)
		return errNoFurther
	}
	return nil
}

// partition names a partition of a topic that may be gone.
func (v *verifier) partition(id metadata.PartitionID) *partition {
	if t := v.topics[id.Topic]; t != nil && !t.Removed() {
		return &partition{id, t.Name}
	}
	return &partition{id, id.Topic.String()}
}
