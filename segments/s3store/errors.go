package s3store

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"github.com/varvelog/varve/segments"
)

// statusOf is the HTTP status of a refusal, 0 when there was no answer.
func statusOf(err error) int {
	var response *awshttp.ResponseError
	if errors.As(err, &response) {
		return response.HTTPStatusCode()
	}
	return 0
}

// translate turns an error of the SDK into one of the contract.
func translate(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := segments.Interrupted(ctx); ended != nil {
		return fmt.Errorf("%w: %v", ended, err)
	}
	return fmt.Errorf("%w: %w", kindOf(err), err)
}

func kindOf(err error) error {
	var refusal smithy.APIError
	if errors.As(err, &refusal) {
		switch refusal.ErrorCode() {
		case "NoSuchBucket":
			return segments.ErrNoBucket
		case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded": // Ceph, MinIO
			return segments.ErrFull
		case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
			"TokenRefreshRequired", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed":
			return segments.ErrDenied
		}
	}
	switch statusOf(err) {
	case http.StatusNotFound:
		return segments.ErrNotFound
	case http.StatusPreconditionFailed:
		return segments.ErrExists
	case http.StatusUnauthorized, http.StatusForbidden:
		return segments.ErrDenied
	case http.StatusInsufficientStorage:
		return segments.ErrFull
	case http.StatusMovedPermanently, http.StatusTemporaryRedirect:
		return fmt.Errorf("%w in this region: set the bucket's own", segments.ErrNoBucket)
	}
	// 409 (another put of this key is under way), 429, 500, 503, and no answer at all.
	return segments.ErrUnavailable
}
