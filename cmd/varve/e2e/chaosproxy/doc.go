// Package chaosproxy stands between a gateway and its bucket or table, and does to requests what networks
// and services do: it loses them, or their answers, keeps them until nobody waits, and answers what the service
// might have.
//
//	gateway ── signed HTTP/1.1 ──> Proxy ── the same bytes, Host header included ──> MinIO or dynalite
//	                                 └── by chance that hangs on a seed: a Fault
//
// It only does what real ones do: a request takes effect whole or not at all, and no answer says yes to what
// was not done, or a definite no to what was (412 for an own write is the one exception that there is).
package chaosproxy
