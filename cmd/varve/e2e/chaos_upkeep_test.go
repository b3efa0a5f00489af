package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
)

// upkeepPaces are paces at which segments are merged, records go and garbage is collected several times a minute.
var upkeepPaces = []string{"--merge-age", "2s", "--merge-bytes", "65536", "--gc-interval", "3s", "--gc-grace", "4s"}

// regime is by what records of a topic may go.
type regime uint8

const (
	bySize regime = iota // retention.bytes
	byTime               // retention.ms
	byHand               // trims
	byKey                // cleanup.policy=compact
)

const (
	leastBytes     = 64 << 10
	shortRetention = 6 * time.Second
	// tombstoneTime is how long a record without a value stays after what it deletes went.
	tombstoneTime   = 12 * time.Second
	goingPartitions = 2
	goingKeys       = 20
	// goingPadding makes records large enough for a topic to outgrow leastBytes in a short run.
	goingPadding = 2000
)

// goingTopics are topics whose records go while clients append to them and read them.
var goingTopics = []struct {
	regime regime
	name   string
	config map[string]string
}{
	{bySize, "by-size", map[string]string{"retention.bytes": strconv.Itoa(leastBytes)}},
	{byTime, "by-time", map[string]string{"retention.ms": strconv.FormatInt(shortRetention.Milliseconds(), 10)}},
	{byHand, "by-hand", nil},
	{byKey, "by-key", map[string]string{"cleanup.policy": "compact", "delete.retention.ms": strconv.FormatInt(tombstoneTime.Milliseconds(), 10)}},
}

// goingRecord is a record of such a topic, alone in its append. Its header says which it is.
type goingRecord struct {
	partition int32
	key       string
	tombstone bool
	when      time.Time // its timestamp
	outcome   outcome
	offset    int64 // if it is known
}

// goingTopic is a topic whose records go, and what its clients were told.
type goingTopic struct {
	name   string
	regime regime
	s      *storm

	mu      sync.Mutex
	records []*goingRecord
	// acked is the end of what was acked of a partition, starts the highest start that was told, trims the highest one that was asked for.
	acked, starts, trims [goingPartitions]int64
	passes, skips        int // of readers, whole ones and skips over what was gone
}

// going is all of them, and those who ask for merges and collections.
type going struct {
	topics []*goingTopic

	mu sync.Mutex
	// What was asked for, what came of it, and how often nothing did.
	passes, merged, dropped, collections, deleted, passing, failed int64
}

// startGoing makes the topics and starts their clients, which end with the storm.
func (s *storm) startGoing(t *testing.T, c *client.Client, r *rand.Rand) *going {
	g := &going{}
	run := func(f func(*rand.Rand)) {
		r := fork(r)
		s.all.Go(func() { f(r) })
	}
	for _, of := range goingTopics {
		if _, _, err := c.CreateTopic(t.Context(), of.name, client.CreateTopicOptions{Partitions: goingPartitions, Config: of.config}); err != nil {
			t.Fatal(err)
		}
		k := &goingTopic{name: of.name, regime: of.regime, s: s}
		g.topics = append(g.topics, k)
		run(k.appending)
		run(k.appending)
		run(k.reading)
		if of.regime == byHand {
			run(func(r *rand.Rand) { k.trimming(c, r) })
		}
		if of.regime == bySize {
			run(func(r *rand.Rand) { k.altering(c, r) })
		}
	}
	asker := s.client(t, 1)
	for range 2 {
		run(func(r *rand.Rand) { g.asking(s, asker, r) })
	}
	run(func(r *rand.Rand) { g.passingTopics(s, asker, r) })
	return g
}

// appending appends a record at a time, once, through any gateway.
func (k *goingTopic) appending(r *rand.Rand) {
	var err error
	for k.s.rests(r, 2*pauseAfter(err)) {
		record, sent := k.next(r)
		var base int64
		base, err = k.s.send(k.s.fleet.pick(r), &varvev1.ProduceRequest{Topic: k.name, Partition: &record.partition, Records: []*varvev1.Record{sent}})
		k.mu.Lock()
		record.outcome = outcomeOf(err)
		if err == nil {
			record.offset = base
			k.acked[record.partition] = max(k.acked[record.partition], base+1)
		}
		k.mu.Unlock()
	}
}

// next is the next record to append.
func (k *goingTopic) next(r *rand.Rand) (*goingRecord, *varvev1.Record) {
	record := &goingRecord{partition: r.Int32N(goingPartitions), key: fmt.Sprint(r.IntN(goingKeys)), when: time.Now(), offset: -1}
	record.tombstone = k.regime == byKey && r.IntN(4) == 0
	k.mu.Lock()
	id := len(k.records)
	k.records = append(k.records, record)
	k.mu.Unlock()
	sent := &varvev1.Record{Key: []byte(record.key), Timestamp: new(record.when.UnixMilli()), Headers: []*varvev1.Header{{Key: "id", Value: []byte(strconv.Itoa(id))}}}
	if !record.tombstone {
		sent.Value = []byte(strings.Repeat("x", 1+r.IntN(goingPadding)))
	}
	return record, sent
}

// trimming moves log starts up, to what was acked.
func (k *goingTopic) trimming(c *client.Client, r *rand.Rand) {
	for k.s.rests(r, 3*time.Second) {
		p := r.Int32N(goingPartitions)
		k.mu.Lock()
		from := max(k.trims[p], k.starts[p])
		to := from + int64(r.Float64()*float64(k.acked[p]-from))
		k.trims[p] = max(k.trims[p], to)
		k.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
		trimmed, err := c.TrimTopic(ctx, k.name, client.At(to), p)
		cancel()
		if err == nil {
			k.startsAt(p, trimmed[0].StartOffset)
		}
	}
}

// altering changes the retention, upwards and back: nothing may go for which the lower one does not provide.
func (k *goingTopic) altering(c *client.Client, r *rand.Rand) {
	for k.s.rests(r, 3*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
		// Whether it came to that does not matter.
		_, _ = c.AlterTopic(ctx, k.name, client.AlterTopicOptions{Set: map[string]string{"retention.bytes": strconv.Itoa(leastBytes * (1 + r.IntN(2)))}})
		cancel()
	}
}

// startsAt takes note of a start for certain, below which nothing may be from then on.
func (k *goingTopic) startsAt(partition int32, start int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.starts[partition] = max(k.starts[partition], start)
}

// asking has gateways make passes and collections, beside those that they make by themselves.
func (g *going) asking(s *storm, c *client.Client, r *rand.Rand) {
	for s.rests(r, 2*time.Second) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*chaosCall)
		if r.IntN(2) == 0 {
			err := c.Compact(ctx, client.CompactOptions{Wait: true}, func(did client.Compacted) { g.note(s, did) })
			g.told(&g.passes, err)
		} else {
			got, err := c.Collect(ctx, client.CollectOptions{})
			g.told(&g.collections, err)
			if err == nil {
				g.told(&g.deleted, nil, got.Deleted)
			}
		}
		cancel()
	}
}

// told counts what was answered.
func (g *going) told(counter *int64, err error, n ...int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case err != nil:
		g.failed++
	case len(n) > 0:
		*counter += n[0]
	default:
		*counter++
	}
}

func (g *going) note(s *storm, did client.Compacted) {
	g.told(&g.merged, nil, did.Merged)
	g.told(&g.dropped, nil, did.Dropped)
	for _, a := range did.SetAside {
		s.found.note(mistold, "%s/%d: a merge found %s damaged: %s", a.Topic, a.Partition, a.Object, a.Problem)
	}
}

// passingTopics makes topics, appends to them and deletes them.
func (g *going) passingTopics(s *storm, c *client.Client, r *rand.Rand) {
	for n := 0; s.rests(r, 2*time.Second); n++ {
		name := fmt.Sprintf("passing-%d", n)
		ctx, cancel := context.WithTimeout(context.Background(), givenUp)
		_, _, err := c.CreateTopic(ctx, name, client.CreateTopicOptions{Partitions: goingPartitions, IfNotExists: true})
		for p := range int32(goingPartitions) {
			if err == nil {
				_, err = c.Append(ctx, name, p, []client.Record{{Value: []byte(strings.Repeat("x", goingPadding))}}, client.AppendOptions{})
			}
		}
		if err == nil {
			err = c.DeleteTopic(ctx, name, true)
		}
		g.told(&g.passing, err)
		cancel()
	}
}

// reading goes through a partition from its start to its end, again and again.
func (k *goingTopic) reading(r *rand.Rand) {
	for k.s.rests(r, time.Second) {
		k.pass(r, r.Int32N(goingPartitions))
	}
}

// seenRecords are what a pass saw of a partition.
type seenRecords struct {
	began, ended time.Time
	first        int64         // the first offset that could be read when it began
	start        int64         // the highest start that it was told
	ids          map[int64]int // by offset
	// acked are records that were when it began.
	acked []*goingRecord
	next  int64
}

// pass reads a partition once, and compares what is there with what must be. It returns nil if the gateways did not
// answer for long.
func (k *goingTopic) pass(r *rand.Rand, partition int32) *seenRecords {
	seen := &seenRecords{began: time.Now(), ids: make(map[int64]int)}
	end, started := k.expect(seen, partition)
	place := &varvev1.Place{At: &varvev1.Place_Earliest{Earliest: true}}
	deadline := time.Now().Add(2 * chaosCall)
	for first := true; first || seen.next < end; {
		m, err := k.fetch(r, &varvev1.FetchRequest{Topic: k.name, Partition: partition, Start: place, MaxBytes: 16 << 10, Decode: true, Linearizable: first, SeenHighWatermark: end})
		switch info := infoOf(err); {
		case err == nil:
			if first {
				seen.first = m.GetLogStartOffset()
				k.startNotBelow(partition, started, seen.first)
			}
			first = false
			seen.start = max(seen.start, m.GetLogStartOffset())
			k.take(seen, partition, m)
		case info.GetReason() == "OUT_OF_RANGE" && info.LogStartOffset != nil && info.GetLogStartOffset() > seen.next:
			seen.start, seen.next = info.GetLogStartOffset(), info.GetLogStartOffset()
			k.told(&k.skips)
		case info.GetReason() == "OUT_OF_RANGE", info.GetReason() == "DATA_LOSS":
			k.s.found.note(lostWrite, "%s/%d: offset %d, of %d that were acked: %v", k.name, partition, seen.next, end, err)
			return nil
		case time.Now().After(deadline):
			return nil
		default:
			time.Sleep(afterFailure) // nobody tells when a gateway is back
			continue
		}
		place = &varvev1.Place{At: &varvev1.Place_Offset{Offset: seen.next}}
		deadline = time.Now().Add(2 * chaosCall)
	}
	seen.ended = time.Now()
	k.told(&k.passes)
	k.compare(seen, partition)
	return seen
}

// expect takes note of what must be there, and returns the end of that and the highest start that was told.
func (k *goingTopic) expect(seen *seenRecords, partition int32) (end, started int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, record := range k.records {
		if record.partition == partition && record.outcome == confirmed {
			seen.acked = append(seen.acked, record)
		}
	}
	return k.acked[partition], k.starts[partition]
}

func (k *goingTopic) fetch(r *rand.Rand, request *varvev1.FetchRequest) (*varvev1.FetchResponse, error) {
	ctx, cancel := context.WithTimeout(context.Background(), chaosCall)
	defer cancel()
	return rawClient(k.s.http, k.s.fleet.reader(r).url()).Fetch(ctx, request)
}

func (k *goingTopic) told(counter *int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	*counter++
}

// startNotBelow: a linearizable read was told a start, and one that was told before it began is no higher.
func (k *goingTopic) startNotBelow(partition int32, before, now int64) {
	if now < before {
		k.s.found.note(fallenStart, "%s/%d: from %d to %d", k.name, partition, before, now)
	}
	k.startsAt(partition, now)
}

// take takes what a message brought.
func (k *goingTopic) take(seen *seenRecords, partition int32, m *varvev1.FetchResponse) {
	k.mu.Lock()
	defer k.mu.Unlock()
	note := func(name, format string, args ...any) {
		k.s.found.note(name, "%s/%d: %s", k.name, partition, fmt.Sprintf(format, args...))
	}
	for _, record := range m.GetRecords() {
		offset := record.GetOffset()
		if offset < seen.next {
			note(nonmonotonicPoll, "offset %d, where the next one is %d", offset, seen.next)
			continue
		}
		seen.next = offset + 1
		id, err := strconv.Atoi(string(record.GetHeaders()[0].GetValue()))
		if err != nil || id >= len(k.records) {
			note(unheardOf, "%v at %d", record.GetHeaders(), offset)
			continue
		}
		switch sent := k.records[id]; {
		case sent.partition != partition || sent.key != string(record.GetKey()) || sent.tombstone != (record.Value == nil) || sent.when.UnixMilli() != record.GetTimestamp():
			note(unheardOf, "record %d at %d is not what was sent", id, offset)
		case sent.outcome == refused:
			note(abortedRead, "record %d was refused, and is at %d", id, offset)
		case sent.offset >= 0 && sent.offset != offset:
			note(inconsistent, "record %d was seen, or acked, at %d, and is at %d", id, sent.offset, offset)
		default:
			sent.offset = offset
		}
		seen.ids[offset] = id
	}
	if next := m.GetNextOffset(); next < seen.next {
		note(mistold, "the message leads to %d, its records to %d", next, seen.next)
	}
	seen.next = m.GetNextOffset()
}

// compare notes what is gone and should not be.
func (k *goingTopic) compare(seen *seenRecords, partition int32) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.regime == byKey {
		k.compareKeys(seen, partition)
		return
	}
	for _, record := range seen.acked {
		if _, there := seen.ids[record.offset]; there {
			continue
		}
		why := ""
		switch {
		case record.offset >= seen.start:
			why = fmt.Sprintf("the log starts at %d", seen.start)
		case k.regime == byTime && seen.ended.Sub(record.when) < shortRetention:
			why = fmt.Sprintf("it is %s old", seen.ended.Sub(record.when))
		case k.regime == byHand && record.offset >= k.trims[partition]:
			why = fmt.Sprintf("nothing was trimmed above %d", k.trims[partition])
		default:
			continue
		}
		k.s.found.note(lostWrite, "%s/%d: offset %d was acked and is gone; %s", k.name, partition, record.offset, why)
	}
}

// compareKeys: of each key the last record is there that was acked before the pass began, or a later one. Only a record without a
// value goes without another one in its place; then what it deleted does not come back.
func (k *goingTopic) compareKeys(seen *seenRecords, partition int32) {
	last := make(map[string]*goingRecord) // as acked
	for _, record := range seen.acked {
		if l := last[record.key]; l == nil || l.offset < record.offset {
			last[record.key] = record
		}
	}
	newest := make(map[string]int64) // as seen
	for offset, id := range seen.ids {
		newest[k.records[id].key] = max(newest[k.records[id].key], offset+1)
	}
	for key, l := range last {
		switch {
		case newest[key] > l.offset:
		case !k.expiredTombstone(key, partition, l.offset, seen.ended):
			k.s.found.note(lostWrite, "%s/%d: the last record of key %s was acked at %d, and is gone", k.name, partition, key, l.offset)
		case newest[key] > 0 && seen.ended.Sub(seen.began) < tombstoneTime/2:
			k.s.found.note(cameBack, "%s/%d: key %s was deleted at %d at the latest, and is there at %d", k.name, partition, key, l.offset, newest[key]-1)
		}
	}
}

// expiredTombstone says whether a record without a value may have been the last one of its key, and be gone.
func (k *goingTopic) expiredTombstone(key string, partition int32, from int64, now time.Time) bool {
	return slices.ContainsFunc(k.records, func(r *goingRecord) bool {
		return r.key == key && r.partition == partition && r.tombstone && r.outcome != refused && (r.offset < 0 || r.offset >= from) && now.Sub(r.when) >= tombstoneTime
	})
}

// judgeGoing waits until what should go is gone, and looks at all of it once more. There must be no load.
func (s *storm) judgeGoing(t *testing.T, g *going, c *client.Client, r *rand.Rand) {
	t.Helper()
	// All gateways serve: each can do its share.
	err := c.Compact(t.Context(), client.CompactOptions{Wait: true}, func(did client.Compacted) {
		if g.note(s, did); did.Error != "" || did.Failed > 0 {
			t.Errorf("a pass when all is at rest: %+v", did)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range g.topics {
		k.waitGone(t, c)
		for p := range int32(goingPartitions) {
			seen := k.pass(r, p)
			if seen == nil {
				t.Fatalf("%s/%d cannot be read", k.name, p)
			}
			if *chaosFlag >= time.Minute && seen.first == 0 && k.regime != byKey {
				t.Errorf("%s/%d starts at 0 yet: the run shows nothing", k.name, p)
			}
			if *chaosFlag >= time.Minute && k.regime == byKey && 2*len(seen.ids) > len(seen.acked) {
				t.Errorf("%s/%d has %d records, of %d that were acked: the run shows nothing", k.name, p, len(seen.ids), len(seen.acked))
			}
		}
	}
}

// waitGone waits until the start is where retention has it in the end.
func (k *goingTopic) waitGone(t *testing.T, c *client.Client) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		d, err := c.DescribeTopic(t.Context(), k.name)
		if err != nil {
			t.Fatal(err)
		}
		late := ""
		for _, p := range d.PartitionInfo {
			switch {
			case k.regime == byTime && p.StartOffset < p.EndOffset:
				late = fmt.Sprintf("%s/%d starts at %d of %d, although all is older than %s", k.name, p.Partition, p.StartOffset, p.EndOffset, shortRetention)
			case k.regime == bySize && p.Bytes > 4*leastBytes: // a merged entry of leastBytes goes whole, and twice that may be the retention
				late = fmt.Sprintf("%s/%d has %d bytes", k.name, p.Partition, p.Bytes)
			}
			if k.regime == bySize && p.StartOffset > 0 && p.Bytes < leastBytes {
				k.s.found.note(lostWrite, "%s/%d starts at %d, and has %d bytes", k.name, p.Partition, p.StartOffset, p.Bytes)
			}
		}
		if late == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s after the load has ended: %s", patience, late)
			return
		}
		time.Sleep(100 * time.Millisecond) // it goes by time
	}
}

// text is the account of it.
func (g *going) text() string {
	var parts []string
	for _, k := range g.topics {
		parts = append(parts, fmt.Sprintf("%s %d appends, %d passes of readers, %d skips", k.name, len(k.records), k.passes, k.skips))
	}
	return fmt.Sprintf("%s; %d topics came and went; asked for: %d passes, which merged %d partitions and took out %d records, %d collections, which deleted %d objects; %d of these failed",
		strings.Join(parts, "; "), g.passing, g.passes, g.merged, g.dropped, g.collections, g.deleted, g.failed)
}
