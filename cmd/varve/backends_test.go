package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/memstore"
)

func TestParseLocation(t *testing.T) {
	type query = map[string]string
	for _, c := range []struct {
		text    string
		schemes map[string][]string
		want    location
		fault   string
	}{
		{"file:///data/segments/", segmentsKeys, location{schemeFile, "", "/data/segments", query{}}, ""},
		{"file:///a/../b", segmentsKeys, location{schemeFile, "", "/b", query{}}, ""},
		{"mem://", segmentsKeys, location{schemeMemory, "", "", query{}}, ""},
		{"s3://bucket", segmentsKeys, location{schemeS3, "bucket", "", query{}}, ""},
		{"s3://bucket/a/b/?region=r&endpoint=http://127.0.0.1:9000&checksum=auto", segmentsKeys,
			location{schemeS3, "bucket", "a/b", query{"region": "r", "endpoint": "http://127.0.0.1:9000", "checksum": "auto"}}, ""},
		{"minio://127.0.0.1:9000/bucket/prefix?tls=false", segmentsKeys, location{schemeMinIO, "127.0.0.1:9000", "bucket/prefix", query{"tls": "false"}}, ""},
		{"bolt:///m.db", metadataKeys, location{schemeBolt, "", "/m.db", query{}}, ""},
		{"mem://", metadataKeys, location{schemeMemory, "", "", query{}}, ""},
		{"dynamodb://my_table.v1?region=r&endpoint=https://x", metadataKeys, location{schemeDynamo, "my_table.v1", "", query{"region": "r", "endpoint": "https://x"}}, ""},

		{"", segmentsKeys, location{}, "must begin with one of file://, mem://, minio://, s3://"},
		{"/data", segmentsKeys, location{}, "must begin with one of"},
		{"bolt:///x", segmentsKeys, location{}, "must begin with one of"},
		{"s3://bucket", metadataKeys, location{}, "must begin with one of bolt://, dynamodb://, mem://"},
		{"file://data", segmentsKeys, location{}, "three slashes"},
		{"file://", segmentsKeys, location{}, "three slashes"},
		{"file:///data?x=1", segmentsKeys, location{}, "takes nothing behind a ?"},
		{"mem://name", segmentsKeys, location{}, "takes no name"},
		{"s3:///prefix", segmentsKeys, location{}, "bucket is missing"},
		{"s3:bucket", segmentsKeys, location{}, "want s3://"},
		{"s3://bucket#x", segmentsKeys, location{}, "want s3://"},
		{"s3://bucket?regoin=r", segmentsKeys, location{}, `"regoin" is not known behind the ?: s3:// takes region, endpoint, checksum`},
		{"s3://bucket?region=", segmentsKeys, location{}, "region= must be given one value"},
		{"s3://bucket?region=a&region=b", segmentsKeys, location{}, "region= must be given one value"},
		{"s3://bucket?region=%zz", segmentsKeys, location{}, "malformed"},
		{"s3://bucket?endpoint=127.0.0.1:9000", segmentsKeys, location{}, "want http://host:port"},
		{"s3://key:hunter2@bucket", segmentsKeys, location{}, "holds credentials"},
		{"s3://bucket?endpoint=http://key:hunter2@host", segmentsKeys, location{}, "holds credentials"},
		{"s3://key:hunter2@buck\x7fet", segmentsKeys, location{}, "not a URL"},
		{"minio://127.0.0.1:9000", segmentsKeys, location{}, "want minio://host:port/bucket"},
		{"dynamodb://", metadataKeys, location{}, "want dynamodb://table"},
		{"dynamodb://t/x", metadataKeys, location{}, "want dynamodb://table"},
	} {
		t.Run(c.text, func(t *testing.T) {
			got, err := parseLocation("--flag", c.text, c.schemes)
			if c.fault == "" {
				if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(location{})); diff != "" || err != nil {
					t.Errorf("%v: %s", err, diff)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.fault) || !strings.HasPrefix(err.Error(), "--flag: ") {
				t.Fatalf("got %v, want %q", err, c.fault)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error repeats a password: %v", err)
			}
		})
	}
}

func TestOpenLocalBackends(t *testing.T) {
	dir := t.TempDir()
	store, err := openStore(t.Context(), location{scheme: schemeFile, path: filepath.Join(dir, "new", "segments")})
	if err != nil || !strings.HasPrefix(store.String(), "file://") {
		t.Errorf("%v, %v", store, err)
	}
	at := location{scheme: schemeBolt, path: filepath.Join(dir, "other", "metadata.db")}
	table, closer, err := openTable(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	defer closer.Close()
	first, err := checkTable(t.Context(), table, at, &startWait{})
	if err != nil {
		t.Fatal(err)
	}
	if again, err := checkTable(t.Context(), table, at, &startWait{}); err != nil || again.ID != first.ID {
		t.Errorf("cluster %s became %v, %v", first.ID, again, err)
	}
	if _, _, err := openTable(t.Context(), at); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a file in use: %v", err)
	}
	if _, err := openStore(t.Context(), location{scheme: schemeMinIO, host: "h", path: "b", query: map[string]string{"tls": "maybe"}}); err == nil {
		t.Error("tls=maybe was taken")
	}
}

// awsEnvironment gives the SDKs keys, and keeps them from looking elsewhere.
func awsEnvironment(t *testing.T) {
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_PROFILE": "", "AWS_REGION": "",
		"MINIO_ACCESS_KEY": "", "MINIO_SECRET_KEY": "",
	} {
		t.Setenv(name, value)
	}
}

// refusing is a server that answers every request alike.
func refusing(t *testing.T, status int, contentType, body string) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// TestRefusedBackends has buckets and tables that are missing or forbidden: what is
// wrong and what to do next must be in the error.
func TestRefusedBackends(t *testing.T) {
	awsEnvironment(t)
	s3 := func(status int, code string) string {
		return refusing(t, status, "application/xml", fmt.Sprintf("<Error><Code>%s</Code><Message>no</Message></Error>", code))
	}
	dynamo := func(code string) string {
		return refusing(t, 400, "application/x-amz-json-1.0", fmt.Sprintf(`{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"no"}`, code))
	}
	hollow := refusing(t, 200, "application/x-amz-json-1.0", "{}") // says yes to all and keeps nothing
	for _, c := range []struct {
		segments, metadata string
		want               []string
	}{
		{segments: "s3://bucket/p?region=eu-west-1&endpoint=" + s3(404, "NoSuchBucket"),
			want: []string{"aws s3api create-bucket --bucket bucket --region eu-west-1 --create-bucket-configuration LocationConstraint=eu-west-1 --endpoint-url http://127.0.0.1:"}},
		{segments: "s3://bucket/p?region=us-east-1&endpoint=" + s3(403, "SignatureDoesNotMatch"), want: []string{"check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which are set", "s3:PutObject"}},
		{segments: "minio://" + strings.TrimPrefix(s3(404, "NoSuchBucket"), "http://") + "/bucket/p?tls=false", want: []string{"mc mb ALIAS/bucket"}},
		{segments: "minio://" + strings.TrimPrefix(s3(403, "AccessDenied"), "http://") + "/bucket/p?tls=false", want: []string{"they are set: check MINIO_ACCESS_KEY"}},
		{metadata: "dynamodb://table?region=eu-west-1&endpoint=" + dynamo("ResourceNotFoundException"),
			want: []string{"aws dynamodb create-table --table-name table", "AttributeName=p,KeyType=HASH", "--region eu-west-1 --endpoint-url http://127.0.0.1:"}},
		{metadata: "dynamodb://table?region=eu-west-1&endpoint=" + hollow, want: []string{"not read back"}},
		{metadata: "dynamodb://table?region=eu-west-1&endpoint=" + dynamo("UnrecognizedClientException"), want: []string{"AWS_ACCESS_KEY_ID", "dynamodb:GetItem"}},
	} {
		t.Run(c.segments+c.metadata, func(t *testing.T) {
			o := &serveOptions{data: t.TempDir(), segments: c.segments, metadata: c.metadata, listen: "127.0.0.1:0", logFormat: "text", logLevel: "info"}
			o.segmentBytes, o.bufferBytes, o.uploadBytes = 8<<20, 128<<20, 64<<20
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			err := serve(ctx, o, t.Output(), func(net.Addr) { cancel() })
			if err == nil {
				t.Fatal("it served")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("a secret is in: %v", err)
			}
		})
	}
}

// What is wrong with a URL is wrong usage and names the flag, whoever notices it.
func TestURLFaults(t *testing.T) {
	awsEnvironment(t)
	t.Setenv("AWS_DEFAULT_REGION", "")
	for flag, urls := range map[string][]string{
		"--metadata": {"dynamodb://table"},
		"--segments": {"s3://bucket?region=eu-west-1&checksum=never", "minio://host:1/bucket?checksum=never", "minio://host:1/bucket?tls=maybe"},
	} {
		for _, url := range urls {
			args := []string{"serve", "--listen", "127.0.0.1:0", "--data", t.TempDir(), flag, url}
			if r := offline(t, nil, args...); r.status != statusUsage || !strings.HasPrefix(lastFault(r.stderr), "varve: "+flag+": ") {
				t.Errorf("%s: status %d, %s", url, r.status, r.stderr)
			}
		}
	}
	r := offline(t, nil, "verify", "--metadata", "dynamodb://table", "--segments", "s3://bucket?region=eu-west-1")
	if r.status != statusUsage || !strings.Contains(r.stderr, "--metadata: no region") {
		t.Errorf("verify: status %d, %s", r.status, r.stderr)
	}
}

// lastFault is the line before the one about --help.
func lastFault(stderr string) string {
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	return lines[max(0, len(lines)-2)]
}

// careless is a store that replaces objects.
type careless struct{ segments.Store }

func (c careless) Put(ctx context.Context, key string, body segments.Body) error {
	if err := c.Store.Delete(ctx, key); err != nil {
		return err
	}
	return c.Store.Put(ctx, key, body)
}

func TestStoreThatCannotBeTrusted(t *testing.T) {
	at := location{scheme: schemeMemory}
	table, _, err := openTable(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := checkTable(t.Context(), table, at, &startWait{})
	if err != nil {
		t.Fatal(err)
	}
	if warning, err := checkStore(t.Context(), memstore.New(), cluster, at, false, &startWait{}); warning != nil || err != nil {
		t.Errorf("a good store: %v, %v", warning, err)
	}
	bad := careless{memstore.New()}
	if warning, err := checkStore(t.Context(), bad, cluster, at, true, &startWait{}); warning == nil || err != nil {
		t.Errorf("with one gateway: %v, %v", warning, err)
	}
	if warning, err := checkStore(t.Context(), bad, cluster, at, false, &startWait{}); err == nil || !strings.Contains(err.Error(), "cannot be trusted") {
		t.Errorf("with several gateways: %v, %v", warning, err)
	}
}
