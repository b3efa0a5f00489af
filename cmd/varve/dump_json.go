package main

import (
	"bufio"
	"strconv"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// dumpJSON prints an object a line; its kind is segment, span, batch or record.
type dumpJSON struct{ out *bufio.Writer }

func (d dumpJSON) segment(s *segments.Directory) error {
	return printJSON(d.out, struct {
		Kind    string `json:"kind"`
		Object  string `json:"object"`
		Version int    `json:"version"`
		Size    int64  `json:"size"`
		Spans   int    `json:"spans"`
		Batches int    `json:"batches"`
	}{"segment", s.Key(), segments.Version, s.Size, len(s.Spans), s.BatchCount()})
}

func (d dumpJSON) span(s segments.Span) error {
	return printJSON(d.out, struct {
		Kind      string `json:"kind"`
		TopicID   string `json:"topic_id"`
		Partition int32  `json:"partition"`
		Previous  uint64 `json:"previous"`
		Position  int64  `json:"position"`
		Length    int64  `json:"length"`
		Batches   int    `json:"batches"`
	}{"span", s.Topic.String(), s.Partition, s.Previous, s.Position, s.Length, len(s.Batches)})
}

type batchJSON struct {
	Kind                 string `json:"kind"`
	BaseOffset           int64  `json:"base_offset"`
	LastOffset           int64  `json:"last_offset"`
	Count                int32  `json:"count"`
	BaseSequence         int32  `json:"base_sequence"`
	LastSequence         int32  `json:"last_sequence"`
	ProducerID           int64  `json:"producer_id"`
	ProducerEpoch        int16  `json:"producer_epoch"`
	PartitionLeaderEpoch int32  `json:"partition_leader_epoch"`
	IsTransactional      bool   `json:"is_transactional"`
	IsControl            bool   `json:"is_control"`
	Position             int64  `json:"position"`
	TimestampType        string `json:"timestamp_type"`
	BaseTimestamp        int64  `json:"base_timestamp"`
	MaxTimestamp         int64  `json:"max_timestamp"`
	Size                 int    `json:"size"`
	Magic                int8   `json:"magic"`
	CompressCodec        string `json:"compress_codec"`
	CRC                  uint32 `json:"crc"`
	IsValid              bool   `json:"is_valid"`
	// Fault says why it is not valid.
	Fault string `json:"fault"`
}

func (d dumpJSON) batch(b foundBatch) error {
	h := b.header
	return printJSON(d.out, batchJSON{
		"batch", h.BaseOffset, h.EndOffset() - 1, h.Count, h.BaseSequence, lastSequence(h), h.ProducerID, h.ProducerEpoch,
		h.LeaderEpoch, h.Transactional(), h.Control(), b.position, timestampType(h), h.BaseTimestamp, h.MaxTimestamp,
		len(b.data), h.Magic, h.Codec().String(), h.CRC, b.fault == "", b.fault,
	})
}

func (d dumpJSON) record(h batch.Header, index int, r batch.Record) error {
	line := append([]byte(nil), `{"kind":"record","offset":`...)
	line = strconv.AppendInt(line, r.Offset, 10)
	line = append(line, `,"timestamp":`...)
	line = strconv.AppendInt(line, r.Timestamp, 10)
	line = append(line, `,"sequence":`...)
	line = strconv.AppendInt(line, int64(sequenceOf(h, index)), 10)
	line = append(line, ',')
	line = appendJSONBytes(line, "key", r.Key)
	line = append(line, ',')
	line = appendJSONBytes(line, "value", r.Value)
	line = append(line, `,"headers":`...)
	line = appendHeadersJSON(line, []client.Header(r.Headers))
	_, err := d.out.Write(append(line, '}', '\n'))
	return err
}
