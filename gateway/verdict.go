package gateway

import (
	"connectrpc.com/connect/v2"

	"github.com/varvelog/varve/metadata"
)

// refusedVerdict says in the words of the API why a batch was not appended, or nil when it was.
func refusedVerdict(v metadata.BatchVerdict, expected int64) error {
	switch v.Outcome {
	case metadata.Accepted, metadata.Duplicate:
		return nil
	case metadata.OffsetMismatch:
		return refuse(connect.CodeFailedPrecondition, reasonOffsetMismatch,
			"expected offset %d, but the next offset is %d; nothing was appended", expected, v.Actual).withOffsets(expected, v.Actual)
	case metadata.FenceMismatch:
		return refuse(connect.CodeAborted, reasonFenceMismatch,
			"the fencing token is not the partition's; nothing was appended").withLog(metadata.NoOffset, v.Actual)
	case metadata.SequenceGap:
		return refuse(connect.CodeAborted, reasonSequenceGap,
			"a batch before this one is missing: sequence %d is expected; send that one first", v.Actual).withRetriable()
	case metadata.ProducerFenced:
		return refuse(connect.CodeAborted, reasonProducerFenced,
			"a newer producer with this id has epoch %d; begin again with a new producer id", v.Actual)
	case metadata.UnknownProducer:
		return refuse(connect.CodeFailedPrecondition, reasonUnknownProducer,
			"this producer id is not known here (it was silent for long, or others crowded it out); begin again with a new producer id")
	case metadata.DuplicateForgotten:
		return refuse(connect.CodeFailedPrecondition, reasonForgotten,
			"the batch was appended before, so long ago that its offset is no longer kept; sequence %d is expected", v.Actual)
	}
	return refuse(connect.CodeInternal, "", internalMessage)
}

// unknownOutcome says that an append may have taken effect, or may yet.
func unknownOutcome(why string, cause error) error {
	text := "it is not known whether the batch was appended: " + why
	if cause != nil {
		text += ": " + cause.Error()
	}
	return refuse(connect.CodeUnavailable, reasonUnknownOutcome, "%s; an idempotent producer can send it again safely", text).
		withRetriable().withUnknownOutcome().withCause(cause)
}

func refuseFull(limit int64) error {
	return refuse(connect.CodeResourceExhausted, reasonBufferFull,
		"%d bytes of appends wait to be committed, which is the limit; send again later", limit).withRetriable()
}

func refuseTooLarge(size, limit int64) error {
	return refuse(connect.CodeInvalidArgument, reasonBatchTooLarge, "a batch of %d bytes is larger than the gateway's buffer of %d", size, limit)
}

func refuseBuffered(why string) error {
	return refuse(connect.CodeInvalidArgument, reasonInvalid, "acks=buffered is not possible: %s; use acks=committed", why)
}
