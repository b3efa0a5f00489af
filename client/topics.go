package client

import (
	"cmp"
	"context"
	"iter"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// Topic is a topic as stored.
type Topic struct {
	Name string
	// ID has 32 hex digits and is never reused, also when a name is.
	ID         string
	Partitions int32
	// Config holds only what was set; DescribeTopic has every value.
	Config map[string]string
	// State is "active" or "deleting".
	State     string
	CreatedAt time.Time
}

func topicOf(m *varvev1.Topic) Topic {
	return Topic{
		Name:       m.GetName(),
		ID:         m.GetId(),
		Partitions: m.GetPartitions(),
		Config:     m.GetConfig(),
		State:      m.GetState(),
		CreatedAt:  time.UnixMilli(m.GetCreatedAt()),
	}
}

// CreateTopicOptions says how to make a topic.
type CreateTopicOptions struct {
	// Partitions is 1 when 0.
	Partitions int32
	// Config: retention.ms, retention.bytes, cleanup.policy, timestamp.type, max.message.bytes,
	// timestamp.after.max.ms, delete.retention.ms, min.compaction.lag.ms, min.cleanable.dirty.ratio.
	Config map[string]string
	// IfNotExists succeeds, changing nothing, when a topic of that name is there.
	IfNotExists bool
}

// CreateTopic makes a topic. created is false when IfNotExists found one. A name that is taken is
// ErrTopicExists; a bad name or configuration is ErrInvalid.
func (c *Client) CreateTopic(ctx context.Context, name string, opts CreateTopicOptions) (topic Topic, created bool, err error) {
	req := &varvev1.CreateTopicRequest{
		Name: name, Partitions: opts.Partitions, Config: opts.Config, IfNotExists: opts.IfNotExists,
	}
	res, err := call(ctx, c, repeatable(opts.IfNotExists), func(ctx context.Context, e *endpoint) (*varvev1.CreateTopicResponse, error) {
		return e.topics.CreateTopic(ctx, req)
	})
	if err != nil {
		return Topic{}, false, err
	}
	return topicOf(res.GetTopic()), res.GetCreated(), nil
}

// Topics yields the topics whose names begin with prefix, in order of name, page by page. It ends
// after the first error.
func (c *Client) Topics(ctx context.Context, prefix string) iter.Seq2[Topic, error] {
	return func(yield func(Topic, error) bool) {
		req := &varvev1.ListTopicsRequest{Prefix: prefix}
		for {
			res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.ListTopicsResponse, error) {
				return e.topics.ListTopics(ctx, req)
			})
			if err != nil {
				yield(Topic{}, err)
				return
			}
			for _, t := range res.GetTopics() {
				if !yield(topicOf(t), nil) {
					return
				}
			}
			if res.GetNextPageToken() == "" {
				return
			}
			req = &varvev1.ListTopicsRequest{Prefix: prefix, PageToken: res.GetNextPageToken()}
		}
	}
}

// ConfigEntry is one setting of a topic with the value in force.
type ConfigEntry struct {
	Name, Value string
	// IsDefault is false for what was set on the topic.
	IsDefault bool
	// Doc explains the setting in a sentence.
	Doc string
}

// PartitionInfo is a partition's state.
type PartitionInfo struct {
	Partition int32
	// StartOffset is the first readable offset, EndOffset the one after the last record.
	StartOffset, EndOffset int64
	// Bytes of record batches between the two, as indexed.
	Bytes int64
	// Gateway sequences the partition; empty when nobody has yet.
	Gateway string
	Epoch   uint64
	// MaxTimestamp is zero when the partition is empty.
	MaxTimestamp time.Time
	// FencingToken is empty when there is none.
	FencingToken string
	// RetentionHolder is the largest timestamp among the records that hold the log start where it is: with a
	// retention by time they go once all of them are too old. Zero without one.
	RetentionHolder time.Time
}

// TopicDescription is a topic with every setting and every partition.
type TopicDescription struct {
	Topic
	Settings []ConfigEntry
	// PartitionInfo is in order of partition.
	PartitionInfo []PartitionInfo
	// Cost is what the topic has used; nil unless DescribeTopicUsage asked for it.
	Cost *varvev1.CostResponse
}

// DescribeTopic shows a topic, or ErrTopicNotFound.
func (c *Client) DescribeTopic(ctx context.Context, name string) (TopicDescription, error) {
	return c.describeTopic(ctx, &varvev1.DescribeTopicRequest{Name: name})
}

// DescribeTopicUsage is DescribeTopic with what the topic has used: all gateways are asked for that.
func (c *Client) DescribeTopicUsage(ctx context.Context, name string) (TopicDescription, error) {
	return c.describeTopic(ctx, &varvev1.DescribeTopicRequest{Name: name, Usage: true})
}

func (c *Client) describeTopic(ctx context.Context, req *varvev1.DescribeTopicRequest) (TopicDescription, error) {
	res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.DescribeTopicResponse, error) {
		return e.topics.DescribeTopic(ctx, req)
	})
	if err != nil {
		return TopicDescription{}, err
	}
	d := TopicDescription{Topic: topicOf(res.GetTopic()), Cost: res.GetCost()}
	for _, s := range res.GetConfig() {
		d.Settings = append(d.Settings, ConfigEntry{
			Name: s.GetName(), Value: s.GetValue(), IsDefault: s.GetIsDefault(), Doc: s.GetDoc(),
		})
	}
	for _, p := range res.GetPartitions() {
		d.PartitionInfo = append(d.PartitionInfo, PartitionInfo{
			Partition: p.GetPartition(), StartOffset: p.GetStartOffset(), EndOffset: p.GetEndOffset(), Bytes: p.GetBytes(),
			Gateway: p.GetGateway(), Epoch: p.GetEpoch(), MaxTimestamp: timeOf(p.GetMaxTimestamp()),
			FencingToken: p.GetFencingToken(), RetentionHolder: timeOf(cmp.Or(p.GetRetentionHolder(), -1)),
		})
	}
	return d, nil
}

// AlterTopicOptions says what to change; what is absent stays.
type AlterTopicOptions struct {
	// Partitions can only grow; 0 leaves the count. Growing moves keys between partitions.
	Partitions int32
	Set        map[string]string
	// Unset brings settings back to their defaults.
	Unset []string
}

// AlterTopic changes a topic and returns it as it is then.
func (c *Client) AlterTopic(ctx context.Context, name string, opts AlterTopicOptions) (Topic, error) {
	req := &varvev1.AlterTopicRequest{Name: name, Partitions: opts.Partitions, Set: opts.Set, Unset: opts.Unset}
	res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.AlterTopicResponse, error) {
		return e.topics.AlterTopic(ctx, req)
	})
	if err != nil {
		return Topic{}, err
	}
	return topicOf(res.GetTopic()), nil
}

// Removal is what a retention would remove from a partition now.
type Removal struct {
	Partition int32
	// StartOffset is the log start, EndOffset (exclusive) where it would be.
	StartOffset, EndOffset int64
	// Records counts offsets: there are fewer records where keys were compacted. Bytes are those of record batches.
	Records, Bytes int64
	// LastTimestamp is that of the last record that would go.
	LastTimestamp time.Time
}

// TryAlterTopic changes nothing. It returns the topic as AlterTopic would make it, and what would go from it at once,
// by partition; partitions that would lose nothing are left out.
func (c *Client) TryAlterTopic(ctx context.Context, name string, opts AlterTopicOptions) (Topic, []Removal, error) {
	req := &varvev1.AlterTopicRequest{Name: name, Partitions: opts.Partitions, Set: opts.Set, Unset: opts.Unset, DryRun: true}
	res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.AlterTopicResponse, error) {
		return e.topics.AlterTopic(ctx, req)
	})
	if err != nil {
		return Topic{}, nil, err
	}
	var removals []Removal
	for _, r := range res.GetRemovals() {
		removals = append(removals, Removal{Partition: r.GetPartition(), StartOffset: r.GetStartOffset(), EndOffset: r.GetEndOffset(),
			Records: r.GetRecords(), Bytes: r.GetBytes(), LastTimestamp: timeOf(r.GetLastTimestamp())})
	}
	return topicOf(res.GetTopic()), removals, nil
}

// DeleteTopic deletes a topic and everything in it. With ifExists a topic that is not there is a success.
func (c *Client) DeleteTopic(ctx context.Context, name string, ifExists bool) error {
	_, err := call(ctx, c, repeatable(ifExists), func(ctx context.Context, e *endpoint) (*varvev1.DeleteTopicResponse, error) {
		return e.topics.DeleteTopic(ctx, &varvev1.DeleteTopicRequest{Name: name, IfExists: ifExists})
	})
	return err
}

// TrimResult is a partition after a trim.
type TrimResult struct {
	Partition              int32
	StartOffset, EndOffset int64
}

// TrimTopic moves the log start of the given partitions (all of them when none is given) up to a place:
// an offset, a time, Latest or BeforeEnd. What lies below can no longer be read. An offset needs partitions.
func (c *Client) TrimTopic(ctx context.Context, name string, to Place, partitions ...int32) ([]TrimResult, error) {
	place, err := to.trimMessage()
	if err != nil {
		return nil, err
	}
	req := &varvev1.TrimTopicRequest{Name: name, Partitions: partitions, To: place}
	// A trim only ever moves a start up, so it may be repeated; but "latest" would be a later one.
	res, err := call(ctx, c, onlyDefinite, func(ctx context.Context, e *endpoint) (*varvev1.TrimTopicResponse, error) {
		return e.topics.TrimTopic(ctx, req)
	})
	if err != nil {
		return nil, err
	}
	out := make([]TrimResult, 0, len(res.GetResults()))
	for _, r := range res.GetResults() {
		out = append(out, TrimResult{Partition: r.GetPartition(), StartOffset: r.GetStartOffset(), EndOffset: r.GetEndOffset()})
	}
	return out, nil
}

func (p Place) trimMessage() (*varvev1.TrimPlace, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	switch p.kind {
	case placeOffset:
		return &varvev1.TrimPlace{At: &varvev1.TrimPlace_Offset{Offset: p.value}}, nil
	case placeTime:
		return &varvev1.TrimPlace{At: &varvev1.TrimPlace_Time{Time: p.value}}, nil
	case placeLatest:
		return &varvev1.TrimPlace{At: &varvev1.TrimPlace_Latest{Latest: true}}, nil
	case placeBeforeEnd:
		return &varvev1.TrimPlace{At: &varvev1.TrimPlace_BeforeEnd{BeforeEnd: p.value}}, nil
	default:
		return nil, invalidf("cannot trim to %v; give an offset, a time, latest or -N", p)
	}
}

// SegmentRange is a partition's run of records within a segment object.
type SegmentRange struct {
	// Object is the key that Dump takes.
	Object string
	// Position and Length are in bytes.
	Position, Length int64
	// EndOffset is exclusive.
	FirstOffset, EndOffset     int64
	RecordCount                int64
	MinTimestamp, MaxTimestamp time.Time
}

// Segments yields where a partition's records lie, from the one that holds fromOffset on. It ends
// after the first error.
func (c *Client) Segments(ctx context.Context, topic string, partition int32, fromOffset int64) iter.Seq2[SegmentRange, error] {
	return func(yield func(SegmentRange, error) bool) {
		for {
			req := &varvev1.ListSegmentsRequest{Name: topic, Partition: partition, FromOffset: fromOffset}
			res, err := call(ctx, c, anyOutcome, func(ctx context.Context, e *endpoint) (*varvev1.ListSegmentsResponse, error) {
				return e.topics.ListSegments(ctx, req)
			})
			if err != nil {
				yield(SegmentRange{}, err)
				return
			}
			for _, s := range res.GetSegments() {
				if !yield(segmentOf(s), nil) {
					return
				}
			}
			if len(res.GetSegments()) == 0 || res.GetNextOffset() <= fromOffset {
				return
			}
			fromOffset = res.GetNextOffset()
		}
	}
}

func segmentOf(s *varvev1.SegmentRange) SegmentRange {
	return SegmentRange{
		Object: s.GetObject(), Position: s.GetPosition(), Length: s.GetLength(),
		FirstOffset: s.GetFirstOffset(), EndOffset: s.GetEndOffset(), RecordCount: s.GetRecordCount(),
		MinTimestamp: timeOf(s.GetMinTimestamp()), MaxTimestamp: timeOf(s.GetMaxTimestamp()),
	}
}

// timeOf turns milliseconds into a time, and the API's -1 (none) into the zero time.
func timeOf(ms int64) time.Time {
	if ms < 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}
