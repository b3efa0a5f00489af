// Package s3store is a [segments.Store] in a bucket, over Amazon's SDK.
//
// Each call is one request, tried once; an object is one PUT with If-None-Match, its
// payload unsigned and covered by one CRC-32C.
package s3store

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"

	"github.com/varvelog/varve/segments"
)

// connections is how many are kept open when idle: uploads and reads of a busy
// gateway.
const connections = 64

// defaultRegion is what stores that have no regions expect.
const defaultRegion = "us-east-1"

// Store keeps objects in a bucket.
type Store struct {
	client *s3.Client
	bucket string
	prefix string // "" or ends in a slash
	// sums says that objects are sent with a checksum. Auto turns it off.
	sums     atomic.Bool
	checksum Checksum
}

var _ segments.Store = (*Store)(nil)

// Open returns the store. It looks for credentials and fails with
// [segments.ErrDenied] if there are none; it does not talk to the bucket.
func Open(ctx context.Context, c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	loaded, err := config.LoadDefaultConfig(ctx, c.loadOptions()...)
	if err != nil {
		return nil, fmt.Errorf("s3store: %w", err)
	}
	if loaded.Region == "" {
		loaded.Region = defaultRegion
	}
	if loaded.Credentials == nil {
		return nil, fmt.Errorf("s3store: %w: no credentials configured", segments.ErrDenied)
	}
	if _, err := loaded.Credentials.Retrieve(ctx); err != nil {
		return nil, fmt.Errorf("s3store: %w: no credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile: %w",
			segments.ErrDenied, err)
	}
	s := &Store{bucket: c.Bucket, checksum: c.Checksum}
	s.sums.Store(c.Checksum != ChecksumWhenRequired)
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	s.client = s3.NewFromConfig(loaded, func(o *s3.Options) {
		o.Retryer = aws.NopRetryer{}
		// We set the one checksum ourselves, as a header: the SDK's would wrap the body.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		o.APIOptions = append(o.APIOptions, unsignedPayload)
		if c.Endpoint != "" {
			o.BaseEndpoint = aws.String(c.Endpoint)
		}
		o.UsePathStyle = o.BaseEndpoint != nil
	})
	return s, nil
}

func (c *Config) loadOptions() []func(*config.LoadOptions) error {
	client := awshttp.NewBuildableClient().WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConns, t.MaxIdleConnsPerHost = connections, connections
	})
	options := []func(*config.LoadOptions) error{config.WithHTTPClient(client)}
	if c.Region != "" {
		options = append(options, config.WithRegion(c.Region))
	}
	if c.Credentials != nil {
		options = append(options, config.WithCredentialsProvider(c.Credentials))
	}
	return options
}

// unsignedPayload leaves the payload out of the signature, also without TLS: the
// checksum covers it, and a SHA-256 would double what an upload costs.
func unsignedPayload(stack *middleware.Stack) error {
	// Operations that have no payload to sign have no such step.
	if _, found := stack.Finalize.Get((&v4.ComputePayloadSHA256{}).ID()); !found {
		return nil
	}
	return v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware(stack)
}

// String implements [segments.Store].
func (s *Store) String() string {
	return strings.TrimSuffix("s3://"+s.bucket+"/"+s.prefix, "/")
}

func (s *Store) key(key string) *string { return aws.String(s.prefix + key) }

// Put implements [segments.Store].
func (s *Store) Put(ctx context.Context, key string, body segments.Body) error {
	err := segments.CheckCall(ctx, key)
	if err == nil {
		err = s.put(ctx, key, body)
	}
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	return nil
}

func (s *Store) put(ctx context.Context, key string, body segments.Body) error {
	input := &s3.PutObjectInput{
		Bucket:        &s.bucket,
		Key:           s.key(key),
		Body:          segments.NewReader(body),
		ContentLength: aws.Int64(body.Size()),
		IfNoneMatch:   aws.String("*"),
	}
	if s.sums.Load() {
		input.ChecksumCRC32C = aws.String(checksum(body))
	}
	_, err := s.client.PutObject(ctx, input)
	if statusOf(err) == http.StatusNotImplemented && input.ChecksumCRC32C != nil && s.checksum != ChecksumAlways {
		s.sums.Store(false)
	}
	return translate(ctx, err)
}

func checksum(body segments.Body) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, segments.CRC32C(body)))
}

// Delete implements [segments.Store].
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := segments.CheckCall(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key)})
	if err := translate(ctx, err); err != nil && !errors.Is(err, segments.ErrNotFound) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// List implements [segments.Store]. It is one request, unless the bucket holds
// objects whose keys are none of ours. S3 Express buckets don't list in order and
// cannot be used.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	if err := segments.Interrupted(ctx); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	input := &s3.ListObjectsV2Input{
		Bucket: &s.bucket,
		Prefix: s.key(prefix),
		// Always a full page: when one name starts another ("a/x", "a-b"), MinIO counts
		// objects before StartAfter into a small page and can answer with an empty one.
	}
	if after != "" {
		input.StartAfter = s.key(after)
	}
	for {
		page, err := s.client.ListObjectsV2(ctx, input)
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, translate(ctx, err))
		}
		var found []segments.ObjectInfo
		for _, object := range page.Contents {
			key := strings.TrimPrefix(aws.ToString(object.Key), s.prefix)
			if segments.ValidateKey(key) == nil {
				found = append(found, segments.ObjectInfo{Key: key, Size: aws.ToInt64(object.Size)})
			}
		}
		if len(found) > 0 || !aws.ToBool(page.IsTruncated) {
			return found[:min(limit, len(found))], nil
		}
		input.ContinuationToken = page.NextContinuationToken
	}
}
