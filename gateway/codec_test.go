package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// produceRequests draws requests, plausible and not.
func produceRequests() *rapid.Generator[*varvev1.ProduceRequest] {
	return rapid.Custom(func(t *rapid.T) *varvev1.ProduceRequest {
		m := &varvev1.ProduceRequest{Topic: rapid.String().Draw(t, "topic"), Acks: varvev1.Acks(rapid.Int32().Draw(t, "acks"))}
		m.RecordBatch = rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "batch")
		if rapid.Bool().Draw(t, "has partition") {
			m.Partition = proto.Int32(rapid.Int32().Draw(t, "partition"))
		}
		if rapid.Bool().Draw(t, "conditional") {
			m.ExpectedOffset, m.FencingToken = proto.Int64(rapid.Int64().Draw(t, "offset")), proto.String(rapid.String().Draw(t, "token"))
		}
		for range rapid.IntRange(0, 3).Draw(t, "records") {
			m.Records = append(m.Records, &varvev1.Record{Key: rapid.SliceOf(rapid.Byte()).Draw(t, "key"),
				Headers: []*varvev1.Header{{Key: rapid.String().Draw(t, "header")}}})
		}
		return m
	})
}

// encodings draws the bytes of a request: as they are encoded here, with fields
// repeated or unknown, cut short, or arbitrary.
func encodings(t *rapid.T) []byte {
	body, err := proto.Marshal(produceRequests().Draw(t, "request"))
	if err != nil {
		t.Fatal(err)
	}
	switch rapid.SampledFrom([]string{"whole", "twice", "unknown", "cut", "flipped", "random"}).Draw(t, "shape") {
	case "twice":
		again, err := proto.Marshal(produceRequests().Draw(t, "again"))
		if err != nil {
			t.Fatal(err)
		}
		return append(body, again...)
	case "unknown":
		extra := protowire.AppendTag(nil, protowire.Number(rapid.IntRange(5, 30).Draw(t, "number")), protowire.VarintType)
		return append(protowire.AppendVarint(extra, 7), body...)
	case "cut":
		return body[:rapid.IntRange(0, len(body)).Draw(t, "length")]
	case "flipped":
		if len(body) > 0 {
			body[rapid.IntRange(0, len(body)-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
		return body
	case "random":
		return rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
	}
	return body
}

func TestCodecDecodesAsProto(t *testing.T) {
	codec := newBinaryCodec(nil)
	rapid.Check(t, func(t *rapid.T) {
		body := encodings(t)
		want := &varvev1.ProduceRequest{}
		wantErr := proto.Unmarshal(body, want)
		for way, src := range map[string]io.Reader{"buffer": bytes.NewBuffer(body), "reader": iotest.HalfReader(bytes.NewReader(body))} {
			got := &varvev1.ProduceRequest{}
			if err := codec.UnmarshalRead(context.Background(), src, got); (err != nil) != (wantErr != nil) {
				t.Fatalf("%s: %v, proto says %v", way, err, wantErr)
			}
			if wantErr == nil && !proto.Equal(got, want) {
				t.Fatalf("%s: got %v, want %v", way, got, want)
			}
			if n, err := src.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("%s: not read to its end: %d bytes, %v", way, n, err)
			}
		}
	})
}

func TestCodecPassesReadErrorsOn(t *testing.T) {
	err := newBinaryCodec(nil).UnmarshalRead(t.Context(), iotest.ErrReader(io.ErrClosedPipe), &varvev1.ProduceRequest{})
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

func TestCodecKeepsNothingOfTheTransportsBuffer(t *testing.T) {
	body, err := proto.Marshal(&varvev1.ProduceRequest{Topic: "t", RecordBatch: []byte("batch"), Records: []*varvev1.Record{{Key: []byte("key")}}})
	if err != nil {
		t.Fatal(err)
	}
	buffer := bytes.NewBuffer(body)
	m := &varvev1.ProduceRequest{}
	if err := newBinaryCodec(nil).UnmarshalRead(t.Context(), buffer, m); err != nil {
		t.Fatal(err)
	}
	clear(body)
	if string(m.RecordBatch) != "batch" || string(m.Records[0].Key) != "key" || m.Topic != "t" {
		t.Errorf("the message changed with the buffer: %v", m)
	}
}

func TestCodecRefusesWhatIsNoMessage(t *testing.T) {
	if err := newBinaryCodec(nil).UnmarshalRead(t.Context(), strings.NewReader(""), new(int)); err == nil {
		t.Error("an int was decoded")
	}
}

func TestJSONCodec(t *testing.T) {
	codec := newJSONCodec()
	var out bytes.Buffer
	if err := codec.MarshalWrite(t.Context(), &out, &varvev1.ProduceResult{}); err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(out.Bytes(), &fields); err != nil {
		t.Fatal(err)
	}
	if fields["baseOffset"] != "0" || fields["partition"] != 0.0 {
		t.Errorf("zero values are missing: %s", out.String())
	}
	if _, there := fields["error"]; there {
		t.Errorf("an absent message is there: %s", out.String())
	}
	out.Reset()
	if err := codec.MarshalWrite(t.Context(), &out, &varvev1.ReadRecord{Value: []byte{}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), `"value"`) || strings.Contains(out.String(), `"key"`) {
		t.Errorf("absent must be told from empty: %s", out.String())
	}
	if err := codec.UnmarshalRead(t.Context(), strings.NewReader(`{"topik":"t"}`), &varvev1.ProduceRequest{}); err == nil {
		t.Error("an unknown field was taken")
	}
}

// BenchmarkDecodeProduce shows what becomes of a large batch on its way to the core. The
// transport's copy out of its own buffer is not in it.
func BenchmarkDecodeProduce(b *testing.B) {
	data := make([]byte, 1<<20)
	rand.Read(data)
	body, err := proto.Marshal(&varvev1.ProduceRequest{Topic: "t", Partition: proto.Int32(1), RecordBatch: data})
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, decode func(m *varvev1.ProduceRequest) error) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if err := decode(&varvev1.ProduceRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	ctx := context.Background()
	stock, ours := connectproto.NewBinaryCodec(), newBinaryCodec(nil)
	run("stock", func(m *varvev1.ProduceRequest) error { return stock.UnmarshalRead(ctx, bytes.NewBuffer(body), m) })
	run("buffer", func(m *varvev1.ProduceRequest) error { return ours.UnmarshalRead(ctx, bytes.NewBuffer(body), m) })
}
