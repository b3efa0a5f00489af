//go:build seeded

package seeded

import "sync/atomic"

var planted atomic.Pointer[Bug]

// Has says whether the bug is planted.
func Has(b Bug) bool {
	p := planted.Load()
	return p != nil && *p == b
}

// Plant plants one bug in place of whatever was planted; "" none.
func Plant(b Bug) { planted.Store(&b) }
