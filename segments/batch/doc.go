// Package batch reads, checks and builds Kafka record batches, format v2
// ("magic 2"), byte for byte as Kafka's libraries do. It is a leaf: gateways
// validate with it, the client builds and decodes with it, tools dump with it.
//
// A batch is a header of 61 bytes, big-endian, and then its records, which may be
// compressed as one block:
//
//	offset size field
//	     0    8 base offset          ┐ not covered by the CRC: given later,
//	     8    4 length               │ without touching the payload
//	    12    4 leader epoch         │ (length counts what follows it)
//	    16    1 magic, always 2      ┘
//	    17    4 CRC-32C of everything from byte 21 to the end
//	    21    2 attributes: bits 0-2 codec, 3 append time, 4 transactional,
//	            5 control, 6 delete horizon, others unused
//	    23    4 last offset delta
//	    27    8 base timestamp, ms since 1970
//	    35    8 max timestamp
//	    43    8 producer id          ┐
//	    51    2 producer epoch       │ -1 without an idempotent producer
//	    53    4 base sequence        ┘
//	    57    4 count of records
//	    61      records
//
//	record: size, attributes (1 byte), timestamp delta, offset delta,
//	        key size, key, value size, value, count of headers,
//	        each header: key size, key, value size, value
//
// Sizes, deltas and counts of a record are zigzag varints; the size -1 of a key or
// a value means null, which differs from empty.
//
// What holds:
//
//  1. No input makes this package panic, and memory is bounded by [Limits], also
//     for compressed input that would inflate to gigabytes.
//  2. A batch that [Validate] accepted holds exactly Count records with offsets
//     dense from its base, and its MaxTimestamp is that of its records, so that
//     offsets and time lookups can be computed from headers alone.
//  3. Whatever [Builder] makes, Validate accepts within the same limits.
//  4. What [Compact] makes keeps offsets and says the truth in its header, as [Inspect]
//     checks; offsets may have gaps then.
//  5. No function keeps the bytes that it was given, nor starts a goroutine.
//
// The format is specified at https://kafka.apache.org/documentation/#recordbatch.
package batch
