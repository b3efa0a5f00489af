// Package segments knows bytes and counts: the objects in which record batches of
// many partitions lie together, and the bucket that keeps them.
//
//	Builder ──Build──> Object ──Put──> Store ──Get(last 64 KiB)──> Directory
//	   ▲                                 ▲
//	   batches, as they came             │ Retry, Observe   (decorators)
//	                                     │ memstore, filestore, s3store, miniostore
//
// The format is specified in docs/segment-format.md, [Store] is the contract of
// the bucket, and storetest holds the suite that every backend passes. What an
// offset is, and which of these objects count, the package does not know.
//
// Invariants:
//
//  1. An object is written once, whole or not at all, and never changes.
//  2. Its name is repeated inside it, and is never used again.
//  3. Spans tile the object from the header to the directory, in the order of
//     (topic, partition); batches tile their span.
//  4. A directory is used only if every byte of it and of the footer was checked.
package segments
