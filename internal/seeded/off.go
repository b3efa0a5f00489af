//go:build !seeded

package seeded

// Has says whether the bug is planted: never, without the build tag.
func Has(Bug) bool { return false }
