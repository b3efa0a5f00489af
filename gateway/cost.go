package gateway

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"connectrpc.com/connect/v2"
	"golang.org/x/sync/errgroup"

	peerv1 "github.com/varvelog/varve/api/varve/peer/v1"
	"github.com/varvelog/varve/api/varve/peer/v1/peerv1connect"
	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/bill"
	"github.com/varvelog/varve/metadata"
)

const (
	// accountsAtOnce is how many gateways are asked for their counters at once, accountTime how long each has.
	accountsAtOnce = 32
	accountTime    = 2 * time.Second
	// storedPartitions bounds the partitions that are read to say what is stored, unless all is asked for.
	storedPartitions = 10_000
)

// Cost says what topics have used, by the counters of all gateways that live.
func (s *clusterService) Cost(ctx context.Context, r *varvev1.CostRequest) (*varvev1.CostResponse, error) {
	if r.GetTopic() != "" {
		t, err := s.g.topics.Get(ctx, r.GetTopic())
		if err != nil {
			return nil, err
		}
		return s.g.costOf(ctx, t, nil)
	}
	topics, err := s.g.topics.List(ctx, "", "", 0)
	if err != nil {
		return nil, err
	}
	out, sum := s.g.statements(ctx, nil)
	out.Cluster = usedMessage(&sum.Cluster)
	gone := sum.Rest
	used := make(map[metadata.TopicID]bool, len(sum.Topics))
	for _, t := range topics {
		if u, ok := sum.Topics[t.ID]; ok {
			used[t.ID] = true
			out.Topics = append(out.Topics, &varvev1.TopicUsed{Topic: t.Name, TopicId: t.ID.String(), Used: usedMessage(&u)})
		}
	}
	topics = slices.DeleteFunc(topics, func(t *metadata.Topic) bool { return !used[t.ID] })
	for id, u := range sum.Topics {
		if !used[id] {
			gone.Add(&u)
		}
	}
	if err := s.stored(ctx, topics, out.Topics, r.GetAll()); err != nil {
		return nil, err
	}
	if gone != (bill.Usage{}) {
		out.Topics = append(out.Topics, &varvev1.TopicUsed{Used: usedMessage(&gone)})
	}
	return out, nil
}

// costOf is the answer for one topic. partitions are its own as described, or nil.
func (g *Gateway) costOf(ctx context.Context, t *metadata.Topic, partitions []*varvev1.PartitionInfo) (*varvev1.CostResponse, error) {
	out, sum := g.statements(ctx, &t.ID)
	used := sum.Topics[t.ID]
	topic := &varvev1.TopicUsed{Topic: t.Name, TopicId: t.ID.String(), Used: usedMessage(&used), StoredBytes: new(int64)}
	out.Topics = []*varvev1.TopicUsed{topic}
	if partitions == nil {
		service := &clusterService{g}
		return out, service.stored(ctx, []*metadata.Topic{t}, out.Topics, true)
	}
	for _, p := range partitions {
		*topic.StoredBytes += p.GetBytes()
	}
	return out, nil
}

// stored says for each topic what its indexes hold, if that is not too much to ask for.
func (s *clusterService) stored(ctx context.Context, topics []*metadata.Topic, out []*varvev1.TopicUsed, all bool) error {
	partitions := 0
	for _, t := range topics {
		partitions += int(t.Partitions)
	}
	if partitions > storedPartitions && !all {
		return nil
	}
	service := &topicService{s.g}
	for i, t := range topics {
		var sum atomic.Int64
		err := service.each(ctx, t, allPartitions(t), partitionsAtOnce, func(ctx context.Context, id metadata.PartitionID) error {
			bytes, err := s.g.storedBytes(ctx, id)
			sum.Add(bytes)
			return err
		})
		if err != nil {
			return err
		}
		bytes := sum.Load()
		out[i].StoredBytes = &bytes
	}
	return nil
}

// storedBytes is what a partition's index holds. One that nobody here has asked for takes a read of its lease
// row, and a call if another gateway sequences it: not that one's journal, as a view from the table would.
func (g *Gateway) storedBytes(ctx context.Context, id metadata.PartitionID) (int64, error) {
	if p := g.partitions.peek(id); p != nil {
		v, err := g.viewOf(ctx, p)
		if err != nil {
			return 0, err
		}
		return v.Bytes, nil
	}
	lease, err := metadata.ReadLease(ctx, g.table, id, metadata.Eventual)
	if errors.Is(err, metadata.ErrNotFound) {
		return 0, nil // nothing was ever appended
	}
	if err != nil {
		return 0, err
	}
	if !lease.Released && lease.Journal != g.ID() && g.members.lives(lease.Journal) {
		if v, err := g.peers.read(ctx, lease.Journal, id); err == nil {
			return v.Bytes, nil
		}
	}
	return lease.View().Bytes, nil // as of its last checkpoint, should its gateway not answer
}

// statements asks all gateways that live for their counters, of one topic or of everything, and adds them up.
func (g *Gateway) statements(ctx context.Context, topic *metadata.TopicID) (*varvev1.CostResponse, bill.Statement) {
	own := g.statement(topic)
	out := &varvev1.CostResponse{ClusterId: g.ClusterID(), Bucket: schemeOf(g.store.String()), Table: schemeOf(g.table.String()),
		FlushIntervalMs: g.config.FlushInterval.Milliseconds(), SegmentBytes: g.config.SegmentBytes}
	out.Gateways = []*varvev1.GatewayUsed{{Id: string(g.ID()), Address: g.config.Address, Since: own.Since.UnixMilli(), CountedMs: own.Counted.Milliseconds()}}
	others := g.members.others(metadata.GatewayLive, metadata.GatewayDraining)
	slices.SortFunc(others, func(a, b metadata.Gateway) int { return cmp.Compare(a.ID, b.ID) })
	answers := make([]bill.Statement, len(others))
	faults := make([]error, len(others))
	var group errgroup.Group
	group.SetLimit(accountsAtOnce)
	for i := range others {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, accountTime)
			defer cancel()
			answers[i], faults[i] = g.peers.account(ctx, others[i].ID, topic)
			return nil
		})
	}
	group.Wait() // faults has the errors
	for i := range others {
		told := &varvev1.GatewayUsed{Id: string(others[i].ID), Address: others[i].Address}
		out.Gateways = append(out.Gateways, told)
		if faults[i] != nil {
			told.Error = faults[i].Error()
			continue
		}
		told.Since, told.CountedMs = answers[i].Since.UnixMilli(), answers[i].Counted.Milliseconds()
		own.Merge(&answers[i])
	}
	return out, own
}

func (g *Gateway) statement(topic *metadata.TopicID) bill.Statement {
	if topic != nil {
		return g.ledger.Of(*topic)
	}
	return g.ledger.Statement()
}

// schemeOf is how the URL of a bucket or table begins.
func schemeOf(place string) string {
	scheme, _, _ := strings.Cut(place, "://")
	return scheme
}

// account asks another gateway for its counters.
func (s *peers) account(ctx context.Context, to metadata.GatewayID, topic *metadata.TopicID) (out bill.Statement, err error) {
	request := &peerv1.AccountRequest{}
	if topic != nil {
		request.Topic = topic[:]
	}
	err = s.call(ctx, to, func(ctx context.Context, client peerv1connect.PeerServiceClient, call *peerv1.Call) error {
		request.Call = call
		answer, err := client.Account(ctx, request)
		if err != nil {
			return err
		}
		out = bill.Statement{Since: time.UnixMilli(answer.GetSince()), Counted: time.Duration(answer.GetCountedMs()) * time.Millisecond,
			Cluster: usageOf(answer.GetCluster()), Rest: usageOf(answer.GetRest()), Topics: make(map[metadata.TopicID]bill.Usage, len(answer.GetTopics()))}
		for _, a := range answer.GetTopics() {
			var id metadata.TopicID
			if copy(id[:], a.GetTopic()) == len(id) {
				out.Topics[id] = usageOf(a.GetUsed())
			}
		}
		return nil
	})
	return out, err
}

// usageOf takes the units that both sides know.
func usageOf(units []uint64) (u bill.Usage) {
	copy(u[:], units)
	return u
}

// Account implements peerv1connect.PeerServiceHandler.
func (s *peerService) Account(_ context.Context, r *peerv1.AccountRequest) (*peerv1.AccountResponse, error) {
	if err := s.check(r.GetCall()); err != nil {
		return nil, err
	}
	var topic *metadata.TopicID
	if asked := r.GetTopic(); len(asked) > 0 {
		topic = new(metadata.TopicID)
		if copy(topic[:], asked) != len(asked) || len(asked) != len(topic) {
			return nil, connect.Errorf(connect.CodeInvalidArgument, "a topic of %d bytes", len(asked))
		}
	}
	told := s.g.statement(topic)
	out := &peerv1.AccountResponse{Since: told.Since.UnixMilli(), CountedMs: told.Counted.Milliseconds(), Cluster: told.Cluster[:], Rest: told.Rest[:]}
	for id, used := range told.Topics {
		out.Topics = append(out.Topics, &peerv1.Account{Topic: id[:], Used: used[:]})
	}
	return out, nil
}

// usedMessage is a usage in the words of the API.
func usedMessage(u *bill.Usage) *varvev1.Used {
	return &varvev1.Used{
		FlushPuts: u[bill.FlushPuts], MergePuts: u[bill.MergePuts], OtherPuts: u[bill.OtherPuts], Lists: u[bill.Lists],
		ReadGets: u[bill.ReadGets], MergeGets: u[bill.MergeGets], OtherGets: u[bill.OtherGets], Deletes: u[bill.Deletes],
		BytesPut: u[bill.BytesPut], BytesGot: u[bill.BytesGot],
		CommitUnits: u[bill.CommitUnits], TrimUnits: u[bill.TrimUnits], CheckpointUnits: u[bill.CheckpointUnits], MergeUnits: u[bill.MergeUnits],
		BeatUnits: u[bill.BeatUnits], OtherWriteUnits: u[bill.OtherWriteUnits],
		IndexReadUnits: u[bill.IndexReadUnits], MemberReadUnits: u[bill.MemberReadUnits], OtherReadUnits: u[bill.OtherReadUnits],
		AppendedBytes: u[bill.AppendedBytes], AppendedRecords: u[bill.AppendedRecords],
	}
}
