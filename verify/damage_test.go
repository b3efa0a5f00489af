package verify_test

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/verify"
)

// sample makes a cluster with pages, inline entries and entries that are only in the journal.
func sample(t *testing.T) *forge {
	f := newForge(t)
	for range 70 {
		f.append(2, 0, 1)
	}
	f.checkpoint(0, false) // a page of 64 and one of 6
	f.append(2, 0, 1)
	f.checkpoint(1, false)
	f.append(3, 0, 1, 2)
	return f
}

func TestHealthy(t *testing.T) {
	f := sample(t)
	f.expect(f.config())
	_, got := f.run(f.config())
	got.ObjectBytes = 0
	want := verify.Summary{ClusterID: f.cluster.ID, Topics: 1, Partitions: 3, Entries: 72 + 72 + 1, Batches: 145, Records: 2*71*2 + 3*3,
		Objects: 72, Journals: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("summary (-want +got):\n%s", diff)
	}
	f.trim(0, 131) // into the second page
	f.expect(f.config())
	f.checkpoint(0, false)
	f.expect(f.config())
	f.begin() // takes over
	f.append(1, 0, 1)
	f.expect(f.config())
	f.trim(1, f.held(1).state.Next()) // all of it
	f.checkpoint(1, false)
	f.expect(f.config())
	f.leave()
	f.expect(f.config())
}

// flip changes a byte, counted from the end where at is negative.
func flip(at int) func([]byte) []byte {
	return func(data []byte) []byte {
		data = bytes.Clone(data)
		data[(at+len(data))%len(data)] ^= 0x10
		return data
	}
}

func cut(data []byte) []byte { return data[:len(data)-1] }

func TestDamage(t *testing.T) {
	page := func(f *forge) metadata.Key { return f.id(0).PageKey(metadata.RowPlace{}) }
	for _, c := range []struct {
		name   string
		damage func(f *forge)
		want   []verify.Kind
	}{
		{"the table is an older copy", func(f *forge) {
			f.putObject(fmt.Sprintf("%s/generation/%020d", f.cluster.ID, 7), []byte("x"))
		}, []verify.Kind{verify.RolledBack}},
		{"the bucket is another cluster's", func(f *forge) {
			f.replaceObject("cluster-id", func([]byte) []byte { return []byte("c1") })
		}, []verify.Kind{verify.OtherCluster}},
		{"the bucket is nobody's", func(f *forge) { f.must(f.store.Delete(f.t.Context(), "cluster-id")) }, []verify.Kind{verify.OtherCluster}},

		{"a topic row", func(f *forge) {
			f.replaceRow(metadata.Key{Partition: "topics", Sort: "a"}, cut)
		}, []verify.Kind{verify.RowCorrupt}},
		{"a gateway row", func(f *forge) {
			f.replaceRow(f.gateway.RowKey(), cut)
		}, []verify.Kind{verify.RowCorrupt}},
		{"the generation row", func(f *forge) {
			f.replaceRow(metadata.Key{Partition: "cluster", Sort: "generation"}, cut)
		}, []verify.Kind{verify.RowCorrupt}},
		{"a lease row", func(f *forge) { f.replaceRow(f.id(0).LeaseKey(), cut) }, []verify.Kind{verify.RowCorrupt}},
		{"a page", func(f *forge) { f.replaceRow(page(f), cut) }, []verify.Kind{verify.RowCorrupt}},
		{"a journal row", func(f *forge) {
			f.replaceRow(f.gateway.JournalKey(72), cut)
		}, []verify.Kind{verify.RowCorrupt}},
		{"a journal's opening row", func(f *forge) {
			f.replaceRow(f.gateway.JournalKey(0), cut)
		}, []verify.Kind{verify.RowCorrupt}},
		{"a producer's row", func(f *forge) {
			f.putRow(metadata.Row{Key: metadata.Key{Partition: f.id(0).LeaseKey().Partition, Sort: "producer/0000000000001000"}, Stamp: metadata.Stamp{Epoch: 1, Sequence: 1}, Value: []byte{1, 2}})
		}, []verify.Kind{verify.RowCorrupt}},

		{"the log ends after its index", func(f *forge) {
			f.editLease(1, func(l *leaseFields) { l.next++ })
		}, []verify.Kind{verify.IndexGap, verify.JournalMismatch}},
		{"the log ends before its index", func(f *forge) {
			f.checkpoint(1, false)
			f.editLease(1, func(l *leaseFields) { l.next-- })
		}, []verify.Kind{verify.IndexOverlap}},
		{"a page is gone", func(f *forge) { f.deleteRow(page(f)) }, []verify.Kind{verify.IndexRowMissing}},
		{"the content sum", func(f *forge) { f.editLease(0, func(l *leaseFields) { l.sum++ }) }, []verify.Kind{verify.ContentSum}},
		{"the bytes in the index", func(f *forge) { f.editLease(0, func(l *leaseFields) { l.bytes++ }) }, []verify.Kind{verify.IndexMismatch}},
		{"an uploader's last number", func(f *forge) {
			f.editLease(1, func(l *leaseFields) { l.lastOfFirst = 20 })
		}, []verify.Kind{verify.UploaderNumber}},

		{"an object is gone", func(f *forge) { f.must(f.store.Delete(f.t.Context(), f.key(3))) }, []verify.Kind{verify.ObjectMissing}},
		{"an object named by the journal alone is gone", func(f *forge) {
			f.must(f.store.Delete(f.t.Context(), f.key(72)))
		}, []verify.Kind{verify.ObjectMissing}},
		{"an object's footer", func(f *forge) { f.replaceObject(f.key(3), flip(-20)) }, []verify.Kind{verify.ObjectCorrupt}},
		{"an object's directory", func(f *forge) { f.replaceObject(f.key(3), flip(-60)) }, []verify.Kind{verify.ObjectCorrupt}},
		{"an object is cut off", func(f *forge) { f.replaceObject(f.key(3), cut) }, []verify.Kind{verify.ObjectCorrupt}},
		{"an object is empty", func(f *forge) {
			f.replaceObject(f.key(3), func([]byte) []byte { return nil })
		}, []verify.Kind{verify.ObjectCorrupt}},
		{"an object has other spans", func(f *forge) {
			f.replaceObject(f.key(3), func([]byte) []byte { return segments.Bytes(f.build(3, "value", 2, 1)) })
		}, []verify.Kind{verify.DirectoryMismatch}},
		{"an object has more records", func(f *forge) {
			f.replaceObject(f.key(3), func([]byte) []byte { return segments.Bytes(f.build(3, "value", 3, 0, 1)) })
		}, []verify.Kind{verify.DirectoryMismatch}},
		{"an object has other records", func(f *forge) {
			f.replaceObject(f.key(3), func([]byte) []byte { return segments.Bytes(f.build(3, "other", 2, 0, 1)) })
		}, []verify.Kind{verify.ContentSum}},
		{"a record's bytes", func(f *forge) { f.replaceObject(f.key(3), flip(16+61+10)) }, []verify.Kind{verify.BatchCorrupt}},
		{"a batch's length", func(f *forge) { f.replaceObject(f.key(3), flip(16+11)) }, []verify.Kind{verify.BatchCorrupt}},

		{"a journal row is gone", func(f *forge) { f.deleteRow(f.gateway.JournalKey(30)) }, []verify.Kind{verify.JournalHole}},
		{"the journal's first row is gone", func(f *forge) { f.deleteRow(f.gateway.JournalKey(1)) }, []verify.Kind{verify.JournalHole}},
		{"the journal's opening row is gone", func(f *forge) { f.deleteRow(f.gateway.JournalKey(0)) }, []verify.Kind{verify.JournalHole}},
		{"the newest row was trimmed", func(f *forge) {
			f.must(metadata.TrimJournal(f.t.Context(), f.table, f.gateway, 72))
		}, []verify.Kind{verify.CheckpointAhead, verify.JournalHole}},
		{"a seal in front of the newest row", func(f *forge) {
			sealed := newForge(f.t)
			_, err := metadata.Seal(f.t.Context(), sealed.table, sealed.gateway, "g1")
			f.must(err)
			seal := sealed.row(sealed.gateway.JournalKey(1))
			seal.Key = f.gateway.JournalKey(71)
			f.checkpoint(0, false)
			f.putRow(seal)
		}, []verify.Kind{verify.EntryAfterSeal}},
		{"a checkpoint is ahead of its journal", func(f *forge) {
			f.editLease(0, func(l *leaseFields) { l.through = 1000 })
		}, []verify.Kind{verify.CheckpointAhead}},
		{"the journal was trimmed above a checkpoint that needs it", func(f *forge) {
			f.append(1, 1)
			f.must(metadata.TrimJournal(f.t.Context(), f.table, f.gateway, 72))
		}, []verify.Kind{verify.JournalMismatch}},
		{"a commit after the release", func(f *forge) {
			f.checkpoint(0, true)
			f.append(1, 0)
		}, []verify.Kind{verify.EntryAfterRelease}},

		{"a lease without its gateway's row", func(f *forge) { f.deleteRow(f.gateway.RowKey()) }, []verify.Kind{verify.LeaseWithoutJournal}},
		{"a lease is gone", func(f *forge) { f.deleteRow(f.id(0).LeaseKey()) }, []verify.Kind{verify.LeaseMissing}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := sample(t)
			c.damage(f)
			f.expect(f.config(), c.want...)
		})
	}
}

// Damage in the bytes alone is seen by looking at them.
func TestDeep(t *testing.T) {
	f := sample(t)
	f.replaceObject(f.key(3), flip(16+61+10))
	shallow := f.config()
	shallow.Deep = false
	f.expect(shallow)
	found := f.expect(f.config(), verify.BatchCorrupt)
	want := verify.Finding{Kind: verify.BatchCorrupt, Topic: "a", Partition: 0, Object: f.key(3), Message: found[0].Message}
	if diff := cmp.Diff([]verify.Finding{want}, found); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A page of another partition, with more or fewer offsets, in place of a page.
func TestSwappedPages(t *testing.T) {
	for _, c := range []struct {
		from, to int32
		want     verify.Kind
	}{{1, 0, verify.IndexOverlap}, {0, 1, verify.IndexGap}} {
		f := newForge(t)
		for range 2 {
			for range 70 {
				f.commit(f.segment(1, 0), f.segment(2, 1))
			}
			f.checkpoint(0, false)
			f.checkpoint(1, false)
		}
		f.expect(f.config())
		page := f.row(f.id(c.from).PageKey(metadata.RowPlace{}))
		page.Key = f.id(c.to).PageKey(metadata.RowPlace{})
		f.putRow(page)
		f.expect(f.config(), c.want, verify.IndexMismatch, verify.DirectoryMismatch)
	}
}

// Epochs and owners: what a gateway that believes in its old lease would do.
func TestEpochs(t *testing.T) {
	takenOver := func(t *testing.T) (f *forge, entry, before metadata.Row) {
		f = newForge(t)
		f.append(1, 0)
		entry, before = f.row(f.gateway.JournalKey(1)), f.row(f.id(0).LeaseKey())
		f.begin()
		f.append(1, 0)
		f.expect(f.config())
		return f, entry, before
	}
	t.Run("two journals have one epoch", func(t *testing.T) {
		f, entry, _ := takenOver(t)
		f.begin()
		entry.Key = f.gateway.JournalKey(1)
		f.putRow(entry)
		f.expect(f.config(), verify.EpochConflict)
	})
	t.Run("a journal has an epoch that is another's", func(t *testing.T) {
		f, _, _ := takenOver(t)
		entry := f.row(f.gateway.JournalKey(1))
		f.deleteRow(f.gateway.JournalKey(1))
		f.editLease(0, func(l *leaseFields) { l.through = 0 })
		f.begin()
		entry.Key = f.gateway.JournalKey(1)
		f.putRow(entry)
		f.expect(f.config(), verify.EpochConflict)
	})
	t.Run("the lease row is an older one", func(t *testing.T) {
		f, _, before := takenOver(t)
		f.putRow(before)
		f.expect(f.config(), verify.EpochConflict)
	})
	t.Run("epochs fall", func(t *testing.T) {
		f, entry, _ := takenOver(t)
		f.checkpoint(0, false)
		entry.Key = f.gateway.JournalKey(2)
		f.putRow(entry)
		f.expect(f.config(), verify.EpochConflict)
	})
}

// Many pages: nodes of the tree.
func TestTree(t *testing.T) {
	f := newForge(t)
	for range 66 {
		var list []*segments.Directory
		for range 64 {
			list = append(list, f.segment(1, 0))
		}
		f.commit(list...)
		f.checkpoint(0, false)
	}
	f.expect(f.config())
	node := f.id(0).NodeKey(1, metadata.RowPlace{First: 0})
	row := f.row(node)
	f.replaceRow(node, cut)
	f.expect(f.config(), verify.RowCorrupt)
	f.deleteRow(node)
	f.expect(f.config(), verify.IndexRowMissing)
	f.putRow(row)
	second := f.row(f.id(0).PageKey(metadata.RowPlace{First: 64}))
	second.Key = f.id(0).PageKey(metadata.RowPlace{})
	f.putRow(second)
	f.expect(f.config(), verify.IndexMismatch, verify.IndexGap, verify.IndexOverlap)
}

func TestLeaseWithoutJournal(t *testing.T) {
	f := newForge(t)
	f.append(1, 0)
	f.checkpoint(0, false)
	row := f.row(f.gateway.JournalKey(1))
	f.deleteRow(f.gateway.JournalKey(0))
	f.deleteRow(row.Key)
	f.expect(f.config(), verify.LeaseWithoutJournal)
}

// Leases that were released need no journal.
func TestReleasedNeedsNoJournal(t *testing.T) {
	f := newForge(t)
	f.append(1, 0)
	f.leave()
	f.deleteRow(f.gateway.RowKey())
	f.expect(f.config())
}

func TestConfig(t *testing.T) {
	if err := (verify.Config{Grace: -time.Second, Parallel: -1}).Validate(); err == nil {
		t.Error("a configuration without store and table, with a negative grace, passes")
	}
	_, err := verify.Run(t.Context(), verify.Config{}, nil)
	if err == nil {
		t.Error("a run without store and table passes")
	}
}
