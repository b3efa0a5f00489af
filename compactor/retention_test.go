package compactor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
)

// retentionBed is a log and a catalog in memory.
type retentionBed struct {
	mu     sync.Mutex
	topics map[string]*metadata.Topic
	views  map[metadata.PartitionID]*metadata.View
	theirs map[metadata.PartitionID]bool // another gateway's to look after
	ahead  time.Duration                 // of the clock
	// looks counts Expired, trims what was trimmed, lists the readings of the catalog.
	looks, lists int
	trims        []string
	// looked and trim, if set, come in between.
	looked func(metadata.PartitionID)
	trim   func(metadata.PartitionID) error

	*Retention
}

func newRetentionBed(t *testing.T) *retentionBed {
	b := &retentionBed{topics: make(map[string]*metadata.Topic), views: make(map[metadata.PartitionID]*metadata.View), theirs: make(map[metadata.PartitionID]bool)}
	b.Retention = NewRetention(RetentionConfig{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}, b, b)
	return b
}

// start runs it until the test's bubble ends.
func (b *retentionBed) start(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func (b *retentionBed) set(name string, partitions int32, set map[string]string) metadata.TopicID {
	config, err := metadata.ParseConfig(set)
	if err != nil {
		panic(err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	t := &metadata.Topic{Name: name, ID: metadata.NewTopicID(), Partitions: partitions, Config: config, State: metadata.TopicActive}
	if was := b.topics[name]; was != nil {
		t.ID = was.ID
	}
	b.topics[name] = t
	return t.ID
}

func (b *retentionBed) Mine(id metadata.PartitionID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.theirs[id]
}

func (b *retentionBed) view(id metadata.PartitionID) *metadata.View {
	b.mu.Lock()
	defer b.mu.Unlock()
	if v := b.views[id]; v != nil {
		return v
	}
	return &metadata.View{Partition: id}
}

func (b *retentionBed) Expired(ctx context.Context, id metadata.PartitionID, r metadata.Retention, now int64) (*metadata.View, metadata.Expired, error) {
	v := b.view(id)
	b.mu.Lock()
	b.looks++
	looked := b.looked
	b.mu.Unlock()
	e, err := v.Expired(ctx, nil, r, now)
	if looked != nil {
		looked(id)
	}
	return v, e, err
}

func (b *retentionBed) Trim(_ context.Context, _ *metadata.Topic, id metadata.PartitionID, offset int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.trim != nil {
		if err := b.trim(id); err != nil {
			return err
		}
	}
	v := *b.views[id]
	v.Start = max(v.Start, offset)
	for len(v.Tail) > 0 && v.Tail[0].End <= v.Start {
		v.Bytes -= v.Tail[0].Length
		v.Tail = v.Tail[1:]
	}
	b.views[id] = &v
	b.trims = append(b.trims, fmt.Sprintf("%d@%d", id.Number, offset))
	return nil
}

func (b *retentionBed) Clock() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Now().Add(b.ahead)
}

func (b *retentionBed) List(context.Context, string, string, int) ([]*metadata.Topic, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lists++
	var all []*metadata.Topic
	for _, t := range b.topics {
		all = append(all, t)
	}
	return all, nil
}

func (b *retentionBed) Refresh(_ context.Context, name string) (*metadata.Topic, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if t := b.topics[name]; t != nil {
		return t, nil
	}
	return nil, metadata.ErrTopicNotFound
}

// append commits an entry of ten records now, and says so.
func (b *retentionBed) append(id metadata.PartitionID, bytes int64) {
	v := *b.view(id)
	at := time.Now().UnixMilli()
	v.Tail = append(v.Tail[:len(v.Tail):len(v.Tail)], metadata.Entry{First: v.Next, End: v.Next + 10, Records: 10, Length: bytes, MinTimestamp: at, MaxTimestamp: at, LastTimestamp: at})
	v.Next += 10
	v.Bytes += bytes
	b.mu.Lock()
	b.views[id] = &v
	b.mu.Unlock()
	b.Committed(&v)
}

// want checks where the log starts.
func (b *retentionBed) want(t *testing.T, id metadata.PartitionID, start int64) {
	t.Helper()
	synctest.Wait()
	if v := b.view(id); v.Start != start {
		t.Errorf("after %s the log starts at %d, want %d", time.Since(synctestEpoch), v.Start, start)
	}
}

var synctestEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// counted is how many looks there were.
func (b *retentionBed) counted() int {
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.looks
}

func TestRetentionByTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		topic := b.set("a", 2, map[string]string{"retention.ms": "3600000"})
		id := metadata.PartitionID{Topic: topic}
		b.append(id, 100) // before the start: it is found by looking
		b.start(t)
		time.Sleep(30 * time.Minute)
		b.append(id, 100)
		b.append(metadata.PartitionID{Topic: topic, Number: 1}, 100)
		time.Sleep(29 * time.Minute)
		b.want(t, id, 0)
		time.Sleep(time.Minute + time.Second)
		b.want(t, id, 10)
		time.Sleep(30 * time.Minute)
		b.want(t, id, 20)
		b.want(t, metadata.PartitionID{Topic: topic, Number: 1}, 10)
		looks := b.counted()
		time.Sleep(100 * time.Hour)
		if b.counted() != looks || len(b.Watched()) != 0 {
			t.Errorf("%d looks at partitions in which nothing is left; %v are watched", b.counted()-looks, b.Watched())
		}
		b.append(id, 100) // from nothing
		time.Sleep(time.Hour + time.Second)
		b.want(t, id, 30)
	})
}

func TestRetentionBySize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.bytes": "250"})}
		b.start(t)
		time.Sleep(time.Second)
		for range 3 {
			b.append(id, 100)
			b.want(t, id, 0)
		}
		looks := b.counted()
		b.append(id, 49)
		b.want(t, id, 0)
		if b.counted() != looks {
			t.Error("a commit that makes nothing too large cost a look")
		}
		b.append(id, 1)
		b.want(t, id, 10)
		b.append(id, 1000) // right after a trim: it waits a little
		b.want(t, id, 10)
		time.Sleep(10 * time.Second)
		b.want(t, id, 50)
	})
}

// TestRetentionIdle: what has no retention, or is another gateway's, is not looked at, and
// a thousand partitions are looked at once.
func TestRetentionIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		for i, set := range []map[string]string{nil, {"cleanup.policy": "compact", "retention.ms": "1"}} {
			id := metadata.PartitionID{Topic: b.set(fmt.Sprint(i), 3, set)}
			b.append(id, 100)
		}
		topic := b.set("kept", 1000, map[string]string{"retention.ms": "604800000"})
		for n := range int32(500) {
			b.theirs[metadata.PartitionID{Topic: topic, Number: n}] = true
		}
		b.start(t)
		time.Sleep(90 * time.Minute)
		if b.counted() != 500 || b.lists > 2 || len(b.trims) > 0 {
			t.Errorf("%d looks, %d readings of the topics, trims %v", b.counted(), b.lists, b.trims)
		}
		// They change hands.
		b.append(metadata.PartitionID{Topic: topic, Number: 7}, 100)
		b.mu.Lock()
		clear(b.theirs)
		b.mu.Unlock()
		b.Changed()
		time.Sleep(time.Minute)
		if b.counted() != 1000 {
			t.Errorf("%d looks after gateways went", b.counted())
		}
		time.Sleep(7 * 24 * time.Hour)
		b.want(t, metadata.PartitionID{Topic: topic, Number: 7}, 10)
	})
}

// TestRetentionPaced: a partition that is appended to all the time is trimmed now and then.
func TestRetentionPaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.ms": "600000"})}
		b.start(t)
		for range 4 * 1800 {
			b.append(id, 100)
			time.Sleep(250 * time.Millisecond)
		}
		synctest.Wait()
		most := int(20*time.Minute/(6*time.Second)) + 1 // a hundredth of the retention apart
		if n := len(b.trims); n > most || n < most-2 {
			t.Errorf("%d trims in half an hour, want about %d", n, most)
		}
		v := b.view(id)
		if oldest := time.Since(time.UnixMilli(v.Tail[0].MaxTimestamp)); oldest > 606*time.Second+time.Second {
			t.Errorf("the oldest record is %s old", oldest)
		}
	})
}

// TestRetentionChanged changes a topic's retention between the look and the trim: nothing goes by the old one.
func TestRetentionChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.ms": "1000"})}
		b.looked = func(metadata.PartitionID) { b.set("a", 1, map[string]string{"retention.ms": "86400000"}) }
		b.append(id, 100)
		time.Sleep(time.Minute)
		b.start(t)
		time.Sleep(23 * time.Hour)
		b.want(t, id, 0)
		time.Sleep(time.Hour)
		b.want(t, id, 10)
		// And without a word: the next reading of the topics finds it.
		b.looked = nil
		b.append(id, 100)
		b.set("a", 1, map[string]string{"retention.ms": "1000"})
		time.Sleep(time.Hour + time.Minute)
		b.want(t, id, 20)
		// The one who decides knows of another alteration: all is looked at anew, once.
		refused := 0
		b.trim = func(metadata.PartitionID) error {
			if refused++; refused == 1 {
				return fmt.Errorf("%w: altered", metadata.ErrConflict)
			}
			return nil
		}
		b.append(id, 100)
		time.Sleep(2500 * time.Millisecond)
		b.want(t, id, 30)
		if refused != 2 {
			t.Errorf("%d trims were asked for", refused)
		}
		b.trim = nil
		// It is raised for ever.
		b.append(id, 100)
		b.set("a", 1, nil)
		b.Changed()
		time.Sleep(time.Hour)
		b.want(t, id, 30)
	})
}

// TestRetentionOfDeletedTopic deletes a topic between the look and the trim.
func TestRetentionOfDeletedTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.ms": "1000"})}
		b.trim = func(metadata.PartitionID) error { return fmt.Errorf("%w: gone", metadata.ErrClosed) }
		b.append(id, 100)
		b.start(t)
		time.Sleep(time.Minute)
		looks := b.counted()
		if time.Sleep(time.Hour); b.counted() != looks || len(b.Watched()) > 0 {
			t.Errorf("%d looks at what is closed", b.counted()-looks)
		}
		b.set("b", 1, map[string]string{"retention.ms": "1000"})
		id = metadata.PartitionID{Topic: b.topics["b"].ID}
		b.looked = func(metadata.PartitionID) {
			b.mu.Lock()
			delete(b.topics, "b")
			b.mu.Unlock()
		}
		b.append(id, 100)
		b.Changed()
		time.Sleep(time.Minute)
		b.want(t, id, 0)
		if n := b.Watched(); len(n) > 0 {
			t.Errorf("%v are watched", n)
		}
	})
}

// TestRetentionFails: a trim that fails is tried again, later and later.
func TestRetentionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.ms": "1000"})}
		tries := 0
		b.trim = func(metadata.PartitionID) error {
			if tries++; tries <= 10 {
				return errors.New("no")
			}
			return nil
		}
		count := func() int {
			b.mu.Lock()
			defer b.mu.Unlock()
			return tries
		}
		b.append(id, 100)
		b.start(t)
		time.Sleep(time.Minute)
		if n := count(); n > 6 || n < 4 {
			t.Errorf("%d tries in a minute", n)
		}
		time.Sleep(10 * time.Minute)
		b.want(t, id, 10)
	})
}

// TestCommitBesideALook: what is committed while a partition is looked at is not missed.
func TestCommitBesideALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.ms": "60000"})}
		once := sync.OnceFunc(func() { b.append(id, 100) })
		b.looked = func(metadata.PartitionID) { once() } // the look has seen an empty partition
		b.start(t)
		time.Sleep(61 * time.Second)
		b.want(t, id, 10)
	})
}

// TestClockJumps: a clock that was behind and is set right is noticed in time.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newRetentionBed(t)
		id := metadata.PartitionID{Topic: b.set("a", 1, map[string]string{"retention.ms": "86400000"})}
		b.append(id, 100)
		b.ahead = -10 * time.Hour
		b.start(t)
		time.Sleep(24 * time.Hour)
		b.want(t, id, 0)
		b.mu.Lock()
		b.ahead = 0
		b.mu.Unlock()
		time.Sleep(11 * time.Minute)
		b.want(t, id, 10)
	})
}
