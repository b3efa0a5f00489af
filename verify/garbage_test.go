package verify_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/verify"
)

func (f *forge) hasObject(key string) bool {
	f.t.Helper()
	_, _, err := f.store.Get(f.t.Context(), key, 0, 1)
	if err != nil && !errors.Is(err, segments.ErrNotFound) {
		f.t.Fatal(err)
	}
	return err == nil
}

func (f *forge) hasRow(key metadata.Key) bool {
	f.t.Helper()
	_, err := f.table.Get(f.t.Context(), key, metadata.Strong)
	if err != nil && !errors.Is(err, metadata.ErrNotFound) {
		f.t.Fatal(err)
	}
	return err == nil
}

func (f *forge) repair() verify.Config {
	config := f.config()
	config.Repair = true
	config.Acknowledge = func(context.Context, metadata.GatewayID) error { return nil }
	return config
}

// An object that was uploaded and never committed is an orphan once its number is settled, and
// goes once its uploader is closed.
func TestOrphanObject(t *testing.T) {
	f := newForge(t)
	f.append(1, 0)
	f.segment(1, 0)
	lost := f.key(f.number)
	f.expect(f.repair()) // it may still be committed

	row := metadata.Gateway{}
	rows, err := metadata.ListGateways(t.Context(), f.table, metadata.Strong, nil)
	f.must(err)
	row = rows[0]
	row.Floor = f.number + 1
	f.must(row.Write(t.Context(), f.table))
	for _, found := range f.expect(f.repair(), verify.OrphanObject) {
		if found.Repaired || found.Object != lost {
			t.Errorf("%+v, want %s, which stays while its uploader lives", found, lost)
		}
	}
	cautious := f.repair()
	cautious.Grace = 2 * longAgo
	f.expect(cautious)

	f.leave()
	f.expect(f.config(), verify.OrphanObject)
	if !f.hasObject(lost) {
		t.Fatal("verify without repair removed an object")
	}
	f.must(f.store.Delete(t.Context(), f.key(1)))
	f.expect(f.repair(), verify.ObjectMissing, verify.OrphanObject)
	if !f.hasObject(lost) {
		t.Fatal("repair removed an object of a cluster that is broken")
	}
	f.putObject(f.key(1), segments.Bytes(f.build(1, "value", 1, 0)))
	var whole []byte
	f.replaceObject(lost, func(data []byte) []byte { whole = data; return data[:len(data)-1] })
	for _, found := range f.expect(f.repair(), verify.OrphanObject) {
		if !strings.Contains(found.Stays, "readable directory") {
			t.Errorf("%+v, want it to stay for want of a directory", found)
		}
	}
	f.replaceObject(lost, func([]byte) []byte { return whole })
	for _, found := range f.expect(f.repair(), verify.OrphanObject) {
		if !found.Repaired {
			t.Errorf("%+v was not removed", found)
		}
	}
	if f.hasObject(lost) || !f.hasObject(f.key(1)) {
		t.Error("repair removed the wrong object")
	}
	f.expect(f.repair())
}

// Topics that the catalog no longer knows: what a lease row names stays, and so does everything when that
// row cannot be read.
func TestLostTopicKeepsItsObjects(t *testing.T) {
	for _, damage := range []func(f *forge){
		func(*forge) {},
		func(f *forge) { f.replaceRow(f.id(0).LeaseKey(), cut) },
	} {
		f := newForge(t)
		f.append(1, 0)
		f.append(1, 0) // the journal keeps its newest row alone
		f.leave()
		f.deleteRow(metadata.Key{Partition: "topics", Sort: "a"})
		damage(f)
		for _, found := range f.expect(f.repair(), verify.OrphanObject, verify.OrphanRow) {
			if found.Repaired {
				t.Errorf("%+v was removed", found)
			}
		}
		if !f.hasObject(f.key(1)) {
			t.Error("repair removed what a lease row names")
		}
	}
}

// lateWriter puts a row again, with a higher stamp, just before it is removed.
type lateWriter struct {
	metadata.Table
	rows map[metadata.Key]metadata.Row
}

func (l lateWriter) Delete(ctx context.Context, key metadata.Key, c metadata.Condition) error {
	if row, late := l.rows[key]; late {
		row.Stamp.Sequence, row.Nonce = 99, metadata.NewNonce()
		if err := l.Put(ctx, row, metadata.Condition{}); err != nil {
			return err
		}
	}
	return l.Table.Delete(ctx, key, c)
}

// A row that the next checkpoint writes while it is being removed stays.
func TestRowWrittenAgain(t *testing.T) {
	f := sample(t)
	stray := f.row(f.id(0).PageKey(metadata.RowPlace{First: 0}))
	stray.Key, stray.Stamp = f.id(0).PageKey(metadata.RowPlace{First: 140}), metadata.Stamp{Epoch: 1, Sequence: 5}
	f.putRow(stray)
	config := f.repair()
	config.Table = lateWriter{f.table, map[metadata.Key]metadata.Row{stray.Key: stray}}
	for _, found := range f.expect(config, verify.OrphanRow) {
		if found.Repaired {
			t.Errorf("%+v was removed", found)
		}
	}
	if !f.hasRow(stray.Key) {
		t.Error("repair removed a row that was written again")
	}
}

func TestObjectWithoutUploader(t *testing.T) {
	f := newForge(t)
	f.append(1, 0)
	nobody := *f
	nobody.gateway = metadata.NewGatewayID(time.Now().Add(-longAgo))
	nobody.segment(1, 0)
	for _, found := range f.expect(f.repair(), verify.OrphanObject) {
		if found.Repaired {
			t.Errorf("%+v was removed", found)
		}
	}
}

// Pages and nodes that nothing names go if they are older than the checkpoint; those of a
// checkpoint that is being written stay.
func TestOrphanRows(t *testing.T) {
	f := sample(t)
	stray := f.row(f.id(0).PageKey(metadata.RowPlace{First: 0}))
	stray.Key, stray.Stamp = f.id(0).PageKey(metadata.RowPlace{First: 3}), metadata.Stamp{Epoch: 1, Sequence: 5}
	f.putRow(stray)
	node := stray
	node.Key = f.id(0).NodeKey(1, metadata.RowPlace{First: 3})
	f.putRow(node)
	coming := stray
	coming.Key, coming.Stamp = f.id(0).PageKey(metadata.RowPlace{First: 140}), metadata.Stamp{Epoch: 1, Sequence: 99}
	f.putRow(coming)
	f.expect(f.config(), verify.OrphanRow)
	for _, found := range f.expect(f.repair(), verify.OrphanRow) {
		if !found.Repaired {
			t.Errorf("%+v was not removed", found)
		}
	}
	if f.hasRow(stray.Key) || f.hasRow(node.Key) {
		t.Error("rows that nothing names are there after a repair")
	}
	if !f.hasRow(coming.Key) {
		t.Error("repair removed a row of a checkpoint that is being written")
	}
	f.expect(f.repair())
}

// A partition with a break keeps everything.
func TestNoRepairOfBrokenPartition(t *testing.T) {
	f := sample(t)
	stray := f.row(f.id(0).PageKey(metadata.RowPlace{First: 0}))
	stray.Key, stray.Stamp = f.id(0).PageKey(metadata.RowPlace{First: 3}), metadata.Stamp{Epoch: 1, Sequence: 5}
	f.putRow(stray)
	f.editLease(0, func(l *leaseFields) { l.sum++ })
	f.expect(f.repair(), verify.ContentSum)
	if !f.hasRow(stray.Key) {
		t.Error("repair removed a row of a partition that is broken")
	}
}

// A deleted topic leaves rows and objects; a journal is left over once no lease names it.
func TestRemovedTopic(t *testing.T) {
	for want, partitions := range map[string][]int32{
		"2 partitions of the topic, which was deleted and was called a, still have their rows": {0, 2},
		"1 partition of the topic, which was deleted and was called a, still has its rows":     {0},
	} {
		t.Run(want, func(t *testing.T) { removedTopic(t, want, partitions) })
	}
}

func removedTopic(t *testing.T, want string, partitions []int32) {
	f := newForge(t)
	f.append(1, partitions...)
	_, err := f.topics.MarkDeleting(t.Context(), "a")
	f.must(err)
	f.expect(f.config())
	for _, partition := range partitions {
		entry := metadata.NewEntryBuilder(time.Now())
		f.apply(entry, partition, f.held(partition).state.JudgeClose())
		_, err := f.journal.Append(t.Context(), entry.Encode())
		f.must(err)
	}
	f.leave()
	f.expect(f.config())
	f.must(f.topics.Remove(t.Context(), f.topic))
	f.begin()
	f.leave()
	found := f.expect(f.config(), verify.OrphanObject, verify.OrphanRow)
	if len(found) != 2 {
		t.Errorf("%d findings, want an object and a topic's rows: %+v", len(found), found)
	}
	if !slices.ContainsFunc(found, func(found verify.Finding) bool { return found.Message == want }) {
		t.Errorf("%+v, want one that says %q", found, want)
	}
	f.expect(f.repair(), verify.OrphanObject, verify.OrphanRow)
	found = f.expect(f.repair(), verify.OrphanRow)
	// Its name is given again: the row about it names it still.
	_, err = f.topics.Create(t.Context(), "a", 1, nil, time.Now())
	f.must(err)
	f.must(metadata.NoteRemoved(t.Context(), f.table, f.topic))
	again := f.expect(f.repair(), verify.OrphanRow)
	if !slices.ContainsFunc(again, func(found verify.Finding) bool {
		return strings.HasPrefix(found.Message, want) && found.Stays == "the gateways remove it"
	}) {
		t.Errorf("%+v, want one that says %q, and who removes it", again, want)
	}
	for _, found := range found {
		if found.Repaired || !f.hasRow(f.id(0).LeaseKey()) {
			t.Errorf("%+v was removed", found)
		}
	}
}

// While not every gateway that lives has said that it knows of a closing, what the closed one uploaded stays; so does what
// it wrote as a compactor. When even its row is gone, the seal of its journal says that it ended.
func TestOrphansOfClosedGateways(t *testing.T) {
	f := newForge(t)
	f.append(1, 0)
	f.segment(1, 0)
	closed := *f
	merger := *f
	merger.gateway = metadata.MergerID(f.gateway)
	merger.number = 0
	merger.segment(1, 0)
	f.leave()
	f.begin()
	deaf := f.repair()
	deaf.Acknowledge = nil
	for _, found := range f.expect(deaf, verify.OrphanObject) {
		if found.Repaired || !strings.Contains(found.Stays, "not every gateway") {
			t.Errorf("%+v, want it to stay until everybody knows", found)
		}
	}
	f.leave()
	f.deleteRow(closed.gateway.RowKey())
	found := f.expect(f.repair(), verify.OrphanObject)
	if len(found) != 2 || !found[0].Repaired || !found[1].Repaired || !strings.Contains(found[0].Message, "the seal of its journal") {
		t.Errorf("%+v", found)
	}
	f.expect(f.config())
}

// The journal of a gateway that died and was closed is garbage once its partitions were taken, but for its seal.
func TestOrphanJournal(t *testing.T) {
	f := newForge(t)
	f.append(1, 0)
	dead := f.gateway
	f.begin()
	f.held(0)
	f.must(metadata.MarkClosed(t.Context(), f.table, dead))
	found := f.expect(f.repair(), verify.OrphanRow)
	if len(found) != 1 || found[0].Repaired || found[0].Row != "journal/"+string(dead) {
		t.Errorf("%+v", found)
	}
	journal, err := metadata.ReadSealed(t.Context(), f.table, dead)
	f.must(err)
	f.must(journal.Trim(t.Context(), f.table))
	f.expect(f.repair())
}

func TestForeignObject(t *testing.T) {
	f := sample(t)
	f.putObject(f.cluster.ID+"/notes.txt", []byte("x"))
	f.putObject(f.cluster.ID+"/probe-ABC-once", []byte("x"))
	f.putObject("elsewhere/notes.txt", []byte("x"))
	found := f.expect(f.repair(), verify.ForeignObject)
	if len(found) != 1 || found[0].Repaired || !f.hasObject(f.cluster.ID+"/notes.txt") {
		t.Errorf("%+v, want the one file, which stays", found)
	}
}

// deletedMeanwhile does something when the first journal is read: the topics have been read by then.
type deletedMeanwhile struct {
	metadata.Table
	do func()
}

func (d deletedMeanwhile) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if strings.HasPrefix(r.Partition, "journal/") {
		d.do()
	}
	return d.Table.Range(ctx, r)
}

// A topic is deleted while verify runs, its rows are swept, and some come late: changes without a lease row, and rows without one, are no
// break. In a topic that nobody deleted they are.
func TestDeletedMeanwhile(t *testing.T) {
	for _, deleted := range []bool{true, false} {
		f := newForge(t)
		f.append(1, 0, 1)
		f.checkpoint(1, false)
		f.append(1, 0)
		late := f.row(f.id(1).LeaseKey())
		late.Key.Sort = "producer/0000000000001000"
		config := f.config()
		config.Table = deletedMeanwhile{f.table, sync.OnceFunc(func() {
			if deleted {
				f.must(metadata.NoteRemoved(t.Context(), f.table, f.topic))
			}
			f.deleteRow(f.id(0).LeaseKey())
			f.deleteRow(f.id(1).LeaseKey())
			f.putRow(late)
		})}
		if deleted {
			f.expect(config)
		} else {
			f.expect(config, verify.LeaseMissing)
		}
	}
}
