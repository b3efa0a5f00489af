package metadata

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// MaxPartitions bounds the partitions of a topic: what is asked of all of them, and its
// deletion, which writes a row for each, must end.
const MaxPartitions = 100_000

const (
	// topicFresh is how old a topic in the cache may be before it is read again:
	// other gateways may have changed it.
	topicFresh = 3 * time.Second
	// topicWait is how long a caller waits for that read where an older answer is at
	// hand: appends and reads of known topics go on while the table is out.
	topicWait = 250 * time.Millisecond
	// topicTimeout bounds a read that callers share, whoever of them leaves.
	topicTimeout = 10 * time.Second
)

// TopicState says where in its life a topic is. The texts are stored.
type TopicState string

const (
	// TopicActive takes appends and reads.
	TopicActive TopicState = "active"
	// TopicDeleting is marked: its partitions are being closed, its name is not free.
	TopicDeleting TopicState = "deleting"
	// topicRemoved frees the name. The row stays, so that versions of it only rise:
	// a create that the network held back cannot bring a deleted topic back.
	topicRemoved TopicState = "removed"
)

// Topic is one version of a topic: it is never changed.
type Topic struct {
	Name       string
	ID         TopicID
	Partitions int32
	Set        map[string]string // configuration as it was set
	Config     Config            // with defaults
	State      TopicState
	CreatedAt  int64 // ms, wall clock of the gateway that made it
	Stamp      Stamp // of its row
}

// topicRow is the value of a topics row.
type topicRow struct {
	Format     int               `json:"format"`
	ID         string            `json:"id"`
	Partitions int32             `json:"partitions"`
	Config     map[string]string `json:"config,omitempty"`
	State      TopicState        `json:"state"`
	CreatedAt  int64             `json:"created_at"`
}

func (t *Topic) row() topicRow {
	return topicRow{Format: formatV1, ID: t.ID.String(), Partitions: t.Partitions, Config: t.Set, State: t.State, CreatedAt: t.CreatedAt}
}

func decodeTopic(row Row) (*Topic, error) {
	var r topicRow
	if err := decodeJSON(row, &r); err != nil {
		return nil, err
	}
	id, err := ParseTopicID(r.ID)
	if err != nil {
		return nil, fmt.Errorf("%w: row %s: %v", ErrCorrupt, row.Key, err)
	}
	config, err := ParseConfig(r.Config)
	if err != nil {
		return nil, fmt.Errorf("%w: row %s: %v", ErrCorrupt, row.Key, err)
	}
	if err := checkPartitions(r.Partitions); err != nil {
		return nil, fmt.Errorf("%w: row %s: %v", ErrCorrupt, row.Key, err)
	}
	switch r.State {
	case TopicActive, TopicDeleting, topicRemoved:
	default:
		return nil, fmt.Errorf("%w: row %s: unknown state %q", ErrCorrupt, row.Key, r.State)
	}
	return &Topic{Name: row.Sort, ID: id, Partitions: r.Partitions, Set: r.Config, Config: config, State: r.State,
		CreatedAt: r.CreatedAt, Stamp: row.Stamp}, nil
}

func checkPartitions(n int32) error {
	if n < 1 || n > MaxPartitions {
		return fmt.Errorf("%w: a topic has 1 to %d partitions, not %d", ErrInvalid, MaxPartitions, n)
	}
	return nil
}

// Topics is the catalog of topics, with a cache. All methods may be called at once.
type Topics struct {
	table Table
	reads singleflight.Group

	mu    sync.Mutex
	cache map[string]cachedTopic
}

type cachedTopic struct {
	topic *Topic // a removed one is kept, lest an older read brings the topic back
	until time.Time
}

// NewTopics returns the catalog in the table.
func NewTopics(t Table) *Topics {
	return &Topics{table: t, cache: make(map[string]cachedTopic)}
}

func topicKey(name string) Key { return Key{topicsPartition, name} }

func notFound(name string) error {
	return fmt.Errorf("%w: there is no topic %q", ErrTopicNotFound, name)
}

// store keeps the newest version of a topic, and returns it. removed is not found.
func (c *Topics) store(t *Topic) (*Topic, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if have, ok := c.cache[t.Name]; ok && have.topic.Stamp.Compare(t.Stamp) > 0 {
		t = have.topic
	}
	c.cache[t.Name] = cachedTopic{t, time.Now().Add(topicFresh)}
	if t.State == topicRemoved {
		return nil, notFound(t.Name)
	}
	return t, nil
}

// Create makes a topic. ErrTopicExists, also while one of that name is being deleted;
// ErrInvalid, with all faults. After any other error the topic may have been made.
func (c *Topics) Create(ctx context.Context, name string, partitions int32, set map[string]string, now time.Time) (*Topic, error) {
	config := DefaultConfig()
	canonical, configErr := canonicalConfig(set, &config)
	if err := joinInvalid(CheckTopicName(name), checkPartitions(partitions), configErr); err != nil {
		return nil, err
	}
	t := &Topic{Name: name, ID: NewTopicID(), Partitions: partitions, Set: canonical, Config: config,
		State: TopicActive, CreatedAt: now.UnixMilli()}
	row, err := update(ctx, c.table, topicKey(name), func(was Row) (any, error) {
		if was.Stamp == (Stamp{}) {
			return t.row(), nil
		}
		have, err := decodeTopic(was)
		switch {
		case err != nil:
			return nil, err
		case have.ID == t.ID:
			return nil, nil // our own, of an earlier round
		case have.State == topicRemoved:
			return t.row(), nil
		case have.State == TopicDeleting:
			return nil, fmt.Errorf("%w: topic %q is being deleted; its name is free once that is done", ErrTopicExists, name)
		}
		return nil, fmt.Errorf("%w: topic %q has %d partitions", ErrTopicExists, name, have.Partitions)
	})
	if err != nil {
		return nil, err
	}
	return c.decodeAndStore(row)
}

// joinInvalid lists faults in one error.
func joinInvalid(faults ...error) error {
	var texts []string
	for _, err := range faults {
		if err != nil {
			texts = append(texts, strings.TrimPrefix(err.Error(), ErrInvalid.Error()+": "))
		}
	}
	if texts == nil {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrInvalid, strings.Join(texts, "; "))
}

func (c *Topics) decodeAndStore(row Row) (*Topic, error) {
	t, err := decodeTopic(row)
	if err != nil {
		return nil, err
	}
	return c.store(t)
}

// Get returns a topic, one that is being deleted too: see its State. ErrTopicNotFound is
// said after a strong read only. What other gateways changed is seen within a few
// seconds (at once by Refresh), this catalog's own changes at once. While the table
// is out, topics that are known here are answered as they were.
func (c *Topics) Get(ctx context.Context, name string) (*Topic, error) {
	if err := CheckTopicName(name); err != nil {
		return nil, err
	}
	c.mu.Lock()
	have, known := c.cache[name]
	c.mu.Unlock()
	known = known && have.topic.State != topicRemoved
	if known && time.Now().Before(have.until) {
		return have.topic, nil
	}
	flight := c.read(ctx, name, Eventual)
	if !known {
		return await(ctx, flight)
	}
	timer := time.NewTimer(topicWait)
	defer timer.Stop()
	select {
	case r := <-flight:
		if errors.Is(r.Err, ErrUnavailable) {
			return c.postpone(have), nil
		}
		return await(ctx, returned(r))
	case <-timer.C:
		return c.postpone(have), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Refresh returns a topic as a strong read finds it: before a partition is called
// out of range, say, that another gateway may just have added.
func (c *Topics) Refresh(ctx context.Context, name string) (*Topic, error) {
	if err := CheckTopicName(name); err != nil {
		return nil, err
	}
	row, err := c.table.Get(ctx, topicKey(name), Strong)
	if errors.Is(err, ErrNotFound) {
		return nil, notFound(name)
	}
	if err != nil {
		return nil, err
	}
	return c.decodeAndStore(row)
}

// postpone lets a topic be answered from the cache for a while longer when it
// could not be read.
func (c *Topics) postpone(have cachedTopic) *Topic {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now, ok := c.cache[have.topic.Name]; ok && now == have {
		now.until = time.Now().Add(topicFresh)
		c.cache[have.topic.Name] = now
	}
	return have.topic
}

// read reads a topic, once for all who ask at the same time.
func (c *Topics) read(ctx context.Context, name string, consistency Consistency) <-chan singleflight.Result {
	return c.reads.DoChan(name, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), topicTimeout)
		defer cancel()
		row, err := c.table.Get(ctx, topicKey(name), consistency)
		if errors.Is(err, ErrNotFound) {
			return c.Refresh(ctx, name)
		}
		if err != nil {
			return nil, err
		}
		t, err := c.decodeAndStore(row)
		if errors.Is(err, ErrTopicNotFound) { // removed; perhaps made again since
			return c.Refresh(ctx, name)
		}
		return t, err
	})
}

func returned(r singleflight.Result) <-chan singleflight.Result {
	ch := make(chan singleflight.Result, 1)
	ch <- r
	return ch
}

func await(ctx context.Context, flight <-chan singleflight.Result) (*Topic, error) {
	select {
	case r := <-flight:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*Topic), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// List returns topics by name, those that are being deleted too: whose names begin
// with prefix and are above after, at most limit of them (0: all). Strong reads.
func (c *Topics) List(ctx context.Context, prefix, after string, limit int) ([]*Topic, error) {
	if limit < 0 {
		return nil, fmt.Errorf("%w: the limit %d is negative", ErrInvalid, limit)
	}
	r := Range{Partition: topicsPartition, From: prefix, Consistency: Strong}
	if prefix != "" {
		if err := CheckTopicName(prefix); err != nil && prefix != "." && prefix != ".." {
			return nil, err
		}
		r.To = prefixEnd(prefix)
	}
	if after != "" {
		if err := CheckTopicName(after); err != nil {
			return nil, err
		}
		r.From = max(r.From, after+"\x00")
	}
	if r.Empty() {
		return nil, nil
	}
	var list []*Topic
	for row, err := range Rows(ctx, c.table, r) {
		if err != nil {
			return nil, err
		}
		t, err := decodeTopic(row)
		if err != nil {
			return nil, err
		}
		if t.State == topicRemoved {
			continue
		}
		list = append(list, t)
		if limit > 0 && len(list) == limit {
			break
		}
	}
	return list, nil
}

// change writes the next version of a topic. change returns nil when nothing changes.
func (c *Topics) change(ctx context.Context, name string, change func(Topic) (*Topic, error)) (*Topic, error) {
	if err := CheckTopicName(name); err != nil {
		return nil, err
	}
	row, err := update(ctx, c.table, topicKey(name), func(was Row) (any, error) {
		if was.Stamp == (Stamp{}) {
			return nil, notFound(name)
		}
		have, err := decodeTopic(was)
		if err != nil {
			return nil, err
		}
		if have.State == topicRemoved {
			return nil, notFound(name)
		}
		next, err := change(*have)
		if err != nil || next == nil {
			return nil, err
		}
		return next.row(), nil
	})
	if err != nil {
		return nil, err
	}
	return c.decodeAndStore(row)
}

// Alter changes a topic: more partitions (0: as many as there are; they never become fewer),
// settings to set and to unset. ErrTopicNotFound, also for one that is being deleted; ErrInvalid.
func (c *Topics) Alter(ctx context.Context, name string, partitions int32, set map[string]string, unset []string) (*Topic, error) {
	alter, err := alteration(partitions, set, unset)
	if err != nil {
		return nil, err
	}
	return c.change(ctx, name, alter)
}

// Altered is what Alter would make of a topic. Nothing is written.
func (c *Topics) Altered(ctx context.Context, name string, partitions int32, set map[string]string, unset []string) (*Topic, error) {
	alter, err := alteration(partitions, set, unset)
	if err != nil {
		return nil, err
	}
	t, err := c.Refresh(ctx, name)
	if err != nil {
		return nil, err
	}
	next, err := alter(*t)
	if err != nil || next == nil {
		return t, err
	}
	next.Config, err = ParseConfig(next.Set)
	return next, err
}

// alteration checks what is to be changed, and returns the change.
func alteration(partitions int32, set map[string]string, unset []string) (func(Topic) (*Topic, error), error) {
	var discard Config
	canonical, setErr := canonicalConfig(set, &discard)
	dropped, unsetErr := canonicalNames(unset, canonical)
	var countErr error
	if partitions != 0 {
		countErr = checkPartitions(partitions)
	}
	if err := joinInvalid(countErr, setErr, unsetErr); err != nil {
		return nil, err
	}
	return func(t Topic) (*Topic, error) {
		switch {
		case t.State == TopicDeleting:
			return nil, fmt.Errorf("%w: topic %q is being deleted", ErrTopicNotFound, t.Name)
		case partitions != 0 && partitions < t.Partitions:
			return nil, fmt.Errorf("%w: topic %q has %d partitions; they cannot become %d", ErrInvalid, t.Name, t.Partitions, partitions)
		}
		before, beforeSet := t.Partitions, t.Set
		t.Partitions = max(t.Partitions, partitions)
		t.Set = make(map[string]string, len(beforeSet)+len(canonical))
		maps.Copy(t.Set, beforeSet)
		maps.Copy(t.Set, canonical)
		for _, key := range dropped {
			delete(t.Set, key)
		}
		if t.Partitions == before && maps.Equal(t.Set, beforeSet) {
			return nil, nil
		}
		return &t, nil
	}, nil
}

// canonicalNames gives the settings to unset their names here.
func canonicalNames(names []string, set map[string]string) ([]string, error) {
	var out []string
	var faults []error
	for _, name := range names {
		s := findSetting(name)
		if s == nil {
			faults = append(faults, unknownSetting(name))
			continue
		}
		if _, both := set[s.name]; both {
			faults = append(faults, fmt.Errorf("%s is to be set and unset", s.name))
		}
		out = append(out, s.name)
	}
	return out, joinInvalid(faults...)
}

// MarkDeleting ends a topic's life: from now on gateways that look take no appends
// for it. It is no error to mark it again.
func (c *Topics) MarkDeleting(ctx context.Context, name string) (*Topic, error) {
	return c.change(ctx, name, func(t Topic) (*Topic, error) {
		if t.State == TopicDeleting {
			return nil, nil
		}
		t.State = TopicDeleting
		return &t, nil
	})
}

// Remove frees the name of a topic that is marked, after each of its partitions was
// closed. It is no error when that happened before.
func (c *Topics) Remove(ctx context.Context, topic *Topic) error {
	_, err := c.change(ctx, topic.Name, func(t Topic) (*Topic, error) {
		switch {
		case t.ID != topic.ID:
			return nil, nil // freed, and taken again
		case t.State != TopicDeleting:
			return nil, fmt.Errorf("%w: topic %q is %s, not marked for deletion", ErrInvalid, t.Name, t.State)
		}
		t.State, t.Set = topicRemoved, nil
		return &t, nil
	})
	if errors.Is(err, ErrTopicNotFound) {
		return nil
	}
	return err
}
