// Package bolttable keeps the metadata table in one local file, by bbolt.
//
//	Put, Delete ──> requests ──> writer: one transaction, one fsync for all that wait ──> answers
//	Get, Range ──> a read transaction of their own, beside the writer
//
// # The file
//
// A bbolt file with two buckets. In "varve" are the rows. A row's key is the length of its
// partition key in two bytes, the partition key, the sort key: so rows of a partition lie
// together, in order, and a partition key costs nothing but its rows. A row's value, integers
// big-endian:
//
//	offset  size  field
//	0       1     version, 1
//	1       4     CRC-32C of the key and of all that follows
//	5       8     epoch
//	13      8     sequence
//	21      8     nonce
//	29      …     value
//
// In "varve.record", under the key "rows", is the record of the rows, which each transaction brings up to
// date. It lies within the page that bbolt writes with each transaction anyway:
//
//	offset  size  field
//	0       1     version of the file's format, 1
//	1       4     CRC-32C of the key, the version and all that follows
//	5       8     number of rows
//	13      8     sum of the CRC-32C of all rows, modulo 2⁶⁴
//
// # Damage
//
// bbolt's pages have no checksums: a flipped bit can hide rows, or show older ones. So Open
// reads the file by itself before it is used. Both head pages must be sound, though bbolt is content with
// one (it would go on from the commit before the last); each page in use must be referred
// to once and not be free; keys must be in order; and the rows must be sound and add up to
// the record. Of a file with more than 256 MiB in use it reads the heads, the list of free
// pages and the record only: there a row that is damaged is noticed when it is read, one that
// vanished is not, nor is damage that comes about while the file is open until the
// next Open. Damage is metadata.ErrCorrupt, and the file stays as it is. Open reads
// 10,000 small rows in 2 ms, 100,000 in 20 ms.
//
// bbolt also panics on bad pages; every use of it here is guarded,
// page faults of a file cut short included, and becomes metadata.ErrCorrupt. The list of free
// pages is written with each commit, for two reasons: the file opens without a look at every
// page by bbolt, and without the goroutine that it would scan them in, whose panics
// nobody could catch. The price is eight bytes a commit for each free page of 4 KB: nothing
// until much was deleted, 2 MB a commit once a gigabyte is free.
//
// After a commit whose fsync or write failed, what the file holds and what its cached pages
// show may differ: a read could see a row that the next start does not. So the table then
// refuses reads and writes until it is opened again. A full disk is different: a write
// refused for space is rolled back, answered by metadata.ErrUnavailable,
// and the table goes on.
package bolttable
