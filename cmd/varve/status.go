package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"

	"connectrpc.com/connect/v2"
	"github.com/spf13/cobra"

	"github.com/varvelog/varve/client"
)

// Exit statuses.
const (
	statusDone   = 0
	statusFailed = 1
	statusUsage  = 2
)

// usageError says that the command line was wrong.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// errReported ends a command with status 1 when standard error says why already.
var errReported = errors.New("reported")

// errReaderGone says that nobody reads standard output any more.
var errReaderGone = errors.New("nobody reads the output")

// dataWriter is standard output. It tells a reader that left ("| head") from a disk that is full.
type dataWriter struct{ w io.Writer }

func (d *dataWriter) Write(p []byte) (int, error) {
	n, err := d.w.Write(p)
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrClosedPipe) {
		return n, errReaderGone
	}
	if err != nil {
		return n, fmt.Errorf("writing to standard output: %w", err)
	}
	return n, nil
}

// conclude explains what went wrong, and returns the exit status.
func (a *app) conclude(cmd *cobra.Command, err error) int {
	var usage *usageError
	switch {
	case err == nil, errors.Is(err, errReaderGone):
		return statusDone
	case errors.As(err, &usage) || !a.started:
		a.notef("%v", err)
		fmt.Fprintf(a.stderr, "Run '%s --help' for usage.\n", cmd.CommandPath())
		return statusUsage
	case errors.Is(err, errReported):
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		a.notef("interrupted")
	default:
		a.notef("%s", a.explain(err))
	}
	return statusFailed
}

// explain adds to an error what to do next.
func (a *app) explain(err error) string {
	text := err.Error()
	unreached := a.dials.unreached()
	switch {
	case unreached != nil && (errors.Is(err, context.DeadlineExceeded) || isDial(err)):
		return fmt.Sprintf("cannot reach a gateway (%v); start one with 'varve serve', or name one with --server or VARVE_SERVER", unreached)
	case errors.Is(err, context.DeadlineExceeded) && a.dials != nil: // serve has limits of its own
		return fmt.Sprintf("%s; no answer within %v (--timeout allows more)", text, a.timeout)
	case a.dials != nil && isForeign(err):
		return fmt.Sprintf("%s; is %s the --listen address of a gateway?", text, strings.Join(a.servers, " or "))
	case errors.Is(err, client.ErrTopicNotFound):
		return text + "; 'varve topic list' shows the topics there are"
	case errors.Is(err, client.ErrPartitionNotFound):
		return text + "; partitions count from 0"
	case errors.Is(err, client.ErrDataLoss):
		return text + "; nothing was skipped: what was printed before is good. 'varve verify --deep' names all that is damaged; " +
			"'varve cat TOPIC -p N --from OFFSET' reads on from an offset behind it"
	case errors.Is(err, client.ErrOutOfRange):
		return text + "; 'varve offsets TOPIC --time earliest' and '--time latest' show what is there"
	case errors.Is(err, client.ErrUnavailable):
		return text + "; the gateway may be starting or stopping: try again, or see its /readyz"
	}
	return text
}

// isForeign says that an answer looks like one of a server that is no gateway: gateways say in details of their own
// what went wrong.
func isForeign(err error) bool {
	var failed *client.Error
	if !errors.As(err, &failed) || failed.Code != connect.CodeInternal && failed.Code != connect.CodeUnimplemented {
		return false
	}
	var remote *connect.Error
	return errors.As(err, &remote) && len(remote.Details()) == 0
}

func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
