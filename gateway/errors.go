package gateway

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// Reasons of errors, as ErrorInfo carries them. They are part of the API: clients act
// on them, so none changes its meaning.
const (
	reasonInvalid           = "INVALID_REQUEST"
	reasonInvalidBatch      = "INVALID_BATCH"
	reasonBatchTooLarge     = "BATCH_TOO_LARGE"
	reasonTopicNotFound     = "TOPIC_NOT_FOUND"
	reasonTopicDeleted      = "TOPIC_DELETED"
	reasonDeleting          = "TOPIC_DELETING"
	reasonTopicExists       = "TOPIC_EXISTS"
	reasonPartitionNotFound = "PARTITION_NOT_FOUND"
	reasonObjectNotFound    = "OBJECT_NOT_FOUND"
	reasonOffsetMismatch    = "OFFSET_MISMATCH"
	reasonFenceMismatch     = "FENCING_TOKEN_MISMATCH"
	reasonProducerFenced    = "PRODUCER_FENCED"
	reasonSequenceGap       = "OUT_OF_ORDER_SEQUENCE"
	reasonUnknownProducer   = "UNKNOWN_PRODUCER"
	reasonForgotten         = "DUPLICATE_FORGOTTEN"
	reasonOutOfRange        = "OUT_OF_RANGE"
	reasonFenced            = "GATEWAY_FENCED"
	reasonHeld              = "HELD_ELSEWHERE"
	reasonLostRace          = "LOST_RACE"
	reasonBusy              = "BUSY"
	reasonBufferFull        = "BUFFER_FULL"
	reasonBufferFailed      = "BUFFER_FAILED"
	reasonDiskFull          = "DISK_FULL"
	reasonDraining          = "DRAINING"
	reasonStore             = "STORE_UNAVAILABLE"
	reasonTable             = "TABLE_UNAVAILABLE"
	reasonDenied            = "ACCESS_DENIED"
	reasonNewerFormat       = "NEWER_FORMAT"
	reasonDataLoss          = "DATA_LOSS"
	reasonUnknownOutcome    = "UNKNOWN_OUTCOME"
	reasonWrongPeer         = "WRONG_PEER"
	reasonBehind            = "BEHIND"
	reasonRole              = "WRONG_ROLE"
)

// refusal is an error for the caller, in the words of the API: the core returns it
// for its verdicts. Its message names the cause and, where there is one, the next step.
type refusal struct {
	code    connect.Code
	message string
	info    *varvev1.ErrorInfo
	cause   error // for logs and errors.Is; never sent
}

// refuse makes a refusal. The with… methods return a changed copy, so that a refusal
// can be shared.
func refuse(code connect.Code, reason, format string, args ...any) *refusal {
	return &refusal{code: code, message: fmt.Sprintf(format, args...), info: &varvev1.ErrorInfo{Reason: reason}}
}

// Error names the code and the reason, too.
func (r *refusal) Error() string {
	return fmt.Sprintf("%s (%s): %s", r.code, r.info.GetReason(), r.message)
}

// Unwrap returns the cause.
func (r *refusal) Unwrap() error { return r.cause }

// with returns a copy in which change has been made to the details.
func (r *refusal) with(change func(*varvev1.ErrorInfo)) *refusal {
	out := *r
	out.info = proto.CloneOf(r.info)
	change(out.info)
	return &out
}

func (r *refusal) withTopic(name string) *refusal {
	return r.with(func(i *varvev1.ErrorInfo) { i.Topic = name })
}

func (r *refusal) withPartition(n int32) *refusal {
	return r.with(func(i *varvev1.ErrorInfo) { i.Partition = &n })
}

// withOffsets says which offset was expected and which one is next.
func (r *refusal) withOffsets(expected, actual int64) *refusal {
	return r.with(func(i *varvev1.ErrorInfo) { i.ExpectedOffset, i.ActualOffset = &expected, &actual })
}

// withLog says where the log starts and which offset is next.
func (r *refusal) withLog(start, next int64) *refusal {
	return r.with(func(i *varvev1.ErrorInfo) { i.LogStartOffset, i.NextOffset = &start, &next })
}

// withRetriable says that the same request may succeed later.
func (r *refusal) withRetriable() *refusal {
	return r.with(func(i *varvev1.ErrorInfo) { i.Retriable = true })
}

// withUnknownOutcome says that the append may have taken effect, or still may.
func (r *refusal) withUnknownOutcome() *refusal {
	return r.with(func(i *varvev1.ErrorInfo) { i.UnknownOutcome = true })
}

func (r *refusal) withCause(err error) *refusal {
	out := *r
	out.cause = err
	return &out
}

// connectError returns the refusal as it goes over the wire.
func (r *refusal) connectError() *connect.Error {
	e := connect.NewError(r.code, r.message).WithCause(r.cause)
	if r.info.GetReason() == "" {
		return e
	}
	detail, err := connectproto.NewErrorDetail(r.info)
	if err != nil { // a name that is not UTF-8: the code and the text must do
		return e
	}
	return e.WithDetail(detail)
}

// rule is a line of the table from domain errors to the API's. An error's own text is
// sent behind message, if that is set, else alone.
type rule struct {
	is        error
	code      connect.Code
	reason    string
	message   string
	retriable bool
	unknown   bool
}

// rules in order: the first that matches counts. What wraps two errors stands
// under the one that says more: a context that ended before ErrUnavailable, damage
// in the bucket before the batch errors that found it.
var rules = []rule{
	{is: context.Canceled, code: connect.CodeCanceled, message: "the call was cancelled before it was done"},
	{is: context.DeadlineExceeded, code: connect.CodeDeadlineExceeded, message: "the call's time ran out"},

	{is: metadata.ErrInvalid, code: connect.CodeInvalidArgument, reason: reasonInvalid},
	{is: metadata.ErrTopicNotFound, code: connect.CodeNotFound, reason: reasonTopicNotFound},
	{is: metadata.ErrTopicExists, code: connect.CodeAlreadyExists, reason: reasonTopicExists},
	{is: metadata.ErrClosed, code: connect.CodeNotFound, reason: reasonTopicDeleted},

	{is: metadata.ErrUnknown, code: connect.CodeUnavailable, reason: reasonUnknownOutcome, retriable: true, unknown: true,
		message: "the table did not say whether the write took effect"},
	{is: metadata.ErrFenced, code: connect.CodeAborted, reason: reasonFenced, retriable: true,
		message: "another gateway has taken over from this one; ask that one, or again in a moment"},
	{is: metadata.ErrHeld, code: connect.CodeUnavailable, reason: reasonHeld, retriable: true},
	{is: metadata.ErrBusy, code: connect.CodeUnavailable, reason: reasonBusy, retriable: true},
	{is: metadata.ErrIndexMoved, code: connect.CodeUnavailable, reason: reasonBusy, retriable: true,
		message: "the partition's index changed while it was read; ask again"},
	{is: metadata.ErrConflict, code: connect.CodeAborted, reason: reasonLostRace, retriable: true,
		message: "somebody else changed the same thing at the same time; ask again"},

	{is: segments.ErrDiskFull, code: connect.CodeResourceExhausted, reason: reasonDiskFull, retriable: true,
		message: "the gateway's disk is full; make room on it, or send to another gateway"},
	{is: segments.ErrBufferFailed, code: connect.CodeUnavailable, reason: reasonBufferFailed, retriable: true, unknown: true,
		message: "the gateway's buffer could not be written"},

	{is: segments.ErrDenied, code: connect.CodeUnavailable, reason: reasonDenied, retriable: true,
		message: "the object store refuses the gateway's credentials; check them where the gateway runs"},
	{is: metadata.ErrDenied, code: connect.CodeUnavailable, reason: reasonDenied, retriable: true,
		message: "the table refuses the gateway's credentials; check them where the gateway runs"},
	{is: segments.ErrNoBucket, code: connect.CodeUnavailable, reason: reasonStore, retriable: true,
		message: "the bucket is gone; check the --segments URL of the gateway"},
	{is: metadata.ErrNoTable, code: connect.CodeUnavailable, reason: reasonTable, retriable: true,
		message: "the table is gone; check the --metadata URL of the gateway"},
	{is: segments.ErrFull, code: connect.CodeUnavailable, reason: reasonStore, retriable: true,
		message: "the object store is full; make room in it"},
	{is: segments.ErrUnavailable, code: connect.CodeUnavailable, reason: reasonStore, retriable: true,
		message: "the object store does not answer; ask again in a moment"},
	{is: metadata.ErrUnavailable, code: connect.CodeUnavailable, reason: reasonTable, retriable: true,
		message: "the table does not answer; ask again in a moment"},

	{is: segments.ErrVersion, code: connect.CodeFailedPrecondition, reason: reasonNewerFormat,
		message: "a newer varve wrote this; update the gateway"},
	{is: segments.ErrCorrupt, code: connect.CodeDataLoss, reason: reasonDataLoss},
	{is: metadata.ErrCorrupt, code: connect.CodeDataLoss, reason: reasonDataLoss},
	{is: metadata.ErrHole, code: connect.CodeDataLoss, reason: reasonDataLoss},
	{is: segments.ErrNotFound, code: connect.CodeNotFound, reason: reasonObjectNotFound},

	{is: batch.ErrTooLarge, code: connect.CodeInvalidArgument, reason: reasonBatchTooLarge},
	{is: batch.ErrTruncated, code: connect.CodeInvalidArgument, reason: reasonInvalidBatch},
	{is: batch.ErrCorrupt, code: connect.CodeInvalidArgument, reason: reasonInvalidBatch},
	{is: batch.ErrUnsupported, code: connect.CodeInvalidArgument, reason: reasonInvalidBatch},
	{is: batch.ErrInvalid, code: connect.CodeInvalidArgument, reason: reasonInvalidBatch},
}

// internalMessage is all that callers learn of an internal error.
const internalMessage = "internal error; the gateway's log has the cause"

// classify finds what to tell the caller of an error that is not nil. What no rule
// knows is internal.
func classify(err error) *refusal {
	var done *refusal
	if errors.As(err, &done) {
		return done
	}
	for i := range rules {
		r := &rules[i]
		if !errors.Is(err, r.is) {
			continue
		}
		text := err.Error()
		if r.message != "" {
			text = r.message + ": " + text
		}
		out := refuse(r.code, r.reason, "%s", text).withCause(err)
		out.info.Retriable, out.info.UnknownOutcome = r.retriable, r.unknown
		return out
	}
	return refuse(connect.CodeInternal, "", internalMessage).withCause(err)
}

// connectError translates whatever the core returned. Internal errors are logged, their
// causes stay here. Nil for nil.
func (g *Gateway) connectError(err error) *connect.Error {
	if err == nil {
		return nil
	}
	var done *connect.Error
	if errors.As(err, &done) && !done.IsRemote() {
		return done
	}
	g.logInternal(err)
	return classify(err).connectError()
}

// logInternal keeps what callers are not told, and what an operator must know of.
func (g *Gateway) logInternal(err error) {
	switch classify(err).code {
	case connect.CodeInternal:
		g.meters.internals.Add(1)
		g.log.Error("internal error", "error", err)
	case connect.CodeDataLoss:
		g.log.Error("data is damaged or gone", "error", err)
	}
}

// produceError is connectError for one partition's result. Nil for nil.
func produceError(err error) *varvev1.ProduceError {
	if err == nil {
		return nil
	}
	r := classify(err)
	out := &varvev1.ProduceError{Code: r.code.String(), Message: r.message}
	if r.info.GetReason() != "" {
		out.Info = r.info
	}
	return out
}
