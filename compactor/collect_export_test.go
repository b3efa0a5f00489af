package compactor

import (
	"context"

	"github.com/varvelog/varve/metadata"
)

// Suspect has the collector take a segment for garbage, as a mistake of its marking would.
func (c *Collector) Suspect(uploader metadata.GatewayID, number uint64) {
	c.candidates = append(c.candidates, candidate{uploader: uploader, number: number, size: 1, since: c.began})
}

// Reap deletes the candidates whose grace is over.
func (c *Collector) Reap(ctx context.Context) error { return c.reapWaiting(ctx) }
