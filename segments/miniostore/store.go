// Package miniostore is a [segments.Store] in a bucket, over MinIO's SDK.
//
// Each call is one request, tried once; an object is one PUT with If-None-Match, its
// payload unsigned and covered by one CRC-32C.
package miniostore

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varvelog/varve/segments"
)

// connections is how many are kept open when idle: uploads and reads of a busy
// gateway.
const connections = 64

// metadataTimeout bounds the look for credentials of a cloud machine, which on other
// machines nobody answers.
const metadataTimeout = 2 * time.Second

// Store keeps objects in a bucket.
type Store struct {
	// core makes single requests. The client above it looks up regions, splits uploads
	// and reads lazily.
	core   minio.Core
	config Config
	prefix string // "" or ends in a slash
	// sums says that objects are sent with a checksum. Auto turns it off.
	sums atomic.Bool
}

var _ segments.Store = (*Store)(nil)

// Open returns the store. It looks for credentials and fails with
// [segments.ErrDenied] if there are none; it does not talk to the bucket.
func Open(c Config) (*Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	transport, err := minio.DefaultTransport(c.TLS)
	if err != nil {
		return nil, fmt.Errorf("miniostore: %w", err)
	}
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = connections, connections
	if c.Credentials == nil {
		c.Credentials = usualCredentials()
	}
	if err := checkCredentials(c.Credentials); err != nil {
		return nil, err
	}
	if c.Region == "" {
		c.Region = defaultRegion // set, or each bucket's would be asked for
	}
	client, err := minio.New(c.Endpoint, &minio.Options{
		Creds:      c.Credentials,
		Secure:     c.TLS,
		Transport:  transport,
		Region:     c.Region,
		MaxRetries: 1, // it means tries; the SDK still waits up to 0.2 s after a failed one
	})
	if err != nil {
		return nil, fmt.Errorf("miniostore: %w", err)
	}
	s := &Store{core: minio.Core{Client: client}, config: c}
	s.sums.Store(c.Checksum != ChecksumWhenRequired)
	if c.Prefix != "" {
		s.prefix = c.Prefix + "/"
	}
	return s, nil
}

// usualCredentials looks where MinIO's and Amazon's tools do.
func usualCredentials() *credentials.Credentials {
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvMinio{},
		&credentials.EnvAWS{},
		&credentials.FileMinioClient{},
		&credentials.FileAWSCredentials{},
		&credentials.IAM{Client: &http.Client{Timeout: metadataTimeout}},
	})
}

func checkCredentials(c *credentials.Credentials) error {
	value, err := c.GetWithContext(&credentials.CredContext{Client: &http.Client{Timeout: metadataTimeout}})
	if err != nil {
		return fmt.Errorf("miniostore: %w: %w", segments.ErrDenied, err)
	}
	if value.SignerType.IsAnonymous() {
		return fmt.Errorf("miniostore: %w: no credentials found: set MINIO_ACCESS_KEY and MINIO_SECRET_KEY, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
			segments.ErrDenied)
	}
	return nil
}

// String implements [segments.Store].
func (s *Store) String() string {
	return strings.TrimSuffix("minio://"+s.config.Endpoint+"/"+s.config.Bucket+"/"+s.prefix, "/")
}

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
	options := minio.PutObjectOptions{DisableMultipart: true, DisableContentSha256: true}
	options.SetMatchETagExcept("*")
	sum := s.sums.Load()
	if sum {
		options.UserMetadata = map[string]string{"X-Amz-Checksum-Crc32c": checksum(body)}
	}
	_, err := s.core.PutObject(ctx, s.config.Bucket, s.prefix+key, segments.NewReader(body), body.Size(), "", "", options)
	if sum && minio.ToErrorResponse(err).StatusCode == http.StatusNotImplemented && s.config.Checksum != ChecksumAlways {
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
	err := s.core.RemoveObject(ctx, s.config.Bucket, s.prefix+key, minio.RemoveObjectOptions{})
	if err := translate(ctx, err); err != nil && !errors.Is(err, segments.ErrNotFound) {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	return nil
}

// List implements [segments.Store]. It asks for full pages: when one name starts
// another ("a/x", "a-b"), MinIO counts objects before StartAfter into a small page
// and can answer with an empty one.
func (s *Store) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	if err := segments.Interrupted(ctx); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	listing, stop := context.WithCancel(ctx)
	defer stop()
	options := minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}
	if after != "" {
		options.StartAfter = s.prefix + after
	}
	var found []segments.ObjectInfo
	for object := range s.core.ListObjectsIter(listing, s.config.Bucket, options) {
		if object.Err != nil {
			return nil, fmt.Errorf("list %s: %w", prefix, translate(ctx, object.Err))
		}
		key := strings.TrimPrefix(object.Key, s.prefix)
		if segments.ValidateKey(key) == nil {
			found = append(found, segments.ObjectInfo{Key: key, Size: object.Size})
		}
		if len(found) == limit {
			break
		}
	}
	// The iterator ends silently with its context.
	if err := segments.Interrupted(ctx); err != nil {
		return nil, fmt.Errorf("list %s: %w", prefix, err)
	}
	return found, nil
}
