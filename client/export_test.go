package client

import (
	"time"

	"connectrpc.com/connect/v2"
)

// SetGrowthInterval makes tests of growing topics fast.
func SetGrowthInterval(k *Consumer, d time.Duration) { k.growthInterval = d }

// SetFirstPause makes tests with many faults fast.
func SetFirstPause(c *Client, d time.Duration) { c.firstPause, c.servers.skip = d, skipPauses*d }

// NewOver is a client of several servers that are not reached by HTTP.
func NewOver(cfg Config, transports ...connect.Transport) *Client {
	c := newClient(cfg.withDefaults())
	var endpoints []*endpoint
	for _, t := range transports {
		endpoints = append(endpoints, newEndpoint("transport", t, c.cfg.UserAgent))
	}
	c.start(endpoints...)
	return c
}
