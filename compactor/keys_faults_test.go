package compactor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// hide takes a segment away until the function that it returns is called.
func (l *keyLog) hide(t *testing.T, number uint64) func() {
	t.Helper()
	key := segments.ObjectKey(keyCluster, "g1", number)
	object, _, err := l.store.Get(t.Context(), key, 0, -1)
	l.must(err)
	l.must(l.store.Delete(t.Context(), key))
	return func() { l.must(l.store.Put(context.Background(), key, segments.NewBody(object))) }
}

// mustStayDeleted makes passes of a config, each with something new to do and old tombstones, and looks that a key does not come back.
func (l *keyLog) mustStayDeleted(t *testing.T, config KeyConfig, rules KeyRules) {
	t.Helper()
	for i := range 4 {
		l.now += 2000
		l.append(batch.None, []batch.Record{l.keyed("more", fmt.Sprint(i))})
		_, err := CleanPartition(t.Context(), l.deps(), config, keyPartition, rules, true)
		l.must(err)
	}
	if v, there := valuesOf(l.read())["k"]; there {
		t.Errorf("k was deleted, and is %q again: %v", v, l.list())
	}
	for _, record := range l.list() {
		if strings.HasSuffix(record, ":k=") || strings.HasSuffix(record, ":k=old") {
			t.Errorf("%s stays for ever", record)
		}
	}
}

// A clean entry is set aside in the pass over a tombstone of one of its keys, and is sound again for the next process: its key stays
// deleted, and goes in the end.
func TestCleanEntryComesBack(t *testing.T) {
	l := newKeyLog(t)
	rules := KeyRules{DeleteRetentionMillis: 1000}
	l.append(batch.None, []batch.Record{l.keyed("k", "old"), l.keyed("x", "0")})
	l.append(batch.None, []batch.Record{l.keyed("y", "0")})
	l.append(batch.None, []batch.Record{l.keyed("z", "0")})
	l.clean(rules)
	l.append(batch.None, []batch.Record{l.keyed("k", "")})
	l.append(batch.None, []batch.Record{l.keyed("w", "0")})
	restore := l.hide(t, 1)
	l.clean(rules)
	restore()
	l.mustStayDeleted(t, KeyConfig{}, rules)
}

// An entry that was not clean when it was set aside comes back, before others that were marked clean without it, and the map is small.
func TestEntryComesBackBeforeCleanOnes(t *testing.T) {
	for _, passes := range []int{1, 100} { // is the first call with it ended early?
		l := newKeyLog(t)
		rules := KeyRules{DeleteRetentionMillis: 1000}
		l.append(batch.None, []batch.Record{l.keyed("k", "old"), l.keyed("a", "0")})
		for _, k := range []string{"b", "c", "d", "e", "f", "g"} {
			l.append(batch.None, []batch.Record{l.keyed(k, "0")})
		}
		l.append(batch.None, []batch.Record{l.keyed("k", "")})
		l.append(batch.None, []batch.Record{l.keyed("w", "0")})
		restore := l.hide(t, 1)
		l.clean(rules)
		restore()
		d, config, asked := l.deps(), KeyConfig{MapBytes: 4 * slotBytes}, 0
		errEnough := errors.New("enough")
		d.Confirm = func(context.Context) error {
			if asked++; asked > passes {
				return errEnough
			}
			return nil
		}
		l.append(batch.None, []batch.Record{l.keyed("more", "")})
		if _, err := CleanPartition(t.Context(), d, config, keyPartition, rules, true); err != nil && !errors.Is(err, errEnough) {
			t.Fatal(err)
		}
		l.mustStayDeleted(t, config, rules)
	}
}

// flakyStore gives out one object with a wrong byte, once.
type flakyStore struct {
	segments.Store
	key  string
	hurt bool
}

func (s *flakyStore) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	data, size, err := s.Store.Get(ctx, key, offset, length)
	if err == nil && key == s.key && !s.hurt {
		s.hurt = true
		data = append([]byte(nil), data...)
		data[len(data)-1] ^= 1
	}
	return data, size, err
}

// Bytes that suffered on their way are read again before anything is set aside, as in merges.
func TestKeysReadDamageTwice(t *testing.T) {
	l := newKeyLog(t)
	l.append(batch.None, []batch.Record{l.keyed("a", "0"), l.keyed("b", "0")})
	l.append(batch.None, []batch.Record{l.keyed("a", "1")})
	l.append(batch.None, []batch.Record{l.keyed("c", "1")})
	flaky := &flakyStore{Store: l.store, key: segments.ObjectKey(keyCluster, "g1", 1)}
	l.store = flaky
	if r := l.clean(KeyRules{}); !flaky.hurt || r.Asides > 0 || r.Passes != 1 {
		t.Errorf("hurt %v, %+v", flaky.hurt, r)
	}
	l.expect(t, "1:b=0", "2:a=1", "3:c=1")
}

// A call ends although somebody appends for as long as it is under way: it does what was there when it began.
func TestKeysBesideAProducer(t *testing.T) {
	l := newKeyLog(t)
	add := func(from, n int) {
		var records []batch.Record
		for i := range n {
			records = append(records, l.keyed(fmt.Sprint((from+i*37)%2000), fmt.Sprintf("%0100d", from+i)))
		}
		l.append(batch.None, records)
	}
	for i := range 40 {
		add(i*100, 100)
	}
	calls, end := 0, l.state.View().Next
	l.disturb = func() {
		if calls++; calls > 20 {
			t.Fatal("it goes on for as long as somebody appends")
		}
		add(100_000+calls*20, 20)
	}
	for _, mapBytes := range []int64{32 << 20, 1000 * slotBytes} {
		r, err := CleanPartition(t.Context(), l.deps(), KeyConfig{MapBytes: mapBytes}, keyPartition, KeyRules{DirtyRatio: 0.1, TailBytes: 1000}, false)
		if err != nil || r.CleanTo > end || r.Passes > 4 || mapBytes > 1<<20 && r.Passes != 1 {
			t.Errorf("map of %d bytes: %+v, %v; the log ended at %d", mapBytes, r, err, end)
		}
		end = l.state.View().Next
	}
}

// A tombstone's time begins when its section is written, not when the pass began, which may be longer ago than delete.retention.ms.
func TestHorizonOfEachSection(t *testing.T) {
	l := newKeyLog(t)
	for _, key := range []string{"a", "b", "c", "d"} {
		l.append(batch.None, []batch.Record{l.keyed(key, "1")}, []batch.Record{l.keyed(key, "")})
	}
	l.append(batch.None, []batch.Record{l.keyed("e", "1")})
	written := make(map[string]int64)
	l.disturb = func() { l.now += 5000 }
	d := l.deps()
	swaps := 0
	d.Swap = func(ctx context.Context, w *metadata.Swap) (metadata.SwapOutcome, error) {
		written[fmt.Sprint("abcd"[swaps:swaps+1])] = l.now
		swaps++
		return l.swap(ctx, w)
	}
	_, err := CleanPartition(t.Context(), d, KeyConfig{SegmentBytes: 1}, keyPartition, KeyRules{DeleteRetentionMillis: 1000}, true)
	l.must(err)
	got := make(map[string]int64)
	for _, r := range l.read() {
		if r.Value == nil {
			got[string(r.Key)] = r.horizon - 1000
		}
	}
	if diff := cmp.Diff(written, got); diff != "" || len(got) != 4 {
		t.Errorf("when sections were written, and horizons without the retention:\n%s", diff)
	}
}

// The rows of a deleted topic go while a call is under way: no damage.
func TestKeysOfARemovedPartition(t *testing.T) {
	l := newKeyLog(t)
	l.append(batch.None, []batch.Record{l.keyed("a", "0"), l.keyed("a", "1"), l.keyed("b", "0")})
	d, views := l.deps(), 0
	d.View = func(context.Context, metadata.PartitionID) (*metadata.View, error) {
		if views++; views > 1 {
			return metadata.NewPartition(keyPartition).View(), nil
		}
		return l.state.View(), nil
	}
	if r, err := CleanPartition(t.Context(), d, KeyConfig{}, keyPartition, KeyRules{}, true); err != nil || r.Swaps > 0 || views != 2 {
		t.Errorf("%+v, %v, %d views", r, err, views)
	}
}

// A part of an index that does not fit memory is told, not loaded.
func TestKeysOfALargePart(t *testing.T) {
	l := newKeyLog(t)
	v := &metadata.View{Partition: keyPartition, Next: 1 << 20, Levels: [][]metadata.Child{nil, nil, {{Entries: mostPartEntries + 1}}}}
	d := l.deps()
	d.View = func(context.Context, metadata.PartitionID) (*metadata.View, error) { return v, nil }
	if _, err := CleanPartition(t.Context(), d, KeyConfig{}, keyPartition, KeyRules{}, true); !errors.Is(err, errLargePart) {
		t.Error(err)
	}
}

// No record goes by settings that were altered before it came, however long those that were are remembered; nor by a clock that is ahead.
func TestKeySettingsAltered(t *testing.T) {
	for _, alter := range []func(*metadata.Topic){
		func(t *metadata.Topic) { t.Config.Cleanup = metadata.CleanupDelete },
		func(t *metadata.Topic) { t.Config.CompactionLagMillis = 1000_000 },
		func(t *metadata.Topic) { t.Config.DeleteRetentionMillis++ },
		func(t *metadata.Topic) { t.ID[0]++ },
		func(t *metadata.Topic) { t.State = metadata.TopicDeleting },
	} {
		synctest.Test(t, func(t *testing.T) {
			c := newPureCluster(t, 1)
			c.topic.Config.Cleanup = metadata.CleanupCompact
			c.topic.Config.DirtyRatio = 0
			m, err := New(Config{KeyTailBytes: -1}, Dependencies{Store: c.store, Table: c.table, Cluster: c})
			must(t, err)
			m.numbers.begin()
			pass := func(all bool) *pass {
				p := &pass{all: all, partitions: []metadata.PartitionID{partitionID(0)}}
				must(t, m.list(t.Context(), p))
				m.cleanKeys(t.Context(), p)
				return p
			}
			pass(false) // it has listed the topics
			altered, was := *c.topic, c.topic
			alter(&altered)
			c.topic = &altered
			for range 4 {
				c.append(1<<10, 0)
			}
			if p := pass(false); len(c.swaps) > 0 || p.Dropped > 0 || len(p.failed) > 0 || !m.listed.IsZero() {
				t.Errorf("%d swaps by settings that were; %+v", len(c.swaps), p.Report)
			}
			c.topic = was
			if pass(false); len(c.swaps) == 0 {
				t.Errorf("no swap by settings that are")
			}
		})
	}
}

// The time by which records are too young is the cluster's, which one host that is a day ahead does not change.
func TestKeysGoByTheClustersClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 1)
		c.topic.Config.Cleanup, c.topic.Config.DirtyRatio, c.topic.Config.CompactionLagMillis = metadata.CleanupCompact, 0, 3600_000
		m, err := New(Config{KeyTailBytes: -1}, Dependencies{Store: c.store, Table: c.table, Cluster: c})
		must(t, err)
		for range 4 {
			c.append(1<<10, 0)
		}
		for _, at := range []time.Duration{30 * time.Minute, 2 * time.Hour} { // records are dated 1970
			c.ahead = time.Until(time.Unix(0, 0).Add(at))
			p := &pass{all: true, partitions: []metadata.PartitionID{partitionID(0)}}
			must(t, m.list(t.Context(), p))
			m.cleanKeys(t.Context(), p)
			if young := len(c.swaps) == 0; young != (at < time.Hour) {
				t.Errorf("at %s: too young is %v", at, young)
			}
		}
	})
}
