package sim

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// keyed is the partition of the topic that is compacted by key: of each key the last record must be there, others may go.
var keyed = Partition{"keyed", 0}

// keys are so few that most records go.
const keys = 7

// keyLog is what was acked in keyed.
type keyLog struct {
	mu    sync.Mutex
	acked []keyedRecord
	sent  map[string]bool
}

type keyedRecord struct {
	key, value string // the value begins with its key
	offset     int64
}

// createKeyed makes the topic, with settings by which all but the newest goes.
func (w *workload) createKeyed(c *caller) {
	for {
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		_, err := c.topics(c.some()).CreateTopic(ctx, &varvev1.CreateTopicRequest{Name: keyed.Topic, Partitions: 1, IfNotExists: true,
			Config: map[string]string{"cleanup.policy": "compact", "min.cleanable.dirty.ratio": "0.1"}})
		cancel()
		if err == nil || !w.think(c, time.Second) {
			return
		}
	}
}

// key appends to the topic that is compacted by key.
func (w *workload) key(c *caller) {
	w.createKeyed(c)
	for w.think(c, w.slow(300*time.Millisecond)) {
		var list []keyedRecord
		request := &varvev1.ProduceRequest{Topic: keyed.Topic, Partition: &keyed.Number}
		for range 1 + c.dice.upTo(4) {
			key := fmt.Sprintf("k%d", c.dice.upTo(keys))
			value := fmt.Sprintf("%s:%s-%d", key, c.name, w.serial.Add(1))
			list = append(list, keyedRecord{key: key, value: value})
			request.Records = append(request.Records, &varvev1.Record{Key: []byte(key), Value: []byte(value)})
		}
		w.keyLog.mu.Lock()
		for _, r := range list {
			w.keyLog.sent[r.value] = true
		}
		w.keyLog.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), requestTime)
		res, err := c.log(c.some()).Produce(ctx, request)
		cancel()
		if err != nil || len(res.GetResults()) != 1 || res.GetResults()[0].GetError() != nil {
			continue
		}
		w.keyLog.mu.Lock()
		for i := range list {
			list[i].offset = res.GetResults()[0].GetBaseOffset() + int64(i)
		}
		w.keyLog.acked = append(w.keyLog.acked, list...)
		w.keyLog.mu.Unlock()
	}
}

// checkKeyed reads the topic by each gateway: of each key that was acked there is a record at its offset or after it.
func (w *workload) checkKeyed(c *caller) {
	if len(w.keyLog.acked) == 0 {
		return
	}
	for _, h := range w.present() {
		log, err := w.read(c, h, keyed)
		if err != nil {
			w.history.loose(NotLive, "read %s by %s: %v", keyed, h.name, err)
			continue
		}
		last, at := make(map[string]int64), make(map[int64]string)
		before := int64(-1)
		for _, r := range log.Records {
			key, _, _ := strings.Cut(r.Value, ":")
			last[key], at[r.Offset] = r.Offset, r.Value
			if r.Offset <= before {
				w.history.loose(InconsistentOffset, "%s by %s has offset %d after %d", keyed, h.name, r.Offset, before)
			}
			if before = r.Offset; !w.keyLog.sent[r.Value] {
				w.history.loose(UnheardOf, "%q in %s at %d", r.Value, keyed, r.Offset)
			}
		}
		for _, r := range w.keyLog.acked {
			there, kept := at[r.offset]
			if offset, known := last[r.key]; !known || offset < r.offset {
				w.history.loose(LostWrite, "%s by %s: %q was acked at %d, the last record of its key is at %d (%v)", keyed, h.name, r.value, r.offset, offset, known)
			} else if kept && there != r.value {
				w.history.loose(InconsistentOffset, "%s by %s: %q was acked at %d, and there is %q", keyed, h.name, r.value, r.offset, there)
			} else if !kept {
				w.paths.count(compactedAway, 1)
			}
		}
	}
}
