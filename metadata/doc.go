// Package metadata holds the truth of the log: offsets, order, times. It knows rows of
// one table, and nothing of bytes in buckets.
//
//	Table     single-row conditional writes, ordered ranges (table.go, settle.go)
//	Journal   a gateway's decisions; appended to until it is sealed (journal.go, entry.go)
//	Partition a pure state machine: Judge a reference, Apply a change (partition.go)
//	Lease     who sequences a partition, and its checkpoint (lease.go)
//	View      what readers may see: log start, end, index (view.go, index.go, lookup.go, time.go)
//	Messages  what gateways say to each other of all these (wire.go, view_wire.go)
//	Topics, Cluster, Gateway   rows that are written rarely
//	Expired   what of a partition goes under a retention (retention.go); RemovedTopic (removed.go)
//	Rendezvous which gateway should sequence a partition (rendezvous.go)
//
// What holds:
//
//  1. A change counts once its journal entry is durable; an entry is never replaced, and
//     none follows a seal.
//  2. Folding a journal's entries over a checkpoint gives the state that its owner had.
//  3. Index entries tile the log from its first entry to its end.
//  4. Clocks decide nothing, but whether a record is too old to be kept.
//
// Every row, with its size and what writing it costs: docs/metadata.md.
package metadata
