package miniostore

import (
	"context"
	"fmt"
	"net/http"

	"github.com/minio/minio-go/v7"

	"github.com/varvelog/varve/segments"
)

// translate turns an error of the SDK into one of the contract.
func translate(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ended := segments.Interrupted(ctx); ended != nil {
		return fmt.Errorf("%w: %v", ended, err)
	}
	return fmt.Errorf("%w: %w", kindOf(minio.ToErrorResponse(err)), err)
}

// kindOf an answer; without one its fields are zero.
func kindOf(refusal minio.ErrorResponse) error {
	switch refusal.Code {
	case "NoSuchBucket":
		return segments.ErrNoBucket
	case "QuotaExceeded", "XMinioStorageFull", "XMinioAdminBucketQuotaExceeded": // Ceph, MinIO
		return segments.ErrFull
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken",
		"TokenRefreshRequired", "AuthorizationHeaderMalformed", "RequestTimeTooSkewed":
		return segments.ErrDenied
	}
	switch refusal.StatusCode {
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
