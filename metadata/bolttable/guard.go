package bolttable

import (
	"errors"
	"fmt"
	"runtime/debug"
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
