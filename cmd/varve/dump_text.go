package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// dumpText prints in the words of kafka-dump-log.
type dumpText struct{ out *bufio.Writer }

func (d dumpText) segment(s *segments.Directory) error {
	_, err := fmt.Fprintf(d.out, "segment: %s version: %d size: %d spans: %d batches: %d\n", s.Key(), segments.Version, s.Size, len(s.Spans), s.BatchCount())
	return err
}

func (d dumpText) span(s segments.Span) error {
	_, err := fmt.Fprintf(d.out, "span: topicId: %v partition: %d previous: %d position: %d length: %d batches: %d\n",
		s.Topic, s.Partition, s.Previous, s.Position, s.Length, len(s.Batches))
	return err
}

func (d dumpText) batch(b foundBatch) error {
	h := b.header
	_, err := fmt.Fprintf(d.out, "baseOffset: %d lastOffset: %d count: %d baseSequence: %d lastSequence: %d producerId: %d producerEpoch: %d "+
		"partitionLeaderEpoch: %d isTransactional: %t isControl: %t position: %d %s: %d size: %d magic: %d compresscodec: %v crc: %d isvalid: %t\n",
		h.BaseOffset, h.EndOffset()-1, h.Count, h.BaseSequence, lastSequence(h), h.ProducerID, h.ProducerEpoch,
		h.LeaderEpoch, h.Transactional(), h.Control(), b.position, timestampType(h), h.MaxTimestamp, len(b.data), h.Magic, h.Codec(), h.CRC, b.fault == "")
	return err
}

func (d dumpText) record(h batch.Header, index int, r batch.Record) error {
	var keys []string
	for _, header := range r.Headers {
		keys = append(keys, header.Key)
	}
	_, err := fmt.Fprintf(d.out, "| offset: %d %s: %d keySize: %s valueSize: %s sequence: %d headerKeys: [%s]%s%s\n",
		r.Offset, timestampType(h), r.Timestamp, appendSize(nil, r.Key), appendSize(nil, r.Value), sequenceOf(h, index),
		strings.Join(keys, ","), payload(" key: ", r.Key), payload(" payload: ", r.Value))
	return err
}

// payload shows bytes; null not at all, as kafka-dump-log does.
func payload(label string, b []byte) string {
	if b == nil {
		return ""
	}
	return label + string(b)
}

func timestampType(h batch.Header) string {
	if h.AppendTime() {
		return "LogAppendTime"
	}
	return "CreateTime"
}

func lastSequence(h batch.Header) int32 { return sequenceOf(h, int(h.LastOffsetDelta)) }

// sequenceOf is -1 without a producer. Sequences wrap to 0 behind the largest int32.
func sequenceOf(h batch.Header, delta int) int32 {
	if h.BaseSequence < 0 {
		return -1
	}
	return int32((int64(h.BaseSequence) + int64(delta)) & 0x7fffffff)
}
