// Command localstack runs a real S3 server and a real DynamoDB server on this
// machine, for varve serve to use in place of AWS: MinIO and dynalite, as processes
// on 127.0.0.1 with a bucket and a table ready in them. compose.yaml beside it does
// the same with containers.
//
//	go run ./localstack up      start what does not run, print how to use it
//	go run ./localstack down    stop it; the data stays
//	go run ./localstack status  what runs, and where
//	go run ./localstack fetch   only get the servers' programs
//	go run ./localstack with bin/varve bench all
//	                            run a command with servers of its own, which end with it
//
// Run it at the top of the checkout. It keeps data, logs and process ids in
// localstack/.state; removing that folder after a down starts afresh.
package main
