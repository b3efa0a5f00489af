package clienttest

import (
	"slices"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/segments/batch"
)

// partition is a log in memory.
type partition struct {
	topic      string
	number     int32
	start, end int64
	batches    []storedBatch
	producers  map[int64]*producerState
	token      string
}

type storedBatch struct {
	data []byte
	info batch.Info
}

// producerState remembers the last five batches of a producer.
type producerState struct {
	epoch int16
	last  []remembered
}

type remembered struct {
	sequence, count int32
	base            int64
}

const rememberedBatches = 5

// append judges one batch and takes it, or finds it again.
func (p *partition) append(data []byte, req *varvev1.ProduceRequest) (*varvev1.ProduceResult, error) {
	info, err := batch.Validate(data, batch.DefaultLimits())
	if err != nil {
		return nil, fail(connect.CodeInvalidArgument, p.info("INVALID_BATCH"), "%v", err)
	}
	if req.GetAcks() == varvev1.Acks_ACKS_BUFFERED && (info.ProducerID >= 0 || req.ExpectedOffset != nil || req.FencingToken != nil) {
		return nil, fail(connect.CodeInvalidArgument, p.info("BUFFERED_CONDITION"), "buffered acks take no producer id and no condition")
	}
	if base, ok, err := p.judgeProducer(info.Header); err != nil {
		return nil, err
	} else if ok {
		return p.result(base, info, req, true), nil
	}
	if err := p.judgeOffset(req.ExpectedOffset); err != nil {
		return nil, err
	}
	if req.FencingToken != nil && req.GetFencingToken() != p.token {
		return nil, p.otherToken()
	}
	base := p.end
	stored := slices.Clone(data)
	batch.SetBaseOffset(stored, base, 0)
	info.BaseOffset = base
	p.batches = append(p.batches, storedBatch{stored, info})
	p.end += int64(info.Count)
	p.remember(info.Header, base)
	return p.result(base, info, req, false), nil
}

func (p *partition) result(base int64, info batch.Info, req *varvev1.ProduceRequest, duplicate bool) *varvev1.ProduceResult {
	r := &varvev1.ProduceResult{
		Partition: p.number, BaseOffset: base, LastOffset: base + int64(info.Count) - 1, Timestamp: info.MaxTimestamp,
		Acks: varvev1.Acks_ACKS_COMMITTED, Duplicate: duplicate, LogStartOffset: p.start, RecordCount: info.Count,
	}
	if req.GetAcks() == varvev1.Acks_ACKS_BUFFERED {
		r.Acks, r.BaseOffset, r.LastOffset = varvev1.Acks_ACKS_BUFFERED, -1, -1
	}
	return r
}

// judgeProducer returns the first answer for a batch that was appended before.
func (p *partition) judgeProducer(h batch.Header) (base int64, duplicate bool, err error) {
	if h.ProducerID < 0 {
		return 0, false, nil
	}
	state := p.producers[h.ProducerID]
	if state == nil {
		if h.BaseSequence != 0 {
			return 0, false, fail(connect.CodeFailedPrecondition, p.info("UNKNOWN_PRODUCER"), "producer %d is not known", h.ProducerID)
		}
		return 0, false, nil
	}
	if h.ProducerEpoch < state.epoch {
		return 0, false, fail(connect.CodeAborted, p.info("PRODUCER_FENCED"), "epoch %d is over", h.ProducerEpoch)
	}
	for _, r := range state.last {
		if r.sequence == h.BaseSequence && r.count == h.Count {
			return r.base, true, nil
		}
	}
	last := state.last[len(state.last)-1]
	next := last.sequence + last.count
	if h.BaseSequence < next {
		return 0, false, fail(connect.CodeFailedPrecondition, p.info("DUPLICATE_FORGOTTEN"), "sequence %d is older than what is remembered", h.BaseSequence)
	}
	if h.BaseSequence != next {
		e := p.info("OUT_OF_ORDER_SEQUENCE")
		e.Retriable = true
		return 0, false, fail(connect.CodeAborted, e, "sequence %d, but %d is next", h.BaseSequence, next)
	}
	return 0, false, nil
}

func (p *partition) remember(h batch.Header, base int64) {
	if h.ProducerID < 0 {
		return
	}
	state := p.producers[h.ProducerID]
	if state == nil {
		state = &producerState{}
		p.producers[h.ProducerID] = state
	}
	state.epoch = h.ProducerEpoch
	state.last = append(state.last, remembered{h.BaseSequence, h.Count, base})
	if len(state.last) > rememberedBatches {
		state.last = state.last[1:]
	}
}

// records yields what is readable, in offset order.
func (p *partition) records(yield func(batch.Record) bool) {
	for _, b := range p.batches {
		for r, err := range batch.Records(b.data, batch.DefaultLimits()) {
			if err != nil {
				panic("clienttest: a batch that was valid when it came does not decode: " + err.Error())
			}
			if r.Offset >= p.start && !yield(r) {
				return
			}
		}
	}
}

// atOrAfter is the first offset whose timestamp is at or after ms.
func (p *partition) atOrAfter(ms int64) (offset, timestamp int64, ok bool) {
	for r := range p.records {
		if r.Timestamp >= ms {
			return r.Offset, r.Timestamp, true
		}
	}
	return -1, -1, false
}

// place resolves a place, from the log's start when it is absent.
func (p *partition) place(at *varvev1.Place) (int64, error) {
	offset := p.start
	switch place := at.GetAt().(type) {
	case *varvev1.Place_Offset:
		offset = place.Offset
	case *varvev1.Place_Time:
		var ok bool
		if offset, _, ok = p.atOrAfter(place.Time); !ok {
			offset = p.end
		}
	case *varvev1.Place_Latest:
		offset = p.end
	case *varvev1.Place_BeforeEnd:
		offset = max(p.start, p.end-place.BeforeEnd)
	}
	if offset < p.start || offset > p.end {
		return 0, p.outOfRange(offset)
	}
	return offset, nil
}

// read returns whole batches from offset on, at least one if there is one that fits the range, and where
// they bring the reader.
func (p *partition) read(offset, end int64, maxBytes int, between *varvev1.TimeRange) (data []byte, next int64) {
	next = offset
	for _, b := range p.batches {
		switch {
		case b.info.EndOffset() <= offset:
			continue
		case b.info.BaseOffset >= end:
			return data, next
		case between != nil && (b.info.MaxTimestamp < between.GetStart() || b.info.MinTimestamp >= between.GetEnd()):
		case len(data) > 0 && len(data)+len(b.data) > maxBytes:
			return data, next
		default:
			data = append(data, b.data...)
		}
		next = min(b.info.EndOffset(), end)
	}
	return data, next
}

// asOf is the partition as it was when end was the end of one of its batches, or before.
func (p *partition) asOf(end int64) *partition {
	then := *p
	then.end = p.start
	then.batches = nil
	for i, b := range p.batches {
		if b.info.EndOffset() <= end {
			then.end, then.batches = b.info.EndOffset(), p.batches[:i+1]
		}
	}
	return &then
}

// late is a partition as this gateway knows it when it answers a reader who has seen so much.
func (s *Server) late(p *partition, seen int64) *partition {
	if s.Lag == nil {
		return p
	}
	then := p.asOf(p.end - s.Lag())
	if then.end < seen && !s.IgnoreSeen {
		return p
	}
	return then
}

func (p *partition) info(reason string) *varvev1.ErrorInfo {
	return &varvev1.ErrorInfo{Reason: reason, Topic: p.topic, Partition: &p.number}
}

func (p *partition) outOfRange(offset int64) error {
	e := p.info("OUT_OF_RANGE")
	start, end := p.start, p.end
	e.LogStartOffset, e.NextOffset = &start, &end
	return fail(connect.CodeOutOfRange, e, "offset %d: the log holds %d to %d", offset, start, end)
}

// fail is an error as a gateway answers it.
func fail(code connect.Code, info *varvev1.ErrorInfo, format string, args ...any) error {
	if info == nil {
		info = &varvev1.ErrorInfo{}
	}
	detail, err := connectproto.NewErrorDetail(info)
	if err != nil {
		panic("clienttest: " + err.Error())
	}
	return connect.Errorf(code, format, args...).WithDetail(detail)
}

// Failure is an error for hooks, as a gateway answers it.
func Failure(code connect.Code, info *varvev1.ErrorInfo) error { return fail(code, info, "injected") }

// Refusal is an error for hooks: retriable, and with an outcome that is known or not.
func Refusal(unknownOutcome bool) error {
	return fail(connect.CodeUnavailable, &varvev1.ErrorInfo{Reason: "INJECTED", Retriable: true, UnknownOutcome: unknownOutcome}, "injected")
}
