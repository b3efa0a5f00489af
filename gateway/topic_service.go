package gateway

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

const (
	// partitionsAtOnce is how many partitions of a topic one call works on at a time.
	partitionsAtOnce = 64
	// defaultPage and maxPage bound the topics, or index entries, in one answer.
	defaultPage = 1000
	maxPage     = 10_000
)

// topicService is the TopicService of a gateway.
type topicService struct{ g *Gateway }

// CreateTopic makes a topic.
func (s *topicService) CreateTopic(ctx context.Context, r *varvev1.CreateTopicRequest) (*varvev1.CreateTopicResponse, error) {
	partitions := r.GetPartitions()
	if partitions == 0 {
		partitions = 1
	}
	t, err := s.g.topics.Create(ctx, r.GetName(), partitions, r.GetConfig(), s.g.now())
	s.g.upkeep.changed()
	created := err == nil
	if errors.Is(err, metadata.ErrTopicExists) && r.GetIfNotExists() {
		// One that is being deleted is no topic to work with: its error stands.
		if have, refreshed := s.g.topics.Refresh(ctx, r.GetName()); refreshed == nil && have.State == metadata.TopicActive {
			t, err = have, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return &varvev1.CreateTopicResponse{Topic: topicMessage(t), Created: created}, nil
}

// ListTopics lists topics by name, a page at a time.
func (s *topicService) ListTopics(ctx context.Context, r *varvev1.ListTopicsRequest) (*varvev1.ListTopicsResponse, error) {
	limit, err := pageSize("page_size", r.GetPageSize())
	if err != nil {
		return nil, err
	}
	topics, err := s.g.topics.List(ctx, r.GetPrefix(), r.GetPageToken(), limit+1)
	if err != nil {
		return nil, err
	}
	out := &varvev1.ListTopicsResponse{}
	if len(topics) > limit {
		topics = topics[:limit]
		out.NextPageToken = topics[limit-1].Name
	}
	for _, t := range topics {
		out.Topics = append(out.Topics, topicMessage(t))
	}
	return out, nil
}

func pageSize(field string, asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, refuse(connect.CodeInvalidArgument, reasonInvalid, "%s %d is negative", field, asked)
	case asked == 0:
		return defaultPage, nil
	}
	return min(int(asked), maxPage), nil
}

// DescribeTopic shows a topic, its configuration and its partitions.
func (s *topicService) DescribeTopic(ctx context.Context, r *varvev1.DescribeTopicRequest) (*varvev1.DescribeTopicResponse, error) {
	t, err := s.g.topics.Get(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	out := &varvev1.DescribeTopicResponse{Topic: topicMessage(t), Partitions: make([]*varvev1.PartitionInfo, t.Partitions)}
	for _, e := range t.Config.Entries() {
		out.Config = append(out.Config, &varvev1.ConfigEntry{Name: e.Name, Value: e.Value, IsDefault: e.IsDefault, Doc: e.Doc})
	}
	policy, now := t.Config.Retention(), s.g.upkeep.Clock().UnixMilli()
	err = s.each(ctx, t, allPartitions(t), partitionsAtOnce, func(ctx context.Context, id metadata.PartitionID) error {
		info, err := s.describe(ctx, id)
		out.Partitions[id.Number] = info
		if err == nil && policy.Millis >= 0 && info.EndOffset > info.StartOffset {
			var e metadata.Expired
			_, e, err = s.g.upkeep.Expired(ctx, id, policy, now)
			info.RetentionHolder = e.Holder
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if r.GetUsage() {
		out.Cost, err = s.g.costOf(ctx, t, out.Partitions)
	}
	return out, err
}

// describe shows a partition. One that nobody here has asked for is read without
// being remembered: a topic may have a million of them.
func (s *topicService) describe(ctx context.Context, id metadata.PartitionID) (*varvev1.PartitionInfo, error) {
	ctx = bill.ForTopic(ctx, id.Topic)
	info := &varvev1.PartitionInfo{Partition: id.Number, RetentionHolder: metadata.NoTimestamp}
	var v *metadata.View
	if p := s.g.partitions.peek(id); p != nil {
		var err error
		if v, err = s.g.viewOf(ctx, p); err != nil {
			return nil, err
		}
		info.Gateway = string(s.g.router.sequencer(id))
	} else {
		var holder metadata.GatewayID
		var err error
		if v, holder, err = s.g.journals.View(ctx, id); err != nil {
			return nil, err
		}
		if holder != "" && (holder == s.g.ID() || s.g.members.lives(holder)) {
			info.Gateway = string(holder)
		}
	}
	info.FencingToken = v.Fence
	info.StartOffset, info.EndOffset, info.Bytes, info.Epoch = v.Start, v.Next, v.Bytes, v.Epoch
	info.MaxTimestamp = maxTimestamp(v)
	return info, nil
}

// maxTimestamp is the largest timestamp in the index, in ms. It may be that of a record
// below the log start, in an entry which reaches above it.
func maxTimestamp(v *metadata.View) int64 {
	largest := metadata.NoTimestamp
	if v.Start >= v.Next {
		return largest
	}
	for _, children := range v.Levels {
		for i := range children {
			largest = max(largest, children[i].MaxTimestamp)
		}
	}
	for i := range v.Tail {
		largest = max(largest, v.Tail[i].MaxTimestamp)
	}
	return largest
}

// AlterTopic adds partitions and changes settings.
func (s *topicService) AlterTopic(ctx context.Context, r *varvev1.AlterTopicRequest) (*varvev1.AlterTopicResponse, error) {
	if r.GetDryRun() {
		return s.tryAlter(ctx, r)
	}
	t, err := s.g.topics.Alter(ctx, r.GetName(), r.GetPartitions(), r.GetSet(), r.GetUnset())
	s.g.upkeep.changed()
	if err != nil {
		return nil, err
	}
	return &varvev1.AlterTopicResponse{Topic: topicMessage(t)}, nil
}

// tryAlter tells what the topic would be, and what would go at once.
func (s *topicService) tryAlter(ctx context.Context, r *varvev1.AlterTopicRequest) (*varvev1.AlterTopicResponse, error) {
	t, err := s.g.topics.Altered(ctx, r.GetName(), r.GetPartitions(), r.GetSet(), r.GetUnset())
	if err != nil {
		return nil, err
	}
	out := &varvev1.AlterTopicResponse{Topic: topicMessage(t)}
	policy, now := t.Config.Retention(), s.g.upkeep.Clock().UnixMilli()
	if policy.Forever() {
		return out, nil
	}
	removals := make([]*varvev1.Removal, t.Partitions)
	err = s.each(ctx, t, allPartitions(t), partitionsAtOnce, func(ctx context.Context, id metadata.PartitionID) error {
		_, e, err := s.g.upkeep.Expired(ctx, id, policy, now)
		if err == nil && e.To > e.From {
			removals[id.Number] = &varvev1.Removal{Partition: id.Number, StartOffset: e.From, EndOffset: e.To, Records: e.To - e.From,
				Bytes: e.Bytes, LastTimestamp: e.LastTimestamp}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	out.Removals = slices.DeleteFunc(removals, func(r *varvev1.Removal) bool { return r == nil })
	return out, nil
}

// DeleteTopic marks a topic, closes each of its partitions and frees its name. It goes on when the caller
// leaves; when the gateway ends the mark stays, and another call goes on, or if there is none, who removes topics does.
func (s *topicService) DeleteTopic(ctx context.Context, r *varvev1.DeleteTopicRequest) (*varvev1.DeleteTopicResponse, error) {
	t, err := s.g.topics.MarkDeleting(ctx, r.GetName())
	defer s.g.upkeep.changed()
	if errors.Is(err, metadata.ErrTopicNotFound) && r.GetIfExists() {
		return &varvev1.DeleteTopicResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.g.deletions.join(t).wait(ctx); err != nil {
		return nil, err
	}
	return &varvev1.DeleteTopicResponse{}, nil
}

// TrimTopic moves log starts up.
func (s *topicService) TrimTopic(ctx context.Context, r *varvev1.TrimTopicRequest) (*varvev1.TrimTopicResponse, error) {
	to, err := placeOfTrim(r)
	if err != nil {
		return nil, err
	}
	t, err := s.g.topic(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	ids, err := partitionsOf(t, r.GetPartitions())
	if err != nil {
		return nil, err
	}
	results := make([]*varvev1.TrimResult, len(ids))
	at := make(map[int32]int, len(ids))
	for i, id := range ids {
		at[id.Number] = i
	}
	err = s.each(ctx, t, ids, partitionsAtOnce, func(ctx context.Context, id metadata.PartitionID) error {
		v, err := s.trim(ctx, id, to)
		if err == nil {
			results[at[id.Number]] = &varvev1.TrimResult{Partition: id.Number, StartOffset: v.Start, EndOffset: v.Next}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &varvev1.TrimTopicResponse{Results: results}, nil
}

// trim moves one log start up. A partition that has nothing to give up is left alone: it
// may have no rows yet.
func (s *topicService) trim(ctx context.Context, id metadata.PartitionID, to *varvev1.Place) (*metadata.View, error) {
	var v *metadata.View
	var offset int64
	err := s.g.withView(ctx, id, func(now *metadata.View) (err error) {
		v = now
		offset, err = s.g.resolve(ctx, v, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	if offset > v.Next {
		return nil, refuse(connect.CodeOutOfRange, reasonOutOfRange, "cannot trim to offset %d: the log holds offsets %d to %d (end, exclusive)",
			offset, v.Start, v.Next).withLog(v.Start, v.Next)
	}
	if offset <= v.Start {
		return v, nil
	}
	return s.g.router.decide(ctx, id, decision{trim: &offset})
}

// placeOfTrim reads where to trim to.
func placeOfTrim(r *varvev1.TrimTopicRequest) (*varvev1.Place, error) {
	switch at := r.GetTo().GetAt().(type) {
	case *varvev1.TrimPlace_Offset:
		if len(r.GetPartitions()) == 0 {
			return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "an offset means another place in each partition: name the partitions, or trim to a time")
		}
		if at.Offset < 0 {
			return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "offset %d is negative", at.Offset)
		}
		return &varvev1.Place{At: &varvev1.Place_Offset{Offset: at.Offset}}, nil
	case *varvev1.TrimPlace_Time:
		return &varvev1.Place{At: &varvev1.Place_Time{Time: at.Time}}, nil
	case *varvev1.TrimPlace_Latest:
		return &varvev1.Place{At: &varvev1.Place_Latest{Latest: true}}, nil
	case *varvev1.TrimPlace_BeforeEnd:
		return &varvev1.Place{At: &varvev1.Place_BeforeEnd{BeforeEnd: at.BeforeEnd}}, nil
	}
	return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "to is missing: say where the log is to start")
}

// ListSegments names the objects that hold a partition's records.
func (s *topicService) ListSegments(ctx context.Context, r *varvev1.ListSegmentsRequest) (*varvev1.ListSegmentsResponse, error) {
	limit, err := pageSize("limit", r.GetLimit())
	if err != nil {
		return nil, err
	}
	t, err := s.g.topic(ctx, r.GetName())
	if err != nil {
		return nil, err
	}
	id, err := partitionOf(t, r.GetPartition())
	if err != nil {
		return nil, err
	}
	if r.GetFromOffset() < 0 {
		return nil, refuse(connect.CodeInvalidArgument, reasonInvalid, "offset %d is negative", r.GetFromOffset()).withTopic(t.Name)
	}
	var out *varvev1.ListSegmentsResponse
	err = s.g.withView(ctx, id, func(v *metadata.View) (err error) {
		out, err = s.segments(ctx, v, r.GetFromOffset(), limit)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// segments walks a view's index from an offset on.
func (s *topicService) segments(ctx context.Context, v *metadata.View, from int64, limit int) (*varvev1.ListSegmentsResponse, error) {
	out := &varvev1.ListSegmentsResponse{NextOffset: min(max(from, v.Start), v.Next)}
	for len(out.Segments) < limit && out.NextOffset < v.Next {
		entries, err := v.Entries(ctx, s.g.reader.index, out.NextOffset)
		if err != nil {
			return nil, err
		}
		if len(entries) == 0 {
			return nil, fmt.Errorf("%w: no index entry holds offset %d of %s", metadata.ErrCorrupt, out.NextOffset, v.Partition)
		}
		for _, e := range entries[:min(len(entries), limit-len(out.Segments))] {
			out.Segments = append(out.Segments, &varvev1.SegmentRange{
				Object:   segments.ObjectKey(segments.ClusterID(s.g.ClusterID()), segments.GatewayID(e.Gateway), e.Number),
				Position: e.Position, Length: e.Length, FirstOffset: e.First, EndOffset: e.End,
				RecordCount: e.Records, MinTimestamp: e.MinTimestamp, MaxTimestamp: e.MaxTimestamp})
			out.NextOffset = e.End
		}
	}
	return out, nil
}

// each calls f for partitions, so many at once, and returns the first error with the
// partition that it is about.
func (s *topicService) each(ctx context.Context, t *metadata.Topic, ids []metadata.PartitionID, atOnce int, f func(context.Context, metadata.PartitionID) error) error {
	group, limited := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, id := range ids {
		if limited.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := f(limited, id); err != nil {
				return classify(err).withTopic(t.Name).withPartition(id.Number)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func allPartitions(t *metadata.Topic) []metadata.PartitionID {
	ids := make([]metadata.PartitionID, t.Partitions)
	for i := range ids {
		ids[i] = metadata.PartitionID{Topic: t.ID, Number: int32(i)}
	}
	return ids
}

// partitionsOf names the partitions that were asked for, in order and once; none: all.
func partitionsOf(t *metadata.Topic, asked []int32) ([]metadata.PartitionID, error) {
	if len(asked) == 0 {
		return allPartitions(t), nil
	}
	asked = slices.Compact(slices.Sorted(slices.Values(asked)))
	ids := make([]metadata.PartitionID, len(asked))
	for i, n := range asked {
		id, err := partitionOf(t, n)
		if err != nil {
			return nil, err
		}
		ids[i] = id
	}
	return ids, nil
}

func topicMessage(t *metadata.Topic) *varvev1.Topic {
	return &varvev1.Topic{Name: t.Name, Id: t.ID.String(), Partitions: t.Partitions, Config: t.Set, State: string(t.State), CreatedAt: t.CreatedAt}
}
