package chaosproxy

import (
	"fmt"
	"strings"
)

// Fault is something that can happen to a request, or to its answer.
type Fault uint8

const (
	// LostRequest: the connection is reset and the server never hears of the request.
	LostRequest Fault = iota
	// LostAnswer: the request takes effect, then the connection is reset.
	LostAnswer
	// Late: the request is kept until its sender has given up, and takes effect then.
	Late
	// Slow: it is kept for up to two seconds.
	Slow
	// CutShort: the answer ends in the middle of its body.
	CutShort
	// Trickle: the answer's body comes at one byte a second, for as long as somebody waits for it.
	Trickle
	// Conflict: a PUT is refused with 409, as when another one of the same key is under way.
	Conflict
	// OwnWrite: a conditional PUT takes effect, and is answered with 412, as when a retry in between met it.
	OwnWrite
	// SlowDown: 503 from S3, without effect.
	SlowDown
	// Throttled: ProvisionedThroughputExceededException from DynamoDB, without effect.
	Throttled
	// ServerError: 500, one time in two after the request took effect.
	ServerError
	// CutOff: as LostRequest, while the proxy is cut off.
	CutOff
	faults
)

func (f Fault) String() string {
	return [...]string{
		"request lost", "answer lost", "late effect", "slow", "cut short", "one byte a second", "409 conflict",
		"412 own write", "503 slow down", "throttled", "500 server error", "cut off",
	}[f]
}

// possible says whether the fault can happen to requests of a protocol.
func (f Fault) possible(p Protocol) bool {
	switch f {
	case Conflict, OwnWrite, SlowDown:
		return p == S3
	case Throttled:
		return p == DynamoDB
	}
	return true
}

// Rates are how likely each fault is, per request that it can happen to: their sum must be below 1. The
// rate of CutOff is not used.
type Rates [faults]float64

// DefaultRates let most requests pass, and each fault happen within a minute of a modest load.
func DefaultRates(p Protocol) Rates {
	r := Rates{
		LostRequest: 0.004, LostAnswer: 0.006, Late: 0.001, Slow: 0.008, CutShort: 0.004, Trickle: 0.001,
		Conflict: 0.01, OwnWrite: 0.015, SlowDown: 0.005, Throttled: 0.005, ServerError: 0.004,
	}
	if p == S3 { // which gets fewer requests, and only reads have answers that can be cut
		r[CutShort], r[Trickle], r[Late] = 0.05, 0.01, 0.0015
	}
	return r
}

// Counts are how often each fault happened.
type Counts [faults]int

// Add adds others.
func (c *Counts) Add(other Counts) {
	for f := range c {
		c[f] += other[f]
	}
}

// Missing lists the faults that a protocol knows, that have a rate, and that never happened.
func (c Counts) Missing(p Protocol, rates Rates) (missing []Fault) {
	for f := range faults {
		if f.possible(p) && rates[f] > 0 && c[f] == 0 {
			missing = append(missing, f)
		}
	}
	return missing
}

// Text lists the counts of the faults that the protocol knows.
func (c Counts) Text(p Protocol) string {
	var parts []string
	for f := range faults {
		if f.possible(p) {
			parts = append(parts, fmt.Sprintf("%s %d", f, c[f]))
		}
	}
	return strings.Join(parts, ", ")
}
