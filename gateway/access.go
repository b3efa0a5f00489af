package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// What runs beside a gateway works on what the gateway works on.

// Store is the gateway's store, with its retries, counted with its own calls.
func (g *Gateway) Store() segments.Store { return g.store }

// Table is the gateway's table, in the same way.
func (g *Gateway) Table() metadata.Table { return g.table }

// Registry takes metrics: /metrics shows them beside the gateway's.
func (g *Gateway) Registry() prometheus.Registerer { return g.meters.registry }
