package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
)

// What callers act on. Test for them with errors.Is; the *Error behind them has the numbers.
var (
	// ErrInvalid: the request can never succeed as it is.
	ErrInvalid = errors.New("invalid request")
	// ErrTopicNotFound: no such topic, and none is made by this call.
	ErrTopicNotFound = errors.New("topic not found")
	// ErrPartitionNotFound: the topic has no such partition.
	ErrPartitionNotFound = errors.New("partition not found")
	// ErrObjectNotFound: no such segment object.
	ErrObjectNotFound = errors.New("object not found")
	// ErrTopicExists: the name is taken.
	ErrTopicExists = errors.New("topic exists")
	// ErrOffsetMismatch: the partition's next offset is ActualOffset, not ExpectedOffset.
	ErrOffsetMismatch = errors.New("offset mismatch")
	// ErrFenced: somebody else has taken over (a newer producer epoch, another fencing token).
	ErrFenced = errors.New("fenced")
	// ErrOutOfRange: the offset lies before LogStart or after the end.
	ErrOutOfRange = errors.New("offset out of range")
	// ErrDataLoss: stored data is damaged or gone. The message names the place.
	ErrDataLoss = errors.New("data loss")
	// ErrUnavailable: no server could be reached, or none was ready, until time ran out.
	ErrUnavailable = errors.New("unavailable")
	// ErrUnknownOutcome: an append was sent and may or may not have taken effect.
	ErrUnknownOutcome = errors.New("unknown outcome")
	// ErrClosed: the client, producer or consumer is closed.
	ErrClosed = errors.New("closed")
)

// Reasons that the API gives in ErrorInfo and that this package acts on.
const (
	reasonOffsetMismatch    = "OFFSET_MISMATCH"
	reasonOutOfOrder        = "OUT_OF_ORDER_SEQUENCE"
	reasonUnknownProducer   = "UNKNOWN_PRODUCER"
	reasonForgotten         = "DUPLICATE_FORGOTTEN"
	reasonFenceMismatch     = "FENCING_TOKEN_MISMATCH"
	reasonProducerFenced    = "PRODUCER_FENCED"
	reasonObjectNotFound    = "OBJECT_NOT_FOUND"
	reasonPartitionNotFound = "PARTITION_NOT_FOUND"
	reasonDraining          = "DRAINING"
	reasonGatewayFenced     = "GATEWAY_FENCED"
	reasonHeld              = "HELD_ELSEWHERE"
	reasonBusy              = "BUSY"
)

// Error is why a call failed, in the words of the API.
type Error struct {
	// Code is the Connect code.
	Code connect.Code
	// Reason is stable and machine-readable, such as "OFFSET_MISMATCH"; empty when the server gave none.
	Reason string
	// Message is for people.
	Message string
	// Topic and Partition say where; empty and -1 when the error is not about one.
	Topic     string
	Partition int32
	// The offsets that the server named; -1 when it did not.
	ExpectedOffset, ActualOffset int64
	LogStart, NextOffset         int64
	// Retriable: the same request may succeed later.
	Retriable bool
	// UnknownOutcome: the request was an append that may still take effect, or has.
	UnknownOutcome bool

	cause error
	// informed: a gateway said so with details, so that Retriable and UnknownOutcome are its words.
	informed bool
	// elsewhere: another server may be asked at once.
	elsewhere bool
}

// Error names what failed and where.
func (e *Error) Error() string {
	where := e.Topic
	if e.Topic != "" && e.Partition >= 0 {
		where = fmt.Sprintf("%s/%d", e.Topic, e.Partition)
	}
	text := e.Message
	if text == "" {
		text = e.Code.String()
	}
	if where != "" {
		text = where + ": " + text
	}
	if e.UnknownOutcome {
		text += " (outcome unknown: it may have taken effect)"
	}
	return text
}

// Unwrap returns the cause, so that context.Canceled and network errors can be found.
func (e *Error) Unwrap() error { return e.cause }

// Is matches the sentinels of this package.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrUnknownOutcome:
		return e.UnknownOutcome
	case ErrTopicNotFound:
		return e.Code == connect.CodeNotFound && e.Reason != reasonPartitionNotFound && e.Reason != reasonObjectNotFound
	case ErrObjectNotFound:
		return e.Reason == reasonObjectNotFound
	case ErrPartitionNotFound:
		return e.Reason == reasonPartitionNotFound
	case ErrOffsetMismatch:
		return e.Reason == reasonOffsetMismatch
	case ErrFenced:
		return e.Reason == reasonFenceMismatch || e.Reason == reasonProducerFenced
	default:
		return target != nil && sentinelOfCode[e.Code] == target
	}
}

var sentinelOfCode = map[connect.Code]error{
	connect.CodeInvalidArgument: ErrInvalid,
	connect.CodeAlreadyExists:   ErrTopicExists,
	connect.CodeOutOfRange:      ErrOutOfRange,
	connect.CodeDataLoss:        ErrDataLoss,
	connect.CodeUnavailable:     ErrUnavailable,
}

// ofServer reports whether a failure says something of the server that was asked, so that another one may do
// better, rather than of the partition, the request or the cluster.
func (e *Error) ofServer() bool {
	switch {
	case !e.Retriable || e.Reason == reasonHeld || e.Reason == reasonBusy:
		return false
	case !e.informed || e.Reason == reasonGatewayFenced:
		return true
	}
	return e.Code == connect.CodeUnavailable || e.Code == connect.CodeResourceExhausted
}

// errorOf translates what a call returned. It never returns nil for an error.
func errorOf(err error) *Error {
	var done *Error
	if errors.As(err, &done) {
		return done
	}
	e := newError(connect.CodeOf(err), err.Error())
	e.cause = err
	var remote *connect.Error
	if !errors.As(err, &remote) || !remote.IsRemote() {
		e.classifyLocal(err)
		return e
	}
	e.Message = remote.Message()
	for _, d := range remote.Details() {
		if msg, derr := connectproto.UnmarshalErrorDetail(d); derr == nil {
			if info, ok := msg.(*varvev1.ErrorInfo); ok {
				e.inform(info)
				return e
			}
		}
	}
	// A proxy, or a server that is not ours: the code is all there is.
	e.Retriable = retriableCode(e.Code)
	e.UnknownOutcome = !definiteCode(e.Code)
	return e
}

func newError(code connect.Code, message string) *Error {
	return &Error{
		Code: code, Message: message, Partition: -1,
		ExpectedOffset: -1, ActualOffset: -1, LogStart: -1, NextOffset: -1,
	}
}

// codeOfContext is the code for a context that has ended.
func codeOfContext(ctx context.Context) connect.Code {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return connect.CodeDeadlineExceeded
	}
	return connect.CodeCanceled
}

func invalidf(format string, args ...any) *Error {
	return newError(connect.CodeInvalidArgument, fmt.Sprintf(format, args...))
}

// classifyLocal judges an error that no server sent. Only a connection that was never made is
// certain not to have carried the request.
func (e *Error) classifyLocal(err error) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		e.Code, e.Retriable = connect.CodeUnavailable, true
		return
	}
	e.UnknownOutcome = true
	e.Retriable = !errors.Is(err, context.Canceled)
	broken := errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
	switch e.Code {
	case connect.CodeInvalidArgument, connect.CodeResourceExhausted, connect.CodeUnimplemented:
		// Our own limits and encoding: trying again changes nothing. (A message cut short has such a
		// code too.)
		e.Retriable = broken
	}
}

// inform takes over what a gateway said.
func (e *Error) inform(info *varvev1.ErrorInfo) {
	e.informed = true
	e.Reason, e.Topic = info.GetReason(), info.GetTopic()
	e.Retriable, e.UnknownOutcome = info.GetRetriable(), info.GetUnknownOutcome()
	if info.Partition != nil {
		e.Partition = info.GetPartition()
	}
	for dst, src := range map[*int64]*int64{
		&e.ExpectedOffset: info.ExpectedOffset, &e.ActualOffset: info.ActualOffset,
		&e.LogStart: info.LogStartOffset, &e.NextOffset: info.NextOffset,
	} {
		if src != nil {
			*dst = *src
		}
	}
}

// errorOfResult translates one partition's failure out of an answer that was a success for others.
func errorOfResult(topic string, partition int32, pe *varvev1.ProduceError) *Error {
	var code connect.Code
	if err := code.UnmarshalText([]byte(pe.GetCode())); err != nil {
		code = connect.CodeUnknown
	}
	e := newError(code, pe.GetMessage())
	if pe.GetInfo() != nil {
		e.inform(pe.GetInfo())
	} else {
		e.Retriable, e.UnknownOutcome = retriableCode(code), !definiteCode(code)
	}
	e.Topic, e.Partition = topic, partition
	return e
}

// retriableCode is used where no gateway said whether trying again can help.
func retriableCode(c connect.Code) bool {
	switch c {
	case connect.CodeUnavailable, connect.CodeResourceExhausted, connect.CodeDeadlineExceeded, connect.CodeUnknown, connect.CodeCanceled:
		return true
	}
	return false
}

// definiteCode reports whether a code alone proves that nothing was appended.
func definiteCode(c connect.Code) bool {
	switch c {
	case connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists, connect.CodePermissionDenied,
		connect.CodeResourceExhausted, connect.CodeFailedPrecondition, connect.CodeOutOfRange,
		connect.CodeUnimplemented, connect.CodeUnauthenticated:
		return true
	}
	return false
}
