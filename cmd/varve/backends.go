package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/bolttable"
	"github.com/varvelog/varve/metadata/dynamotable"
	"github.com/varvelog/varve/metadata/memtable"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/filestore"
	"github.com/varvelog/varve/segments/memstore"
	"github.com/varvelog/varve/segments/miniostore"
	"github.com/varvelog/varve/segments/s3store"
)

// The schemes of --segments and --metadata.
const (
	schemeFile   = "file"
	schemeS3     = "s3"
	schemeMinIO  = "minio"
	schemeMemory = "mem"
	schemeBolt   = "bolt"
	schemeDynamo = "dynamodb"
)

// location is a parsed --segments or --metadata URL.
type location struct {
	scheme string
	host   string // a bucket, a table or host:port
	path   string // of file and bolt: absolute; else without slashes around it
	query  map[string]string
}

// local says that the place is on this host or in this process.
func (l location) local() bool {
	return l.scheme == schemeFile || l.scheme == schemeBolt || l.scheme == schemeMemory
}

// String is the place without what is behind the "?".
func (l location) String() string {
	if l.local() {
		return l.scheme + "://" + l.path
	}
	return strings.TrimSuffix(l.scheme+"://"+l.host+"/"+l.path, "/")
}

// queryKeys are what each scheme takes behind the "?".
var (
	segmentsKeys = map[string][]string{
		schemeFile: nil, schemeMemory: nil,
		schemeS3:    {"region", "endpoint", "checksum"},
		schemeMinIO: {"tls", "region", "checksum"},
	}
	metadataKeys = map[string][]string{
		schemeBolt: nil, schemeMemory: nil,
		schemeDynamo: {"region", "endpoint"},
	}
)

// parseLocation reads a URL of one of the schemes. flag is named in errors, which never
// repeat a password.
func parseLocation(flag, text string, schemes map[string][]string) (location, error) {
	fail := func(format string, args ...any) (location, error) {
		return location{}, fmt.Errorf("%s: %s", flag, fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(text)
	if err != nil {
		// The parser's message repeats the URL, and a password with it.
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err
		}
		return fail("not a URL: %v", err)
	}
	keys, known := schemes[u.Scheme]
	switch {
	case !known:
		return fail("%q must begin with one of %s://", u.Redacted(), strings.Join(slices.Sorted(maps.Keys(schemes)), "://, "))
	case u.User != nil:
		return fail("%s holds credentials: they come from the environment, a profile or a role, never from a URL", u.Redacted())
	case u.Fragment != "" || u.Opaque != "":
		return fail("%q: want %s://…", text, u.Scheme)
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fail("%q: what follows the ? is malformed: %v", text, err)
	}
	l := location{scheme: u.Scheme, host: u.Host, path: strings.Trim(u.Path, "/"), query: make(map[string]string)}
	for key, list := range values {
		switch {
		case !slices.Contains(keys, key) && len(keys) == 0:
			return fail("%s:// takes nothing behind a ?, and %q is there", u.Scheme, key)
		case !slices.Contains(keys, key):
			return fail("%q is not known behind the ?: %s:// takes %s", key, u.Scheme, strings.Join(keys, ", "))
		case len(list) != 1 || list[0] == "":
			return fail("%s= must be given one value", key)
		}
		l.query[key] = list[0]
	}
	if endpoint := l.query["endpoint"]; endpoint != "" {
		if err := checkEndpoint(endpoint); err != nil {
			return fail("%v", err)
		}
	}
	if err := l.checkPlace(u.Path); err != nil {
		return fail("%v", err)
	}
	return l, nil
}

// checkPlace sees that host and path are what the scheme needs.
func (l *location) checkPlace(path string) error {
	switch l.scheme {
	case schemeFile, schemeBolt:
		if l.host != "" || l.path == "" {
			return fmt.Errorf("want an absolute path, with three slashes: %s:///folder/name", l.scheme)
		}
		l.path = filepath.Clean(path)
	case schemeMemory:
		if l.host != "" || l.path != "" {
			return errors.New("mem:// takes no name")
		}
	case schemeS3:
		if l.host == "" {
			return errors.New("the bucket is missing: want s3://bucket/prefix?region=…")
		}
	case schemeMinIO:
		if l.host == "" || l.path == "" {
			return errors.New("want minio://host:port/bucket/prefix?tls=false")
		}
	case schemeDynamo:
		if l.host == "" || l.path != "" {
			return errors.New("want dynamodb://table?region=…")
		}
	}
	return nil
}

func checkEndpoint(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		return fmt.Errorf("endpoint %q: want http://host:port or https://host", strings.ToValidUTF8(text, "?"))
	case u.User != nil:
		return errors.New("the endpoint holds credentials: they come from the environment, a profile or a role, never from a URL")
	}
	return nil
}

// openStore opens what --segments names. It does not talk to it yet.
func openStore(ctx context.Context, l location) (segments.Store, error) {
	switch l.scheme {
	case schemeMemory:
		return memstore.New(), nil
	case schemeFile:
		if err := os.MkdirAll(l.path, 0o700); err != nil {
			return nil, fmt.Errorf("--segments: %w", err)
		}
		return filestore.Open(l.path)
	case schemeS3:
		c := s3store.Config{Bucket: l.host, Prefix: l.path, Region: l.query["region"],
			Endpoint: l.query["endpoint"], Checksum: s3store.Checksum(l.query["checksum"])}
		if err := c.Validate(); err != nil {
			return nil, usagef("--segments: %v", err)
		}
		return s3store.Open(ctx, c)
	case schemeMinIO:
		bucket, prefix, _ := strings.Cut(l.path, "/")
		tls := true
		if text, given := l.query["tls"]; given {
			var err error
			if tls, err = strconv.ParseBool(text); err != nil {
				return nil, usagef("--segments: tls=%s: want true or false", text)
			}
		}
		c := miniostore.Config{Endpoint: l.host, TLS: tls, Bucket: bucket, Prefix: prefix,
			Region: l.query["region"], Checksum: miniostore.Checksum(l.query["checksum"])}
		if err := c.Validate(); err != nil {
			return nil, usagef("--segments: %v", err)
		}
		return miniostore.Open(c)
	}
	return nil, fmt.Errorf("--segments: unknown scheme %q", l.scheme)
}

// openTable opens what --metadata names, and returns what closes it.
func openTable(ctx context.Context, l location) (metadata.Table, io.Closer, error) {
	switch l.scheme {
	case schemeMemory:
		return memtable.New(), nopCloser{}, nil
	case schemeBolt:
		if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
			return nil, nil, fmt.Errorf("--metadata: %w", err)
		}
		table, err := bolttable.Open(l.path, bolttable.Options{})
		if err != nil {
			return nil, nil, err
		}
		return table, table, nil
	case schemeDynamo:
		table, err := dynamotable.Open(ctx, dynamotable.Options{Table: l.host, Region: l.query["region"], Endpoint: l.query["endpoint"]})
		if err != nil { // it has called nobody: the URL or what completes it is wrong
			return nil, nil, usagef("--metadata: %s", strings.TrimPrefix(err.Error(), "dynamotable: "))
		}
		return table, nopCloser{}, nil
	}
	return nil, nil, fmt.Errorf("--metadata: unknown scheme %q", l.scheme)
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// checkTimeout bounds one look at a bucket or table before serving.
const checkTimeout = 20 * time.Second

// checkTable asks the table for its cluster, which it gets at the first time, and
// explains what is wrong if that fails.
func checkTable(ctx context.Context, table metadata.Table, l location, wait *startWait) (cluster *metadata.Cluster, err error) {
	err = wait.try(ctx, l, func(ctx context.Context) error {
		// A plain read first: its error is the table's own, not that of tries that ran out.
		key := metadata.Key{Partition: "cluster", Sort: "id"}
		if _, err := table.Get(ctx, key, metadata.Strong); err != nil && !errors.Is(err, metadata.ErrNotFound) {
			return err
		}
		var err error
		if cluster, err = metadata.OpenCluster(ctx, table); err != nil {
			return err
		}
		if _, err := table.Get(ctx, key, metadata.Strong); err != nil {
			return fmt.Errorf("a row that was just written is not read back: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, unusable(err, table.String(), tableAdvice(err, l))
	}
	return cluster, nil
}

// checkStore tries what the log depends on. A store that answers but cannot be trusted
// is refused when several gateways could share it.
func checkStore(ctx context.Context, store segments.Store, cluster *metadata.Cluster, l location, exclusive bool, wait *startWait) (warning, err error) {
	err = wait.try(ctx, l, func(ctx context.Context) error { return segments.Probe(ctx, store, cluster.ID) })
	var untrusted *segments.ProbeError
	switch {
	case err == nil:
		return nil, nil
	case errors.As(err, &untrusted) && exclusive:
		return err, nil
	}
	return nil, unusable(err, store.String(), storeAdvice(err, l))
}

// unusable is the error of a place that cannot be used, with the next step if one is
// known. It hides its cause, which would be taken for that of a call to a gateway.
func unusable(err error, place, advice string) error {
	var usage *usageError
	if errors.As(err, &usage) {
		return err // nobody was asked yet
	}
	if advice == "" {
		return fmt.Errorf("%s cannot be used: %v", place, err)
	}
	return fmt.Errorf("%s cannot be used: %v\n%s", place, err, advice)
}

// storeAdvice is the next step when the bucket cannot be used.
func storeAdvice(err error, l location) string {
	const bucketCommand = "make the bucket first: "
	switch {
	case errors.Is(err, segments.ErrNoBucket) && l.scheme == schemeS3:
		return bucketCommand + "aws s3api create-bucket --bucket " + l.host + awsFlags(l, "--create-bucket-configuration LocationConstraint=")
	case errors.Is(err, segments.ErrNoBucket) && l.scheme == schemeMinIO:
		bucket, _, _ := strings.Cut(l.path, "/")
		return bucketCommand + "mc mb ALIAS/" + bucket
	case errors.Is(err, segments.ErrDenied) && l.scheme == schemeMinIO:
		verb := "set"
		if os.Getenv("MINIO_ACCESS_KEY") != "" || os.Getenv("AWS_ACCESS_KEY_ID") != "" {
			verb = "they are set: check"
		}
		return verb + " MINIO_ACCESS_KEY and MINIO_SECRET_KEY (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY): keys that may read, write, list and delete there"
	case errors.Is(err, segments.ErrDenied) && l.scheme == schemeS3:
		return credentialAdvice() + "s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket there"
	case errors.Is(err, segments.ErrUnavailable) && !l.local():
		return "check the address in --segments and that the store runs"
	}
	return ""
}

// credentialAdvice is where credentials come from; the permissions that they need follow.
func credentialAdvice() string {
	if os.Getenv("AWS_ACCESS_KEY_ID") != "" {
		return "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which are set: they must be right, and allow "
	}
	return "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role with "
}

// tableAdvice is the next step when the table cannot be used.
func tableAdvice(err error, l location) string {
	switch {
	case l.scheme != schemeDynamo:
		return ""
	case errors.Is(err, metadata.ErrNoTable):
		return "make the table first: aws dynamodb create-table --table-name " + l.host + " --billing-mode PAY_PER_REQUEST" +
			" --attribute-definitions AttributeName=p,AttributeType=S AttributeName=s,AttributeType=S" +
			" --key-schema AttributeName=p,KeyType=HASH AttributeName=s,KeyType=RANGE" + awsFlags(l, "")
	case errors.Is(err, metadata.ErrDenied):
		return credentialAdvice() + "dynamodb:GetItem, PutItem, DeleteItem and Query on the table"
	case errors.Is(err, metadata.ErrUnavailable):
		return "check the address and region in --metadata and that the server runs"
	}
	return ""
}

// awsFlags repeats region and endpoint for a command of the AWS tool. extra is what
// else the region goes into.
func awsFlags(l location, extra string) string {
	var out string
	if region := l.query["region"]; region != "" {
		out += " --region " + region
		if extra != "" && region != "us-east-1" {
			out += " " + extra + region
		}
	}
	if endpoint := l.query["endpoint"]; endpoint != "" {
		out += " --endpoint-url " + endpoint
	}
	return out
}
