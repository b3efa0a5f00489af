// Package gateway is the process that serves the log: it takes appends, gives them their
// offsets, and reads them back.
//
//	Produce ──> intake ──seal──> segment ──PUT──> bucket
//	              │ (acks=buffered: also a buffer file)
//	              └──references──> sequencer ──one journal entry a cycle──> table
//	                                   │ settled: acks, and a new view
//	Consume, Fetch, ListOffsets <── reader: view and index ──> bytes (fresh segments, bucket)
//
// [New] starts nothing; [Gateway.Run] owns everything that runs, and returns when all of
// it has ended. The intake's lock guards the open segment; one goroutine owns the
// sequencer's state; readers see immutable views. Shared work never runs under a
// caller's context: a caller that leaves early learns "unknown", not "failed".
//
// What holds:
//
//  1. No answer is told before the journal entry that it rests on is durable, nor,
//     without one, before a strong read that the journal is not sealed.
//  2. Each append is answered once, and its memory accounted for until then.
//  3. A reader's view only ever moves forward: its end never falls.
//  4. An idle gateway asks nothing of bucket and table, but a heartbeat where the table
//     is shared.
package gateway
