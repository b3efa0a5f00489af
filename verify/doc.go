// Package verify checks a cluster's bucket and table against the invariants of the log, while
// gateways work on them.
//
//	generation, gateways, topics ─> journals ─> partitions' indexes ─> objects' directories ─> LIST
//	                                   │               │                   (bytes: Deep)        │
//	                                   └──── what they name ────────────────────────────────────┴─> orphans
//
// What holds:
//
//  1. Nothing is reported that a gateway at work makes look wrong. Rows of a journal, objects and
//     named pages never change, so most breaks are facts; what can move between two reads is read
//     again, and counts only if the partition's lease row stood all the while.
//  2. What is named is seen: floors are read first, then journals, then lease rows with their pages,
//     and a change goes from the journal to the lease row only. So a settled object that was named
//     nowhere is named by nothing.
//  3. Memory is bounded: partitions are streamed, entries are held against objects in groups, names are a bit an
//     object. What grows is the largest journal, and what is remembered of the partitions in journals.
//  4. Only Repair deletes, only garbage, and nothing at all after a break.
package verify
