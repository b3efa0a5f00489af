package dynamotable

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/varvelog/varve/metadata"
)

// kinds are the error codes that say for certain what happened, and that nothing was
// written. DynamoDB's own and those of the layers before it.
var kinds = map[string]error{
	"ConditionalCheckFailedException": metadata.ErrConflict,

	"ProvisionedThroughputExceededException": metadata.ErrUnavailable,
	"ThrottlingException":                    metadata.ErrUnavailable,
	"Throttling":                             metadata.ErrUnavailable,
	"RequestLimitExceeded":                   metadata.ErrUnavailable,
	"LimitExceededException":                 metadata.ErrUnavailable,
	"TransactionConflictException":           metadata.ErrUnavailable,
	"ReplicatedWriteConflictException":       metadata.ErrUnavailable,
	"ResourceInUseException":                 metadata.ErrUnavailable,

	"ResourceNotFoundException": metadata.ErrNoTable,
	"TableNotFoundException":    metadata.ErrNoTable,

	"AccessDenied":                        metadata.ErrDenied,
	"AccessDeniedException":               metadata.ErrDenied,
	"ExpiredToken":                        metadata.ErrDenied,
	"ExpiredTokenException":               metadata.ErrDenied,
	"IncompleteSignature":                 metadata.ErrDenied,
	"IncompleteSignatureException":        metadata.ErrDenied,
	"InvalidClientTokenId":                metadata.ErrDenied,
	"InvalidSignatureException":           metadata.ErrDenied,
	"MissingAuthenticationToken":          metadata.ErrDenied,
	"MissingAuthenticationTokenException": metadata.ErrDenied,
	"NotAuthorized":                       metadata.ErrDenied,
	"SignatureDoesNotMatch":               metadata.ErrDenied,
	"UnrecognizedClientException":         metadata.ErrDenied,
	"RequestExpired":                      metadata.ErrDenied,
	"RequestTimeTooSkewed":                metadata.ErrDenied,
}

// translate gives an SDK error the kind that it has for a Table. write tells
// whether the request would change something, sent whether it may have left.
func translate(err error, write, sent bool) error {
	if err == nil {
		return nil
	}
	kind := kindOf(err, write, sent)
	if kind == nil {
		return fmt.Errorf("dynamotable: %w", err)
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// kindOf returns nil for an error that is the caller's, or ours, to mend.
func kindOf(err error, write, sent bool) error {
	inDoubt := metadata.ErrUnavailable
	if write && sent {
		inDoubt = metadata.ErrUnknown
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		if kind := kinds[api.ErrorCode()]; kind != nil {
			return kind
		}
	}
	var answer *smithyhttp.ResponseError
	if errors.As(err, &answer) {
		switch status := answer.HTTPStatusCode(); {
		case status == http.StatusTooManyRequests:
			return metadata.ErrUnavailable
		case status == http.StatusUnauthorized, status == http.StatusForbidden:
			return metadata.ErrDenied
		case status == http.StatusRequestTimeout, status < 400, status >= 500:
			// Of these a part may have come from a proxy, after the write.
			return inDoubt
		}
		return nil
	}
	if ended(err) || sent {
		return inDoubt
	}
	var noCredentials *credentialsError
	if errors.As(err, &noCredentials) {
		return metadata.ErrDenied
	}
	var network *smithyhttp.RequestSendError
	if errors.As(err, &network) {
		return metadata.ErrUnavailable
	}
	return nil
}

func ended(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// markedCredentials marks the errors of a provider, which can be those of requests of its own
// and then look like the table's.
type markedCredentials struct{ aws.CredentialsProvider }

func (m markedCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return aws.Credentials{}, &credentialsError{err}
	}
	return c, nil
}

type credentialsError struct{ cause error }

func (e *credentialsError) Error() string {
	return fmt.Sprintf("no AWS credentials (set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile): %v", e.cause)
}

func (e *credentialsError) Unwrap() error { return e.cause }
