// Package sim runs a whole cluster in one process and in virtual time: gateways, clients, a
// bucket, a table, disks and the network between them, all of which fail as a seed has it.
//
//	            workload (clients) ── history ── checks, models ── account
//	                │ network
//	   ┌────────────┼─────────────┐
//	gateway      gateway       gateway      hosts: kill, power, stop, drain, come and go
//	   │  disk      │             │
//	   └────────────┼─────────────┘
//	            bucket, table                weather: what goes wrong with calls
//
// Run must be called in a testing/synctest bubble: nothing here waits but on channels and
// timers. A seed fixes the workload and the faults; the order in which the scheduler runs
// goroutines is not fixed, so that a seed that failed may need a few repetitions.
//
// Some of what goes wrong does not come by chance alone: ambushes kill or stop a gateway right before or
// after a write of a kind, so that procedures are cut short between any two of their steps. The account
// says which paths of the gateways were taken; one that never was is a hole.
//
// A safety phase is followed by one in which everything heals and has to work again within
// a bounded time. Then the history is checked against the invariants of docs/design.md. What is
// wrong goes by the names of Jepsen's kafka workload.
package sim
