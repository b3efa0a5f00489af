package compactor

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/varvelog/varve/metadata"
)

// trim removes all of some partitions.
func (c *pureCluster) trim(partitions ...int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range partitions {
		p := c.partition(partitionID(n))
		change, err := p.JudgeTrim(p.Next())
		must(c.t, err)
		c.sequence++
		must(c.t, p.Apply(change, c.sequence))
	}
}

// TestPinnedUpload: a small part of an object that a gateway uploaded, which nothing comes to be merged with, is moved by itself after a day;
// one that has its object to itself is left where it is.
func TestPinnedUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 9)
		c.elsewhere = make(map[metadata.PartitionID]bool)
		for n := 1; n < 8; n++ {
			c.elsewhere[partitionID(n)] = true
		}
		m := c.running(Config{TargetBytes: 64 << 10})
		next, bytes := c.append(1000, 0, 1, 2, 3, 4, 5, 6, 7)
		m.Note(partitionID(0), next, bytes)
		time.Sleep(23 * time.Hour)
		synctest.Wait()
		if e := c.entries(0); merged(&e[0]) {
			t.Error("it is moved before a day has passed")
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if e := c.entries(0); !merged(&e[0]) || len(m.tracked) > 0 {
			t.Errorf("it is not moved, %d partitions are kept in mind", len(m.tracked))
		}
		next, bytes = c.append(1000, 8)
		m.Note(partitionID(8), next, bytes)
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		if e := c.entries(8); merged(&e[0]) || len(m.tracked) > 0 {
			t.Errorf("what has its object to itself is moved, or looked at for ever: %d", len(m.tracked))
		}
		before := c.calls()
		if time.Sleep(48 * time.Hour); c.calls() != before {
			t.Errorf("%+v became %+v although there is nothing to do", before, c.calls())
		}
	})
}

// TestPinnedMerge: what is left of a merged object of which most is not needed any more is moved; as long as the others need it, it
// stays.
func TestPinnedMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newPureCluster(t, 8)
		m := c.running(Config{TargetBytes: 64 << 10})
		for range 2 {
			c.append(1000, 0, 1, 2, 3, 4, 5, 6, 7)
		}
		compact := func() Report {
			t.Helper()
			r, err := m.Compact(t.Context(), "", false)
			must(t, err)
			if r.Failed > 0 || len(r.SetAside) > 0 {
				t.Fatalf("%+v", r)
			}
			return r
		}
		compact()
		first := c.entries(0)
		if len(first) != 1 || !merged(&first[0]) {
			t.Fatalf("%+v", first)
		}
		if r := compact(); r.Bytes > 0 {
			t.Errorf("what all need is written again: %+v", r)
		}
		c.trim(1, 2, 3, 4)
		if r := compact(); r.Bytes > 0 {
			t.Errorf("half of it is needed, and is written again: %+v", r)
		}
		c.trim(5, 6)
		compact()
		after, other := c.entries(0), c.entries(7)
		if after[0].Number == first[0].Number || after[0].Number != other[0].Number {
			t.Errorf("what is left lies in segments %d and %d, all lay in %d", after[0].Number, other[0].Number, first[0].Number)
		}
		if r := compact(); r.Bytes > 0 {
			t.Errorf("it is written again and again: %+v", r)
		}
	})
}
