// Package bill counts what topics use of what a cloud bills, and turns it into money.
//
//	calls of the gateway ─> retries ─> Ledger.Store ─> the bucket
//	                                   Ledger.Table ─> the table
//	                                        │ one account a topic, one for the cluster
//	                                        └─ Statement ─> Prices.Of ─> Cost
//
// Whoever makes a call says by its context for whom (ForTopic, Shared), where the call itself does
// not: an object that is a segment names its topics, a partition's row its own. What nobody is named
// for is the cluster's.
//
// Invariants: each call, byte and unit is in one account, or in parts in several whose sum it is, to
// the millionth. Nothing here decides anything.
package bill
