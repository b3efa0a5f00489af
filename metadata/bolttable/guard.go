package bolttable

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/varvelog/varve/metadata"
)

// errPanic is a panic of bbolt, which is how it meets a damaged page.
var errPanic = errors.New("reading it panicked")

// guard calls a function that uses bbolt, and turns its panics into errPanic. The
// map of a file that was cut short faults when read: that becomes a panic too.
func guard(use func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("%w: %v", errPanic, cause)
		}
	}()
	return use()
}

// damage is metadata.ErrCorrupt within this package, in words that do without its own: Table.corrupt
// adds them, and what to do.
type damage struct{ cause error }

func damaged(format string, args ...any) error { return damage{fmt.Errorf(format, args...)} }

func (d damage) Error() string   { return d.cause.Error() }
func (d damage) Unwrap() []error { return []error{metadata.ErrCorrupt, d.cause} }
