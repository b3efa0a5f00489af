package client

import "time"

// SetGrowthInterval makes tests of growing topics fast.
func SetGrowthInterval(k *Consumer, d time.Duration) { k.growthInterval = d }

// SetFirstPause makes tests with many faults fast.
func SetFirstPause(c *Client, d time.Duration) { c.firstPause = d }
