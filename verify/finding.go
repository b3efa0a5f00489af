package verify

import "github.com/varvelog/varve/metadata"

// Kind says what was found. The texts are stable.
type Kind string

// Breaks of an invariant.
const (
	// RolledBack: the bucket knows a higher generation than the table, which is an older copy.
	RolledBack Kind = "ROLLED_BACK"
	// OtherCluster: the bucket belongs to another cluster than the table, or to none.
	OtherCluster Kind = "OTHER_CLUSTER"
	// RowCorrupt: a row cannot be decoded.
	RowCorrupt Kind = "ROW_CORRUPT"

	// IndexGap and IndexOverlap: entries do not follow each other from log start to end.
	IndexGap     Kind = "INDEX_GAP"
	IndexOverlap Kind = "INDEX_OVERLAP"
	// IndexRowMissing: a page or node that the index names is not there.
	IndexRowMissing Kind = "INDEX_ROW_MISSING"
	// IndexMismatch: what the index says of a page or node (first offset, timestamps, bytes, entries,
	// sum) is not what is in it.
	IndexMismatch Kind = "INDEX_MISMATCH"
	// ContentSum: entries do not add up to the lease row's content sum, or batches to their entry's.
	ContentSum Kind = "CONTENT_SUM"
	// UploaderNumber: an entry names a segment above the last one of its uploader that the partition judged.
	UploaderNumber Kind = "UPLOADER_NUMBER"

	// ObjectMissing: an entry names an object that is not there.
	ObjectMissing Kind = "OBJECT_MISSING"
	// ObjectCorrupt: an object's footer or directory cannot be read.
	ObjectCorrupt Kind = "OBJECT_CORRUPT"
	// DirectoryMismatch: an entry and the object's directory disagree.
	DirectoryMismatch Kind = "DIRECTORY_MISMATCH"
	// BatchCorrupt: a batch's bytes are not what its CRC, its header or the directory says. With Deep.
	BatchCorrupt Kind = "BATCH_CORRUPT"

	// JournalHole: a row of a journal is missing.
	JournalHole Kind = "JOURNAL_HOLE"
	// EntryAfterSeal: a journal goes on after its seal.
	EntryAfterSeal Kind = "ENTRY_AFTER_SEAL"
	// EntryAfterRelease: a journal has a change of a partition that its owner had released.
	EntryAfterRelease Kind = "ENTRY_AFTER_RELEASE"
	// JournalMismatch: the journal does not follow on from the partition's checkpoint.
	JournalMismatch Kind = "JOURNAL_MISMATCH"
	// CheckpointAhead: a checkpoint reaches further than its journal.
	CheckpointAhead Kind = "CHECKPOINT_AHEAD"
	// EpochConflict: epochs of a partition fall, or two journals have entries of the same one.
	EpochConflict Kind = "EPOCH_CONFLICT"
	// LeaseMissing: a partition has changes or rows, and no lease row.
	LeaseMissing Kind = "LEASE_MISSING"
	// LeaseWithoutJournal: a lease that was not released names a gateway without row or journal.
	LeaseWithoutJournal Kind = "LEASE_WITHOUT_JOURNAL"
)

// Garbage: it costs space and nothing else.
const (
	// OrphanObject: nothing names the object, and nothing will.
	OrphanObject Kind = "ORPHAN_OBJECT"
	// OrphanRow: nothing needs the row, or the rows.
	OrphanRow Kind = "ORPHAN_ROW"
	// ForeignObject: no gateway writes such a key below the cluster's prefix.
	ForeignObject Kind = "FOREIGN_OBJECT"
)

// Break says that an invariant is broken; false: it is garbage.
func (k Kind) Break() bool { return k != OrphanObject && k != OrphanRow && k != ForeignObject }

// inBytes says that the break is in an object alone: the index is known all the same.
func (k Kind) inBytes() bool {
	switch k {
	case ObjectMissing, ObjectCorrupt, DirectoryMismatch, BatchCorrupt:
		return true
	}
	return false
}

// ItStays leads in a message to why a piece of garbage stays.
const ItStays = "; it stays: "

// Why garbage stays that nothing can speak for.
const (
	staysForLateWriters = "it keeps late writers out"
	staysForSweep       = "the gateways remove it"
	staysForCollector   = "the collector of garbage removes it (varve gc)"
	staysUnheard        = "not every gateway has said that it knows"
	staysAsForeign      = "it is not Varve's"
	staysOfOpenGateway  = "that gateway is not closed"
	staysOfNobody       = "nothing says whether that gateway has ended"
	staysWhileBroken    = "no object is removed while anything is broken"
	staysUnreadable     = "without a readable directory nobody can tell whose it was"
)

// NoPartition stands where a finding is about no partition.
const NoPartition = int32(-1)

// Finding is one break, or one piece of garbage.
type Finding struct {
	Kind Kind
	// Topic is a name, or an id when the topic's row is gone; Partition is NoPartition where
	// the finding is about none.
	Topic     string
	Partition int32
	// Object is a key of the bucket, Row the partition and sort key of a row; empty where the
	// finding is about none.
	Object, Row string
	// Message is a sentence for people. Of garbage that stays it ends with ItStays and why.
	Message string
	// Stays: why garbage was not removed although [Config.Repair] was set.
	Stays string
	// Repaired: it was removed.
	Repaired bool
}

// Summary counts what was looked at. With gateways at work the counts are of different moments.
type Summary struct {
	ClusterID string
	Topics    int64
	// Partitions that have been appended to.
	Partitions int64
	// Entries of the index, Batches and Records in them, all between log start and end. What a merge replaced counts as it was until
	// a checkpoint has the merge.
	Entries, Batches, Records int64
	// Objects are the segments in the bucket, ObjectBytes their size.
	Objects, ObjectBytes int64
	Journals             int64
	// Breaks, and pieces of Garbage of which Repaired were removed.
	Breaks, Garbage, Repaired int64
}

// partition names a partition for findings.
type partition struct {
	id    metadata.PartitionID
	topic string
}

func (p *partition) finding(kind Kind, message string) Finding {
	return Finding{Kind: kind, Topic: p.topic, Partition: p.id.Number, Message: message}
}
