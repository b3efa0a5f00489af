// Package bolttable keeps the metadata table in one local file, by bbolt.
//
//	Put, Delete ──> requests ──> writer: one transaction, one fsync for all that wait ──> answers
//	Get, Range ──> a read transaction of their own, beside the writer
//
// # The file
//
// A bbolt file with one bucket, "varve". Its sequence number is the version of what
// follows (1). A row's key is the length of its partition key in two bytes, the
// partition key, the sort key: so rows of a partition lie together, in order, and a
// partition key costs nothing but its rows. A row's value, integers big-endian:
//
//	offset  size  field
//	0       1     version, 1
//	1       4     CRC-32C of the key and of all that follows
//	5       8     epoch
//	13      8     sequence
//	21      8     nonce
//	29      …     value
//
// # Damage
//
// bbolt trusts its pages and panics on bad ones; every use of it here is guarded,
// page faults of a file cut short included, and becomes metadata.ErrCorrupt. The list of free
// pages is written with each commit, for two reasons: the file opens without a look at every
// page, and without the goroutine that bbolt would scan them in, whose panics
// nobody could catch. The price is eight bytes a commit for each free page of 4 KB: nothing
// until much was deleted, 2 MB a commit once a gigabyte is free.
//
// After a commit whose fsync or write failed, what the file holds and what its cached pages
// show may differ: a read could see a row that the next start does not. So the table then
// refuses reads and writes until it is opened again. A full disk is different: a write
// refused for space is rolled back, answered by metadata.ErrUnavailable,
// and the table goes on.
package bolttable
