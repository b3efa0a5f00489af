// Package dynamotable keeps the metadata table in DynamoDB, by single-item
// conditional writes, strong reads and ordered queries, and nothing else of it.
//
// An item of the table, which has p as its hash key and s as its range key:
//
//	p  S  partition key
//	s  S  sort key
//	t  S  stamp: epoch and sequence as 16 hex digits each, so that bytes order it
//	n  N  nonce
//	v  B  value; missing when empty
//
// Each call is one request (a range: one a page), tried once: tries are for who
// knows what a repeated write means, metadata.PutSettled. For that, a failure
// tells whether the request can have reached the server: only from the moment that
// it had a connection to it.
package dynamotable
