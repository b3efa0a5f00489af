package miniostore_test

import (
	"errors"
	"os"
	"testing"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varvelog/varve/localstack/servers"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/miniostore"
	"github.com/varvelog/varve/segments/storetest"
	"github.com/varvelog/varve/segments/storetest/miniotest"
)

func TestMain(m *testing.M) { os.Exit(miniotest.Run(m)) }

func config(t testing.TB) miniostore.Config {
	server := miniotest.Start(t)
	return miniostore.Config{
		Bucket: server.Bucket(t), Region: server.Region, Endpoint: server.Endpoint,
		Credentials: credentials.NewStaticV4(server.AccessKey, server.SecretKey, ""),
	}
}

func open(t testing.TB, c miniostore.Config) *miniostore.Store {
	t.Helper()
	store, err := miniostore.Open(c)
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
		c.Prefix, c.Checksum = "some/prefix", miniostore.ChecksumWhenRequired
		return open(t, c)
	})
}

func TestRefusals(t *testing.T) {
	good := config(t)
	noBucket, wrongKey, wrongSecret := good, good, good
	noBucket.Bucket = "no-such-bucket"
	wrongKey.Credentials = credentials.NewStaticV4("nobody", "wrong-secret", "")
	wrongSecret.Credentials = credentials.NewStaticV4(servers.AccessKey, "wrong-secret", "")
	silent := good
	silent.Endpoint = "127.0.0.1:1"
	tests := []struct {
		name   string
		config miniostore.Config
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
	_, err := miniostore.Open(miniostore.Config{Prefix: "/x/", Checksum: "sometimes"})
	if err == nil {
		t.Fatal("Open succeeded")
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("Open: %v; want endpoint, bucket, prefix and checksum named", err)
	}
}

func TestNoCredentials(t *testing.T) {
	anonymous := credentials.NewStatic("", "", "", credentials.SignatureAnonymous)
	_, err := miniostore.Open(miniostore.Config{Endpoint: "127.0.0.1:1", Bucket: "b", Credentials: anonymous})
	if !errors.Is(err, segments.ErrDenied) {
		t.Errorf("Open: %v, want ErrDenied", err)
	}
}

func TestWire(t *testing.T) {
	storetest.RunS3(t, func(t *testing.T, endpoint, checksum string) segments.Store {
		return open(t, miniostore.Config{
			Bucket: storetest.S3Bucket, Endpoint: endpoint, Checksum: miniostore.Checksum(checksum),
			Credentials: credentials.NewStaticV4("key", "secret", ""),
		})
	})
}

func BenchmarkStore(b *testing.B) { storetest.BenchmarkObjects(b, open(b, config(b))) }
