package segments_test

import (
	"bytes"
	"fmt"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/faultfs"
)

const (
	sampleGateway = segments.GatewayID("gw-1")
	samplePath    = "/buffer/gw-1/00000000000000000007.buf"
)

// sampleBatches are the batches of the golden file.
func sampleBatches() []segments.RecoveredBatch {
	plain := segments.BatchInfo{
		Offsets: 3, Records: 3, MinTimestamp: 1000, MaxTimestamp: 3000, LastTimestamp: 2000, CRC: 0xCAFEBABE,
		ProducerID: -1, ProducerEpoch: -1, BaseSequence: -1, Ack: segments.AckBuffered, ExpectedOffset: -1,
	}
	all := segments.BatchInfo{
		Offsets: 2, Records: 1, MinTimestamp: -5, MaxTimestamp: 1 << 41, LastTimestamp: 7, CRC: 1,
		ProducerID: 1 << 40, ProducerEpoch: 12, BaseSequence: 99, Ack: segments.AckCommitted,
		ExpectedOffset: 17, FencingToken: "token", HasFencingToken: true,
	}
	batches := []segments.RecoveredBatch{
		{Span: segments.SpanID{Topic: segments.TopicID{1, 2, 3}, Partition: 4}, Info: plain, Data: []byte("first batch")},
		{Span: segments.SpanID{Topic: segments.TopicID{0xFF}, Partition: 0}, Info: all, Data: []byte("second, with everything")},
		{Span: segments.SpanID{Topic: segments.TopicID{1, 2, 3}, Partition: 4}, Info: plain, Data: bytes.Repeat([]byte{0}, 40)},
	}
	for i := range batches {
		batches[i].Info.Size = int32(len(batches[i].Data))
	}
	return batches
}

// bufferSample is the file that holds the first n sample batches.
func bufferSample(n int) []byte {
	content, _ := sampleFile(n)
	return content
}

// sampleFile also returns where each batch ends.
func sampleFile(n int) (content []byte, ends []int64) {
	fs := faultfs.New()
	dir, err := segments.OpenBufferDir(fs, "/buffer", segments.BufferConfig{Entropy: bytes.NewReader([]byte("\x01marker!"))})
	must(err)
	file, err := dir.Create(sampleGateway, 7)
	must(err)
	for _, batch := range sampleBatches()[:n] {
		end, err := file.Append(batch.Span, batch.Info, batch.Data)
		must(err)
		ends = append(ends, end)
	}
	content, err = fs.Content(samplePath)
	must(err)
	return content, ends
}

// must ends the test run: the sample needs no fault to be made.
func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("sample buffer file: %v", err))
	}
}
