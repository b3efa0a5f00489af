package gateway

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"connectrpc.com/connect/v2"
	"github.com/google/go-cmp/cmp"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments/batch"
)

func batchOf(t *testing.T, values ...[]byte) []byte {
	t.Helper()
	b := batch.NewBuilder(batch.None)
	for i, v := range values {
		if err := b.Append(batch.Record{Timestamp: int64(1000 + i), Value: v}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := b.Build(batch.NoProducer)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// wantError checks an error's code and reason.
func wantError(t *testing.T, err error, code connect.Code, reason string) {
	t.Helper()
	var failed *connect.Error
	if !errors.As(err, &failed) || failed.Code() != code || infoOf(t, failed).GetReason() != reason {
		t.Errorf("got %v, want %v with %s", err, code, reason)
	}
}

func TestTopics(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	topics := varvev1connect.NewTopicServiceClient(protocols(t, g.url)["connect"])
	ctx := t.Context()
	made, err := topics.CreateTopic(ctx, &varvev1.CreateTopicRequest{Name: "quakes", Config: map[string]string{"retention.ms": "5"}})
	if err != nil || !made.GetCreated() || made.GetTopic().GetPartitions() != 1 || made.GetTopic().GetState() != "active" {
		t.Fatalf("%v, %v", made, err)
	}
	_, err = topics.CreateTopic(ctx, &varvev1.CreateTopicRequest{Name: "quakes"})
	wantError(t, err, connect.CodeAlreadyExists, reasonTopicExists)
	again, err := topics.CreateTopic(ctx, &varvev1.CreateTopicRequest{Name: "quakes", Partitions: 9, IfNotExists: true})
	if err != nil || again.GetCreated() || again.GetTopic().GetId() != made.GetTopic().GetId() {
		t.Fatalf("%v, %v", again, err)
	}
	_, err = topics.CreateTopic(ctx, &varvev1.CreateTopicRequest{Name: "..", Partitions: -1, Config: map[string]string{"x": "y"}})
	wantError(t, err, connect.CodeInvalidArgument, reasonInvalid)
	altered, err := topics.AlterTopic(ctx, &varvev1.AlterTopicRequest{Name: "quakes", Partitions: 3, Set: map[string]string{"cleanup.policy": "compact"}, Unset: []string{"retention.ms"}})
	if err != nil || altered.GetTopic().GetPartitions() != 3 {
		t.Fatalf("%v, %v", altered, err)
	}
	shown, err := topics.DescribeTopic(ctx, &varvev1.DescribeTopicRequest{Name: "quakes"})
	if err != nil || len(shown.GetPartitions()) != 3 || shown.GetPartitions()[2].GetPartition() != 2 || shown.GetPartitions()[2].GetMaxTimestamp() != -1 {
		t.Fatalf("%v, %v", shown, err)
	}
	if diff := cmp.Diff(map[string]string{"cleanup.policy": "compact"}, shown.GetTopic().GetConfig()); diff != "" {
		t.Error(diff)
	}
	for _, e := range shown.GetConfig() {
		if e.GetIsDefault() == (e.GetName() == "cleanup.policy") || e.GetDoc() == "" || e.GetValue() == "" {
			t.Errorf("config entry %v", e)
		}
	}
	_, err = topics.DescribeTopic(ctx, &varvev1.DescribeTopicRequest{Name: "absent"})
	wantError(t, err, connect.CodeNotFound, reasonTopicNotFound)
}

func TestListTopics(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	topics := varvev1connect.NewTopicServiceClient(protocols(t, g.url)["connect"])
	var want, got []string
	for i := range 7 {
		want = append(want, fmt.Sprintf("t%d", i))
		g.create(t, want[i], 1, nil)
	}
	g.create(t, "other", 1, nil)
	pages, token := 0, ""
	for {
		out, err := topics.ListTopics(t.Context(), &varvev1.ListTopicsRequest{Prefix: "t", PageSize: 3, PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		pages++
		for _, topic := range out.GetTopics() {
			got = append(got, topic.GetName())
		}
		if token = out.GetNextPageToken(); token == "" {
			break
		}
	}
	if diff := cmp.Diff(want, got); diff != "" || pages != 3 {
		t.Errorf("%d pages: %s", pages, diff)
	}
	_, err := topics.ListTopics(t.Context(), &varvev1.ListTopicsRequest{PageSize: -1})
	wantError(t, err, connect.CodeInvalidArgument, reasonInvalid)
}

// fill appends n batches of one record to partition 0, at the times 1000, 2000 …
func (g *testGateway) fill(t *testing.T, topic string, n int) {
	t.Helper()
	for i := range n {
		g.produce(t, topic, 0, batch.Record{Timestamp: int64(1000 * (i + 1)), Value: fmt.Appendf(nil, "v%d", i)})
	}
}

func TestTrimTopic(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	topics := varvev1connect.NewTopicServiceClient(protocols(t, g.url)["connect"])
	g.create(t, "a", 2, nil)
	g.fill(t, "a", 10)
	offset := func(n int64) *varvev1.TrimPlace { return &varvev1.TrimPlace{At: &varvev1.TrimPlace_Offset{Offset: n}} }
	for _, c := range []struct {
		what       string
		partitions []int32
		to         *varvev1.TrimPlace
		starts     []int64
		code       connect.Code
		reason     string
	}{
		{"an offset", []int32{0}, offset(2), []int64{2}, 0, ""},
		{"below the start", []int32{0}, offset(1), []int64{2}, 0, ""},
		{"a time, all partitions", nil, &varvev1.TrimPlace{At: &varvev1.TrimPlace_Time{Time: 3500}}, []int64{3, 0}, 0, ""},
		{"before the end", []int32{0, 0}, &varvev1.TrimPlace{At: &varvev1.TrimPlace_BeforeEnd{BeforeEnd: 4}}, []int64{6}, 0, ""},
		{"an offset without partitions", nil, offset(7), nil, connect.CodeInvalidArgument, reasonInvalid},
		{"nowhere", []int32{0}, nil, nil, connect.CodeInvalidArgument, reasonInvalid},
		{"a negative offset", []int32{0}, offset(-1), nil, connect.CodeInvalidArgument, reasonInvalid},
		{"past the end", []int32{0}, offset(11), nil, connect.CodeOutOfRange, reasonOutOfRange},
		{"past the end of an empty one", []int32{1}, offset(1), nil, connect.CodeOutOfRange, reasonOutOfRange},
		{"no such partition", []int32{2}, offset(1), nil, connect.CodeInvalidArgument, reasonPartitionNotFound},
		{"latest", []int32{0}, &varvev1.TrimPlace{At: &varvev1.TrimPlace_Latest{Latest: true}}, []int64{10}, 0, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			out, err := topics.TrimTopic(t.Context(), &varvev1.TrimTopicRequest{Name: "a", Partitions: c.partitions, To: c.to})
			if c.code != 0 {
				wantError(t, err, c.code, c.reason)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var starts []int64
			for _, r := range out.GetResults() {
				starts = append(starts, r.GetStartOffset())
			}
			if diff := cmp.Diff(c.starts, starts); diff != "" {
				t.Error(diff)
			}
		})
	}
	if v, err := g.view(t.Context(), metadata.PartitionID{Topic: g.topicID(t, "a"), Number: 1}); err != nil || v.Epoch != 0 {
		t.Errorf("a partition without records was taken for a trim: %v, %v", v, err)
	}
}

func (g *testGateway) topicID(t *testing.T, name string) metadata.TopicID {
	t.Helper()
	topic, err := g.topics.Get(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return topic.ID
}

func TestDeleteTopic(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true, AutoCreate: 1})
	topics := varvev1connect.NewTopicServiceClient(protocols(t, g.url)["connect"])
	first := g.create(t, "a", 100, nil)
	g.fill(t, "a", 3)
	// One that was cut short after its mark and one close goes on.
	if _, err := g.topics.MarkDeleting(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.router.decide(t.Context(), metadata.PartitionID{Topic: first.ID, Number: 0}, decision{close: true}); err != nil {
		t.Fatal(err)
	}
	_, err := topics.TrimTopic(t.Context(), &varvev1.TrimTopicRequest{Name: "a", To: &varvev1.TrimPlace{At: &varvev1.TrimPlace_Latest{Latest: true}}})
	wantError(t, err, connect.CodeNotFound, reasonTopicDeleted)
	_, err = topics.CreateTopic(t.Context(), &varvev1.CreateTopicRequest{Name: "a", IfNotExists: true})
	wantError(t, err, connect.CodeAlreadyExists, reasonTopicExists)
	if _, err := topics.DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"}); err != nil {
		t.Fatal(err)
	}
	_, err = topics.DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a"})
	wantError(t, err, connect.CodeNotFound, reasonTopicNotFound)
	if _, err := topics.DeleteTopic(t.Context(), &varvev1.DeleteTopicRequest{Name: "a", IfExists: true}); err != nil {
		t.Fatal(err)
	}
	for n := range first.Partitions {
		v, err := g.view(t.Context(), metadata.PartitionID{Topic: first.ID, Number: n})
		if err != nil || !v.Closed {
			t.Fatalf("partition %d is not closed: %v, %v", n, v, err)
		}
	}
	// A topic of the same name begins anew.
	if out := g.produce(t, "a", 0, batch.Record{Value: []byte("new")}); out.GetBaseOffset() != 0 {
		t.Errorf("the first record of the new topic got offset %d", out.GetBaseOffset())
	}
}

// TestSegmentsAndDump lists the objects of a partition and finds each batch in them.
func TestSegmentsAndDump(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	client := protocols(t, g.url)["grpc"]
	topics, cluster, log := varvev1connect.NewTopicServiceClient(client), varvev1connect.NewClusterServiceClient(client), varvev1connect.NewLogServiceClient(client)
	g.create(t, "a", 1, nil)
	g.fill(t, "a", 5)
	from, seen := int64(0), int64(0)
	for from < 5 {
		page, err := topics.ListSegments(t.Context(), &varvev1.ListSegmentsRequest{Name: "a", FromOffset: from, Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range page.GetSegments() {
			if s.GetFirstOffset() != seen || s.GetMinTimestamp() != 1000*(seen+1) {
				t.Fatalf("segment %v, want offset %d", s, seen)
			}
			seen = s.GetEndOffset()
			data, _ := dumpOf(t, cluster, &varvev1.DumpRequest{Object: s.GetObject(), Offset: s.GetPosition(), Length: s.GetLength()})
			if !bytes.Contains(data, fmt.Appendf(nil, "v%d", s.GetFirstOffset())) || int64(len(data)) != s.GetLength() {
				t.Errorf("%v holds %q", s, data)
			}
			whole, size := dumpOf(t, cluster, &varvev1.DumpRequest{Object: s.GetObject()})
			if int64(len(whole)) != size {
				t.Errorf("%d bytes of %d", len(whole), size)
			}
			tail, _ := dumpOf(t, cluster, &varvev1.DumpRequest{Object: s.GetObject(), Offset: -10, Length: 4})
			if !bytes.Equal(tail, whole[len(whole)-10:len(whole)-6]) {
				t.Errorf("bytes from the end: %q", tail)
			}
		}
		from = page.GetNextOffset()
	}
	if page, err := topics.ListSegments(t.Context(), &varvev1.ListSegmentsRequest{Name: "a", FromOffset: 99}); err != nil || page.GetNextOffset() != 5 {
		t.Errorf("past the end: %v, %v", page, err)
	}
	_, err := topics.ListSegments(t.Context(), &varvev1.ListSegmentsRequest{Name: "a", FromOffset: -1})
	wantError(t, err, connect.CodeInvalidArgument, reasonInvalid)
	_, err = log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Partition: 4})
	wantError(t, err, connect.CodeInvalidArgument, reasonPartitionNotFound)
}

func dumpOf(t *testing.T, cluster varvev1connect.ClusterServiceClient, r *varvev1.DumpRequest) (data []byte, size int64) {
	t.Helper()
	data, size, err := tryDump(t, cluster, r)
	if err != nil {
		t.Fatal(err)
	}
	return data, size
}
