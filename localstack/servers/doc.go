// Package servers has the real servers that tests and the local stack run Varve
// against: MinIO as the bucket, dynalite as the DynamoDB table.
//
//	Kind.Fetch ─> <user cache>/varve/…     built or installed once a version
//	Kind.Start ─> Process ─ready─> Stop
//
// A process that is started here belongs either to the one who started it and ends
// with it (tests), or to nobody and lives on (the local stack, which writes the
// Process down and finds it again by its id and command line). Every server
// listens on 127.0.0.1 only.
package servers
