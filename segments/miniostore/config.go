package miniostore

import (
	"errors"
	"fmt"

	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/varvelog/varve/segments"
)

// Checksum says when an object is sent with a CRC-32C, which the store verifies.
type Checksum string

const (
	// ChecksumAuto sends one, until the store says that it does not know such headers.
	ChecksumAuto Checksum = "auto"
	// ChecksumAlways sends one with every object.
	ChecksumAlways Checksum = "always"
	// ChecksumWhenRequired sends none: no operation here requires one.
	ChecksumWhenRequired Checksum = "when-required"
)

const defaultRegion = "us-east-1"

// Config says where the bucket is.
type Config struct {
	Endpoint string // host:port
	TLS      bool
	Bucket   string
	// Prefix stands before every key, without slashes around it; at most 200 bytes.
	Prefix string
	// Region is us-east-1 if empty, as on every MinIO that was not told another.
	Region string
	// Checksum is auto if empty.
	Checksum Checksum
	// Credentials replaces the usual chain if set: the environment's MINIO_ and AWS_
	// variables, the files of MinIO's and Amazon's tools, the machine's role.
	Credentials *credentials.Credentials
}

// maxPrefix leaves S3's 1,024 bytes of a key to the longest key of ours.
const maxPrefix = 200

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	if c.Endpoint == "" {
		faults = append(faults, errors.New("miniostore: no endpoint given: must be host:port"))
	}
	if c.Bucket == "" {
		faults = append(faults, errors.New("miniostore: no bucket given"))
	}
	if c.Prefix != "" {
		if err := segments.ValidateKey(c.Prefix); err != nil || len(c.Prefix) > maxPrefix {
			faults = append(faults, fmt.Errorf("miniostore: prefix %.80q must be a key of at most %d bytes", c.Prefix, maxPrefix))
		}
	}
	switch c.Checksum {
	case "", ChecksumAuto, ChecksumAlways, ChecksumWhenRequired:
	default:
		faults = append(faults, fmt.Errorf("miniostore: checksum is %q: must be auto, always or when-required", c.Checksum))
	}
	return errors.Join(faults...)
}
