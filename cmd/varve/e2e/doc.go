// Package e2e holds tests that run the real binary: they start it, feed it, kill it, stop it
// and look at what it says and what is left. It has nothing to import.
//
//	load (many clients) ──┐                       ┌── folder
//	followers ────────────┼── HTTP ── varve serve ┤
//	the test: SIGKILL … ──┘                       └── or MinIO and a DynamoDB server, real ones too
//	        └── account: what clients were told, against what is there in the end
//
// What is random hangs on a seed, which is logged: go test ./cmd/varve/e2e -run TestKill -seed N
// has the same operations and moments again, as far as the machine allows. -kills and -idle make
// runs longer; -binary tries a binary that exists already.
package e2e
