package iam

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"
	minio "github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/s3store"
	"github.com/varvelog/varve/segments/storetest/miniotest"
)

func TestMain(m *testing.M) { os.Exit(miniotest.Run(m)) }

// TestPolicyOfTheBucket has a real server judge by the policy, MinIO in place of S3: all that a gateway
// does is allowed, also to be told that an object is absent, and the rest of the bucket is not.
func TestPolicyOfTheBucket(t *testing.T) {
	server := miniotest.Start(t)
	bucket := server.Bucket(t)
	text, err := os.ReadFile("s3.json")
	if err != nil {
		t.Fatal(err)
	}
	policy := strings.NewReplacer("BUCKET", bucket, "PREFIX", "some/log").Replace(string(text))
	session, err := minio.NewSTSAssumeRole("http://"+server.Endpoint, minio.STSAssumeRoleOptions{
		AccessKey: server.AccessKey, SecretKey: server.SecretKey, Policy: policy, Location: server.Region,
	})
	if err != nil {
		t.Fatal(err)
	}
	role, err := session.GetWithContext(nil)
	if err != nil {
		t.Fatal(err)
	}
	open := func(prefix string) *s3store.Store {
		store, err := s3store.Open(t.Context(), s3store.Config{
			Bucket: bucket, Prefix: prefix, Region: server.Region, Endpoint: "http://" + server.Endpoint,
			Credentials: credentials.NewStaticCredentialsProvider(role.AccessKeyID, role.SecretAccessKey, role.SessionToken),
		})
		if err != nil {
			t.Fatal(err)
		}
		return store
	}

	ours := open("some/log")
	if err := segments.Probe(t.Context(), ours, "probe"); err != nil { // creates, reads, ranges, absence, deletes
		t.Error(err)
	}
	if err := ours.Put(t.Context(), "a/b", segments.NewBody([]byte("x"))); err != nil {
		t.Error(err)
	}
	if _, _, err := ours.Get(t.Context(), "a/b", 0, 0); err != nil { // a HEAD
		t.Error(err)
	}
	if found, err := ours.List(t.Context(), "a/", "", 10); err != nil || len(found) != 1 {
		t.Errorf("listed %v, error %v", found, err)
	}

	theirs := open("some/other")
	_, _, get := theirs.Get(t.Context(), "a/b", 0, -1)
	_, list := theirs.List(t.Context(), "a/", "", 10)
	for what, err := range map[string]error{
		"get":    get,
		"put":    theirs.Put(t.Context(), "a/b", segments.NewBody([]byte("x"))),
		"delete": theirs.Delete(t.Context(), "a/b"),
		"list":   list,
	} {
		if !errors.Is(err, segments.ErrDenied) {
			t.Errorf("%s outside the prefix: %v, want %v", what, err, segments.ErrDenied)
		}
	}
}
