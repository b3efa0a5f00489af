package s3store

import (
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"

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

// Config says where the bucket is. What is empty comes from the environment
// (AWS_REGION, AWS_ENDPOINT_URL_S3, AWS_PROFILE and so on), as in every AWS tool.
type Config struct {
	Bucket string
	// Prefix stands before every key, without slashes around it; at most 200 bytes.
	Prefix string
	Region string
	// Endpoint is the URL of a store that is not Amazon's, "http://127.0.0.1:9000". With
	// one, the bucket is named in the path and not in the host name.
	Endpoint string
	// Checksum is auto if empty.
	Checksum Checksum
	// Credentials replaces the usual chain if set.
	Credentials aws.CredentialsProvider
}

// maxPrefix leaves S3's 1,024 bytes of a key to the longest key of ours.
const maxPrefix = 200

// Validate lists every fault.
func (c *Config) Validate() error {
	var faults []error
	if c.Bucket == "" {
		faults = append(faults, errors.New("s3store: no bucket given"))
	}
	if c.Prefix != "" {
		if err := segments.ValidateKey(c.Prefix); err != nil || len(c.Prefix) > maxPrefix {
			faults = append(faults, fmt.Errorf("s3store: prefix %.80q must be a key of at most %d bytes", c.Prefix, maxPrefix))
		}
	}
	switch c.Checksum {
	case "", ChecksumAuto, ChecksumAlways, ChecksumWhenRequired:
	default:
		faults = append(faults, fmt.Errorf("s3store: checksum is %q: must be auto, always or when-required", c.Checksum))
	}
	return errors.Join(faults...)
}
