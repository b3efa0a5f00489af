package s3store_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/varvelog/varve/localstack/servers"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/s3store"
	"github.com/varvelog/varve/segments/storetest"
	"github.com/varvelog/varve/segments/storetest/miniotest"
)

func TestMain(m *testing.M) { os.Exit(miniotest.Run(m)) }

func config(t testing.TB) s3store.Config {
	server := miniotest.Start(t)
	return s3store.Config{
		Bucket: server.Bucket(t), Region: server.Region, Endpoint: "http://" + server.Endpoint,
		Credentials: credentials.NewStaticCredentialsProvider(server.AccessKey, server.SecretKey, ""),
	}
}

func open(t testing.TB, c s3store.Config) *s3store.Store {
	t.Helper()
	store, err := s3store.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) segments.Store { return open(t, config(t)) })
}

func TestStoreWithPrefix(t *testing.T) {
	storetest.Run(t, func(t *testing.T) segments.Store {
		c := config(t)
		outside := open(t, c)
		for _, key := range []string{"0", "some/pre", "some/prefix0", "some/prefixed/x", "zzz"} {
			if err := outside.Put(t.Context(), key, segments.NewBody([]byte("not ours"))); err != nil {
				t.Fatal(err)
			}
		}
		c.Prefix, c.Checksum = "some/prefix", s3store.ChecksumWhenRequired
		return open(t, c)
	})
}

func TestRefusals(t *testing.T) {
	good := config(t)
	noBucket, wrongKey, wrongSecret := good, good, good
	noBucket.Bucket = "no-such-bucket"
	wrongKey.Credentials = credentials.NewStaticCredentialsProvider("nobody", "wrong-secret", "")
	wrongSecret.Credentials = credentials.NewStaticCredentialsProvider(servers.AccessKey, "wrong-secret", "")
	silent := good
	silent.Endpoint = "http://127.0.0.1:1"
	tests := []struct {
		name   string
		config s3store.Config
		want   error
	}{
		{"no bucket", noBucket, segments.ErrNoBucket},
		{"wrong key", wrongKey, segments.ErrDenied},
		{"wrong secret", wrongSecret, segments.ErrDenied},
		{"nobody listens", silent, segments.ErrUnavailable},
	}
	for _, test := range tests {
		store := open(t, test.config)
		_, _, getErr := store.Get(t.Context(), "key", 0, -1)
		_, listErr := store.List(t.Context(), "", "", 1)
		for op, err := range map[string]error{
			"Put": store.Put(t.Context(), "key", segments.NewBody([]byte("x"))), "Get": getErr, "List": listErr,
			"Delete": store.Delete(t.Context(), "key"),
		} {
			if !errors.Is(err, test.want) {
				t.Errorf("%s: %s: %v, want %v", test.name, op, err, test.want)
			}
		}
	}
}

func TestOpenFails(t *testing.T) {
	_, err := s3store.Open(context.Background(), s3store.Config{Prefix: "/x/", Checksum: "sometimes"})
	if err == nil {
		t.Fatal("Open succeeded")
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 3 {
		t.Errorf("Open: %v; want bucket, prefix and checksum named", err)
	}
}

func TestNoCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
	t.Setenv("AWS_CONFIG_FILE", "/nonexistent")
	if _, err := s3store.Open(t.Context(), s3store.Config{Bucket: "b"}); !errors.Is(err, segments.ErrDenied) {
		t.Errorf("Open: %v, want ErrDenied", err)
	}
}

func TestWire(t *testing.T) {
	storetest.RunS3(t, func(t *testing.T, endpoint, checksum string) segments.Store {
		return open(t, s3store.Config{
			Bucket: storetest.S3Bucket, Endpoint: "http://" + endpoint, Region: "us-east-1", Checksum: s3store.Checksum(checksum),
			Credentials: credentials.NewStaticCredentialsProvider("key", "secret", ""),
		})
	})
}

func BenchmarkStore(b *testing.B) { storetest.BenchmarkObjects(b, open(b, config(b))) }
