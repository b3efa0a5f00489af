package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectproto"
	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
	"github.com/varvelog/varve/segments/batch"
)

// infoOf returns the details of an error, or nil.
func infoOf(t *testing.T, err *connect.Error) *varvev1.ErrorInfo {
	t.Helper()
	for _, d := range err.Details() {
		msg, err := connectproto.UnmarshalErrorDetail(d)
		if err != nil {
			t.Fatal(err)
		}
		if info, ok := msg.(*varvev1.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

func TestErrors(t *testing.T) {
	const retriable, unknown = true, true
	for _, c := range []struct {
		err       error
		code      connect.Code
		reason    string
		retriable bool
		unknown   bool
	}{
		{context.Canceled, connect.CodeCanceled, "", false, false},
		{fmt.Errorf("%w: %w", segments.ErrUnavailable, context.DeadlineExceeded), connect.CodeDeadlineExceeded, "", false, false},
		{fmt.Errorf("%w: %w", metadata.ErrUnavailable, context.Canceled), connect.CodeCanceled, "", false, false},
		{metadata.CheckTopicName("a/b"), connect.CodeInvalidArgument, "INVALID_REQUEST", false, false},
		{metadata.ErrTopicNotFound, connect.CodeNotFound, "TOPIC_NOT_FOUND", false, false},
		{metadata.ErrTopicExists, connect.CodeAlreadyExists, "TOPIC_EXISTS", false, false},
		{metadata.ErrClosed, connect.CodeNotFound, "TOPIC_DELETED", false, false},
		{metadata.ErrUnknown, connect.CodeUnavailable, "UNKNOWN_OUTCOME", retriable, unknown},
		{metadata.ErrFenced, connect.CodeAborted, "GATEWAY_FENCED", retriable, false},
		{metadata.ErrHeld, connect.CodeUnavailable, "HELD_ELSEWHERE", retriable, false},
		{metadata.ErrBusy, connect.CodeUnavailable, "BUSY", retriable, false},
		{metadata.ErrIndexMoved, connect.CodeUnavailable, "BUSY", retriable, false},
		{metadata.ErrConflict, connect.CodeAborted, "LOST_RACE", retriable, false},
		{segments.ErrDiskFull, connect.CodeResourceExhausted, "DISK_FULL", retriable, false},
		{segments.ErrBufferFailed, connect.CodeUnavailable, "BUFFER_FAILED", retriable, unknown},
		{segments.ErrDenied, connect.CodeUnavailable, "ACCESS_DENIED", retriable, false},
		{metadata.ErrDenied, connect.CodeUnavailable, "ACCESS_DENIED", retriable, false},
		{segments.ErrNoBucket, connect.CodeUnavailable, "STORE_UNAVAILABLE", retriable, false},
		{metadata.ErrNoTable, connect.CodeUnavailable, "TABLE_UNAVAILABLE", retriable, false},
		{segments.ErrUnavailable, connect.CodeUnavailable, "STORE_UNAVAILABLE", retriable, false},
		{metadata.ErrUnavailable, connect.CodeUnavailable, "TABLE_UNAVAILABLE", retriable, false},
		{segments.ErrVersion, connect.CodeFailedPrecondition, "NEWER_FORMAT", false, false},
		{segments.ErrCorrupt, connect.CodeDataLoss, "DATA_LOSS", false, false},
		{fmt.Errorf("%w: offset 7: %w", segments.ErrCorrupt, batch.ErrCorrupt), connect.CodeDataLoss, "DATA_LOSS", false, false},
		{metadata.ErrCorrupt, connect.CodeDataLoss, "DATA_LOSS", false, false},
		{metadata.ErrHole, connect.CodeDataLoss, "DATA_LOSS", false, false},
		{segments.ErrNotFound, connect.CodeNotFound, "OBJECT_NOT_FOUND", false, false},
		{batch.ErrTooLarge, connect.CodeInvalidArgument, "BATCH_TOO_LARGE", false, false},
		{batch.ErrTruncated, connect.CodeInvalidArgument, "INVALID_BATCH", false, false},
		{batch.ErrCorrupt, connect.CodeInvalidArgument, "INVALID_BATCH", false, false},
		{batch.ErrUnsupported, connect.CodeInvalidArgument, "INVALID_BATCH", false, false},
		{batch.ErrInvalid, connect.CodeInvalidArgument, "INVALID_BATCH", false, false},
		{refuse(connect.CodeOutOfRange, reasonOutOfRange, "no"), connect.CodeOutOfRange, "OUT_OF_RANGE", false, false},
		{connect.NewError(connect.CodeUnimplemented, "no"), connect.CodeUnimplemented, "", false, false},
		{connect.NewError(connect.CodeNotFound, "of a peer").WithRemote(), connect.CodeInternal, "", false, false},
		{metadata.ErrNotFound, connect.CodeInternal, "", false, false},
		{errors.New("password is hunter2"), connect.CodeInternal, "", false, false},
	} {
		t.Run(c.err.Error(), func(t *testing.T) {
			g := &Gateway{meters: NewMeters(), log: slog.New(slog.DiscardHandler)}
			got := g.connectError(fmt.Errorf("partition 3: %w", c.err))
			info := infoOf(t, got)
			if got.Code() != c.code || info.GetReason() != c.reason || info.GetRetriable() != c.retriable || info.GetUnknownOutcome() != c.unknown {
				t.Fatalf("got %v with %v", got, info)
			}
			if sent := c.code == connect.CodeUnimplemented || c.code == connect.CodeOutOfRange; !sent && !errors.Is(got, c.err) {
				t.Errorf("the cause of %v is lost", got)
			}
			if c.code == connect.CodeInternal && got.Message() != internalMessage {
				t.Errorf("an internal error tells the caller %q", got.Message())
			}
			one := produceError(c.err)
			if code := got.Code().String(); c.code != connect.CodeUnimplemented && c.code != connect.CodeInternal && (one.GetCode() != code || one.GetInfo().GetReason() != c.reason) {
				t.Errorf("alone %v, in a result %v", got, one)
			}
		})
	}
}

func TestErrorsNil(t *testing.T) {
	if g := (&Gateway{}); g.connectError(nil) != nil || produceError(nil) != nil {
		t.Error("no error became one")
	}
}

func TestInternalErrorIsLogged(t *testing.T) {
	var log strings.Builder
	g := &Gateway{meters: NewMeters(), log: slog.New(slog.NewTextHandler(&log, nil))}
	g.connectError(errors.New("the cause"))
	if !strings.Contains(log.String(), "the cause") || g.meters.internals.Load() != 1 {
		t.Errorf("log %q, count %d", log.String(), g.meters.internals.Load())
	}
}

func TestRefusalDetails(t *testing.T) {
	shared := refuse(connect.CodeFailedPrecondition, reasonOffsetMismatch, "expected %d", 5)
	got := shared.withTopic("t").withPartition(2).withOffsets(5, 9).withLog(3, 9).withRetriable().withUnknownOutcome()
	if want := (&varvev1.ErrorInfo{Reason: reasonOffsetMismatch}); !proto.Equal(shared.info, want) {
		t.Errorf("a shared refusal was changed to %v", shared.info)
	}
	want := &varvev1.ErrorInfo{Reason: reasonOffsetMismatch, Topic: "t", Partition: proto.Int32(2), ExpectedOffset: proto.Int64(5),
		ActualOffset: proto.Int64(9), LogStartOffset: proto.Int64(3), NextOffset: proto.Int64(9), Retriable: true, UnknownOutcome: true}
	if info := infoOf(t, got.connectError()); !proto.Equal(info, want) {
		t.Errorf("got %v, want %v", info, want)
	}
	if message := got.connectError().Message(); message != "expected 5" {
		t.Errorf("message %q", message)
	}
	bad := refuse(connect.CodeInvalidArgument, reasonInvalid, "name").withTopic("\xff")
	if err := bad.connectError(); err.Code() != connect.CodeInvalidArgument || len(err.Details()) != 0 {
		t.Errorf("a name that is not UTF-8 gave %v", err)
	}
}
