//go:build seeded

package seeded

import (
	"os"
	"sync/atomic"
)

// Variable is the environment variable that names the bug to plant at the start, for tests that
// run in a process of their own.
const Variable = "VARVE_SEEDED_BUG"

var planted atomic.Pointer[Bug]

func init() {
	if b := Bug(os.Getenv(Variable)); b != "" {
		Plant(b)
	}
}

// Has says whether the bug is planted.
func Has(b Bug) bool {
	p := planted.Load()
	return p != nil && *p == b
}

// Plant plants one bug in place of whatever was planted; "" none.
func Plant(b Bug) { planted.Store(&b) }
