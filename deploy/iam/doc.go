// Package iam has the policies that Varve needs on AWS, and nothing but tests of them.
// docs/operations.md says what to put in place of the words in capitals.
//
//	s3.json        what a gateway does in the bucket
//	dynamodb.json  what a gateway does in the table
//	setup.json     what makes bucket and table, once
//	trust-eks.json who may take the gateways' role: their service account in an EKS cluster
package iam
