package metadata

// Limits are sizes at which parts of a partition's state get rows of their own.
type Limits struct {
	// FanOut is the most children of a tree node, and the most entries of a page; PageAt how
	// many entries make a page.
	FanOut, PageAt int
	// PagesInline is how many pages the lease row names, InlineProducers how many producer
	// states it holds.
	PagesInline, InlineProducers int
}

// SetLimits changes the limits of the whole process. It is for simulations: what takes a log
// millions of records to reach, pages under a tree, they reach in seconds. Call it before anything
// else of this package, since nothing guards them.
func SetLimits(l Limits) {
	fanOut, pageAt, pagesInline, inlineProducers = l.FanOut, l.PageAt, l.PagesInline, l.InlineProducers
}
