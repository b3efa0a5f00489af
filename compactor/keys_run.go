package compactor

import (
	"context"
	"errors"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// cleanKeys compacts those of a pass's partitions by key whose topics are to be. Merges come first, so that small segments
// are read once.
func (c *Compactor) cleanKeys(ctx context.Context, p *pass) {
	if p.dryRun {
		return
	}
	p.young = make(map[metadata.PartitionID]time.Duration)
	for _, id := range p.partitions {
		topic := p.topics[id.Topic]
		if topic == nil || !topic.Config.Compacts() || !c.cluster.Merges(id) {
			continue
		}
		err := errDoubts
		if c.numbers.begin(); c.numbers.free(id) {
			err = c.cleanPartition(ctx, p, id, topic)
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			c.fail(ctx, p, id, err)
		}
	}
}

// cleanPartition compacts one by key.
func (c *Compactor) cleanPartition(ctx context.Context, p *pass, id metadata.PartitionID, topic *metadata.Topic) error {
	cluster := segments.ClusterID(c.cluster.ClusterID())
	confirmed := topic
	d := KeyDeps{Store: c.store, Cluster: cluster, Table: c.table, Index: c.index, Uploader: c.numbers.begin(), Number: c.numbers.take,
		View: c.cluster.View, Pace: c.pace.take, Now: c.cluster.Clock,
		Aside: func(e *metadata.Entry) bool {
			problem, damaged := c.damaged[spotOf(id, e)]
			if damaged && p.all { // the merges before it read it again
				c.tell(p, id, e, problem)
			}
			return damaged
		},
		Confirm: func(ctx context.Context) error {
			now, err := c.confirmKeys(ctx, topic)
			if err == nil {
				confirmed = now
			}
			return err
		},
		Swap: func(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
			w.Topic, w.TopicStamp = confirmed.Name, confirmed.Stamp
			return c.numbers.swap(ctx, w)
		},
		Damaged: func(_ metadata.PartitionID, e *metadata.Entry, err error) { c.setKeysAside(ctx, p, id, e, err) },
	}
	began, floor := time.Now(), c.numbers.last
	tail := max(c.config.KeyTailBytes, 0)
	if p.all { // somebody asked
		tail = 0
	}
	report, err := CleanPartition(ctx, d, KeyConfig{MapBytes: c.config.KeyMapBytes, SegmentBytes: min(c.config.TargetBytes, 16<<20)}, id,
		RulesOf(topic.Config, tail), p.all)
	if c.numbers.last != floor && ctx.Err() == nil {
		c.numbers.settle()
	}
	p.Dropped += report.Dropped + report.Tombstones
	if report.Young != 0 {
		age := c.cluster.Clock().UnixMilli() - report.Young
		lag := min(topic.Config.CompactionLagMillis, (100 * 365 * 24 * time.Hour).Milliseconds())
		p.young[id] = max(time.Duration(lag-age)*time.Millisecond, time.Second)
	}
	c.meters.keyBytes.Add(uint64(report.BytesWritten))
	c.meters.dropped.Add(uint64(report.Dropped))
	c.meters.tombstones.Add(uint64(report.Tombstones))
	c.meters.swapped.Add(uint64(report.Swaps))
	c.meters.moved.Add(uint64(report.Moved))
	if report.Swaps > 0 {
		c.log.Info("compacted a partition by key", "topic", topic.Name, "partition", id.Number, "dropped", report.Dropped, "tombstones", report.Tombstones,
			"read", report.BytesRead, "written", report.BytesWritten, "freed", report.BytesFreed, "clean_to", report.CleanTo, "took", time.Since(began))
	}
	if report.Keyless > 0 {
		c.log.Warn("records without a key stay in a topic that is compacted by key", "topic", topic.Name, "partition", id.Number, "records", report.Keyless)
	}
	if errors.Is(err, errOtherRules) { // what was done by the old ones until then stays done
		c.listed, p.young[id], err = time.Time{}, time.Second, nil
	}
	return err
}

// errOtherRules ends key compaction of a partition: the topic has other settings by now, or is gone.
var errOtherRules = errors.New("compactor: the settings of compaction by key have changed")

// confirmKeys reads a topic once more, so that no record goes by settings that were altered before it came.
func (c *Compactor) confirmKeys(ctx context.Context, topic *metadata.Topic) (*metadata.Topic, error) {
	t, err := c.cluster.Topic(ctx, topic.Name)
	switch {
	case errors.Is(err, metadata.ErrTopicNotFound):
		return nil, errOtherRules
	case err != nil:
		return nil, err
	case t.ID != topic.ID || t.State != metadata.TopicActive || !t.Config.Compacts() || RulesOf(t.Config, 0) != RulesOf(topic.Config, 0):
		return nil, errOtherRules
	}
	return t, nil
}

// setKeysAside names an entry that was found damaged.
func (c *Compactor) setKeysAside(ctx context.Context, p *pass, id metadata.PartitionID, e *metadata.Entry, problem error) {
	if still, err := c.stillNamed(ctx, id, e); err != nil || !still {
		return // it moved, or was trimmed: no loss
	}
	c.noteDamage(p, id, e, problem, "a span is damaged: key compaction leaves it as it is")
}
