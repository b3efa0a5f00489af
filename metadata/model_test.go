package metadata_test

import (
	"cmp"
	"maps"
	"slices"

	"github.com/varvelog/varve/metadata"
)

// model is a partition told naively: everything is kept, nothing is folded.
type model struct {
	start, next int64
	fence       string
	closed      bool
	log         []logged
	uploaders   map[metadata.GatewayID]*modelUploader
	producers   map[int64]*modelProducer
}

type logged struct {
	offset int64
	batch  metadata.Batch
}

type modelUploader struct {
	numbers  []uint64
	verdicts [][]metadata.BatchVerdict
}

type modelProducer struct {
	epoch int16
	log   []logged // of this epoch
}

func newModel() *model {
	return &model{uploaders: map[metadata.GatewayID]*modelUploader{}, producers: map[int64]*modelProducer{}}
}

func (m *model) clone() *model {
	c := *m
	c.log = slices.Clone(m.log)
	c.uploaders, c.producers = maps.Clone(m.uploaders), maps.Clone(m.producers)
	for id, u := range c.uploaders {
		c.uploaders[id] = &modelUploader{slices.Clone(u.numbers), slices.Clone(u.verdicts)}
	}
	for id, p := range c.producers {
		c.producers[id] = &modelProducer{p.epoch, slices.Clone(p.log)}
	}
	return &c
}

func (m *model) lastNumber(u metadata.GatewayID) uint64 {
	if s := m.uploaders[u]; s != nil {
		return s.numbers[len(s.numbers)-1]
	}
	return 0
}

// refer judges and applies a reference.
func (m *model) refer(ref *metadata.Reference) metadata.Verdict {
	v := metadata.Verdict{Start: m.start, Next: m.next}
	if m.closed {
		v.Status = metadata.Refused
		return v
	}
	last := m.lastNumber(ref.Uploader)
	if ref.Number <= last {
		v.Status = metadata.Repeated
		u := m.uploaders[ref.Uploader]
		if i := slices.Index(u.numbers, ref.Number); i >= 0 && i >= len(u.numbers)-metadata.AnswersKept {
			v.Batches = u.verdicts[i]
		}
		return v
	}
	if !ref.ByNumber && ref.Previous != last {
		v.Status = metadata.Waiting
		return v
	}
	v.Status = metadata.Judged
	v.Batches = []metadata.BatchVerdict{}
	for _, b := range ref.Batches {
		v.Batches = append(v.Batches, m.batch(b))
	}
	v.Next = m.next
	u := m.uploaders[ref.Uploader]
	if u == nil {
		u = &modelUploader{}
		m.uploaders[ref.Uploader] = u
	}
	u.numbers, u.verdicts = append(u.numbers, ref.Number), append(u.verdicts, v.Batches)
	m.evict()
	return v
}

func (m *model) evict() {
	for len(m.producers) > metadata.MaxProducers() {
		ids := slices.SortedFunc(maps.Keys(m.producers), func(a, b int64) int {
			return cmp.Compare(m.producers[a].used(), m.producers[b].used())
		})
		delete(m.producers, ids[0])
	}
}

func (p *modelProducer) used() int64 { return p.log[len(p.log)-1].offset }

func (m *model) batch(b metadata.Batch) metadata.BatchVerdict {
	no := func(o metadata.Outcome, actual int64) metadata.BatchVerdict {
		return metadata.BatchVerdict{Outcome: o, Offset: metadata.NoOffset, Actual: actual}
	}
	p := m.producers[b.ProducerID]
	if b.ProducerID != metadata.NoProducer {
		switch {
		case p == nil:
			if b.BaseSequence != 0 {
				return no(metadata.UnknownProducer, -1)
			}
		case b.ProducerEpoch < p.epoch:
			return no(metadata.ProducerFenced, int64(p.epoch))
		case b.ProducerEpoch > p.epoch:
			if b.BaseSequence != 0 {
				return no(metadata.SequenceGap, 0)
			}
		default:
			recent := p.log[max(0, len(p.log)-5):] // as Kafka does
			for _, l := range recent {
				if l.batch.BaseSequence == b.BaseSequence && l.batch.Offsets == b.Offsets {
					return metadata.BatchVerdict{Outcome: metadata.Duplicate, Offset: l.offset, Actual: metadata.NoOffset}
				}
			}
			lastBatch := p.log[len(p.log)-1].batch
			const ring = int64(1) << 31
			expected := (int64(lastBatch.BaseSequence) + int64(lastBatch.Offsets)) % ring
			distance := (int64(b.BaseSequence) - expected + ring) % ring
			if distance != 0 && distance < ring/2 {
				return no(metadata.SequenceGap, expected)
			}
			if distance != 0 {
				return no(metadata.DuplicateForgotten, expected)
			}
		}
	}
	if b.ExpectedOffset != metadata.NoOffset && b.ExpectedOffset != m.next {
		return no(metadata.OffsetMismatch, m.next)
	}
	if b.HasFencingToken && b.FencingToken != m.fence {
		return no(metadata.FenceMismatch, m.next)
	}
	l := logged{m.next, b}
	m.log = append(m.log, l)
	m.next += int64(b.Offsets)
	if b.ProducerID != metadata.NoProducer {
		if p == nil || p.epoch != b.ProducerEpoch {
			p = &modelProducer{epoch: b.ProducerEpoch}
			m.producers[b.ProducerID] = p
		}
		p.log = append(p.log, l)
	}
	return metadata.BatchVerdict{Outcome: metadata.Accepted, Offset: l.offset, Actual: metadata.NoOffset}
}
