// Package seeded plants known bugs, so that the tests can show that they would find
// them: a checker that never failed proves nothing. Without the build tag seeded nothing
// can be planted, and the compiler removes every trace of it.
package seeded

// Bug names a bug that can be planted.
type Bug string

// The bugs, each where the code that it breaks says so. docs/reliability.md has what finds them.
const (
	// SkipEpochCheck folds journal entries of any epoch.
	SkipEpochCheck Bug = "skip-epoch-check"
	// DeleteSeal trims a sealed journal with its seal.
	DeleteSeal Bug = "delete-seal"
	// UnsettledDuplicate answers duplicates without making sure that nobody took over.
	UnsettledDuplicate Bug = "unsettled-duplicate"
	// AckBeforeCommit answers before the journal entry is put.
	AckBeforeCommit Bug = "ack-before-commit"
	// ReuseNumber begins a tenure's segment numbers under the id of the one before.
	ReuseNumber Bug = "reuse-number"
	// MissingIsEmpty takes an object that is not there for one without records.
	MissingIsEmpty Bug = "missing-is-empty"
	// ForgetUploader loses the uploaders' last numbers in a takeover.
	ForgetUploader Bug = "forget-uploader"
	// ForgetProducers loses the producers' last batches in a takeover.
	ForgetProducers Bug = "forget-producers"
	// ForgetFence loses the fencing token in a takeover.
	ForgetFence Bug = "forget-fence"
	// AdoptAnyPage takes a page of another owner for one's own.
	AdoptAnyPage Bug = "adopt-any-page"
	// SkipFolderSync does not make a new buffer file's name durable.
	SkipFolderSync Bug = "skip-folder-sync"
	// RetrySync syncs a file again after a sync of it failed.
	RetrySync Bug = "retry-sync"
	// ClockDecides takes gateways for dead while the table takes no heartbeats of one's own.
	ClockDecides Bug = "clock-decides"
	// SkipFold takes a dead gateway's partition as of its last checkpoint.
	SkipFold Bug = "skip-fold"
	// ReleaseEarly goes on judging while a partition is released.
	ReleaseEarly Bug = "release-early"
	// AcceptClosedUploader judges references of gateways that are closed.
	AcceptClosedUploader Bug = "accept-closed-uploader"
	// StaleConfirm answers linearizable reads without making sure that nobody took over.
	StaleConfirm Bug = "stale-confirm"
	// OlderView shows a reader an older view after a newer one.
	OlderView Bug = "older-view"
	// IgnoreChain judges references of an uploader in whatever order they come.
	IgnoreChain Bug = "ignore-chain"
	// LatePage puts pages whatever is there.
	LatePage Bug = "late-page"
	// ForgetDoubt writes another checkpoint while the outcome of one is not known.
	ForgetDoubt Bug = "forget-doubt"
	// JudgeAfterRelease goes on judging a partition of which it is not known whether it was released.
	JudgeAfterRelease Bug = "judge-after-release"
	// SkipRefresh judges in a partition that was just taken without reading the gateways' rows again.
	SkipRefresh Bug = "skip-refresh"
	// RecoverAgain judges what recovery submits whatever number was judged before.
	RecoverAgain Bug = "recover-again"
	// ReadOnce reads a partition from the table without looking whether its lease row stood meanwhile.
	ReadOnce Bug = "read-once"
	// StaleJournal shares what was read of a journal with whoever comes later, though it may have gone on.
	StaleJournal Bug = "stale-journal"
	// TrimRowsFirst removes a journal's rows before it raises trimmed-to.
	TrimRowsFirst Bug = "trim-rows-first"
	// IgnoreNonce takes whatever stands where a put of unknown outcome should be for that put.
	IgnoreNonce Bug = "ignore-nonce"
	// RefusalInMemory keeps refusals out of the journal.
	RefusalInMemory Bug = "refusal-in-memory"
	// PublishBeforeCommit shows readers what is not committed yet.
	PublishBeforeCommit Bug = "publish-before-commit"
	// TrimEarly removes a sealed journal's entries when this gateway's part of them is moved.
	TrimEarly Bug = "trim-early"
	// SwapAnyway replaces index entries whatever is there by now.
	SwapAnyway Bug = "swap-anyway"
	// RemovedIsEmpty takes a partition of a deleted topic, whose rows are gone, for one that nobody has appended to.
	RemovedIsEmpty Bug = "removed-is-empty"
	// CollectStaleView takes for named what lease rows name, whatever journals say.
	CollectStaleView Bug = "collect-stale-view"
	// CollectAboveFloor collects segments that their uploader has not settled.
	CollectAboveFloor Bug = "collect-above-floor"
	// ForgetClosedEarly collects segments of a closed gateway before every other one knows that it is closed.
	ForgetClosedEarly Bug = "forget-closed-early"
)

// All lists the bugs.
var All = []Bug{SkipEpochCheck, DeleteSeal, UnsettledDuplicate, AckBeforeCommit, ReuseNumber, MissingIsEmpty, ForgetUploader,
	ForgetProducers, ForgetFence, AdoptAnyPage, SkipFolderSync, RetrySync, ClockDecides, SkipFold, ReleaseEarly, AcceptClosedUploader,
	StaleConfirm, OlderView, IgnoreChain, TrimEarly, LatePage, ForgetDoubt, JudgeAfterRelease, SkipRefresh, RecoverAgain, ReadOnce, StaleJournal,
	TrimRowsFirst, IgnoreNonce, RefusalInMemory, PublishBeforeCommit, SwapAnyway, RemovedIsEmpty,
	CollectStaleView, CollectAboveFloor, ForgetClosedEarly}
