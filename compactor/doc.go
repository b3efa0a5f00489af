// Package compactor keeps a log that runs for years cheap to hold: small segments become large ones.
//
//	notes of commits ─> Compactor.Run ─> views, index entries
//	                        │ plan (pure): which runs of small neighbours become one
//	                        │ merge: ranged GETs ─> checked batches ─> one new segment ─PUT─> bucket
//	                        └ swap: the partition's sequencer puts the new entries in place of the old
//
// What holds:
//
//  1. A merge changes no byte that a batch's CRC covers, no offset and no timestamp: content sums of what goes in and
//     of what comes out are compared before anything is put.
//  2. A swap is conditional on what was read. Whatever happens to a merge on its way, it leaves garbage at most.
//  3. One job is under way at a time, and has one new segment in memory.
//  4. Where nothing was committed, nothing is read and no timer is armed.
//
// Cost and rules: docs/compaction.md.
package compactor
