package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// A partition as clients may think of it: an end and a fencing token. Whether each history of
// conditional appends, fences and linearizable reads is one of such a thing, porcupine says.

// modelState is what the model knows.
type modelState struct {
	next  int64
	token string
}

// modelInput is an operation, modelOutput what came of it.
type modelInput struct {
	kind     Kind
	records  int64
	expected *int64
	token    *string
	current  *string
}

type modelOutput struct {
	outcome Outcome
	reason  string
	// base of an append, end of a tail or a fence.
	offset int64
}

// Reasons of refusals that are about the partition's state, as ErrorInfo has them.
const (
	offsetMismatch = "OFFSET_MISMATCH"
	fenceMismatch  = "FENCING_TOKEN_MISMATCH"
)

// steps lists the states after an operation with this outcome; none: it cannot be.
func steps(s modelState, in modelInput, out modelOutput) []modelState {
	holds := (in.expected == nil || *in.expected == s.next) && (in.current == nil || *in.current == s.token)
	if in.kind == Tail {
		if out.offset == s.next {
			return []modelState{s}
		}
		return nil
	}
	after := s
	if in.kind == Fence {
		after.token = *in.token
		// Setting the token that is there succeeds whatever it was before.
		holds = holds || *in.token == s.token
	} else {
		after.next += in.records
		holds = holds && (in.token == nil || *in.token == s.token)
	}
	switch out.outcome {
	case Done:
		told := s.next
		if holds && out.offset == told {
			return []modelState{after}
		}
		return nil
	case No:
		// A no for another reason is always possible.
		if out.reason != offsetMismatch && out.reason != fenceMismatch || !holds {
			return []modelState{s}
		}
		return nil
	}
	if holds {
		return []modelState{s, after}
	}
	return []modelState{s}
}

var partitionModel = (&porcupine.NondeterministicModel{
	Init: func() []any { return []any{modelState{}} },
	Step: func(state, input, output any) []any {
		var list []any
		for _, s := range steps(state.(modelState), input.(modelInput), output.(modelOutput)) {
			list = append(list, s)
		}
		return list
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(input, output any) string {
		return fmt.Sprintf("%+v -> %+v", input, output)
	},
}).ToModel()

// modelOps is how many operations of a partition are judged: the search is exponential at worst.
const modelOps = 2000

// Models has porcupine judge the partitions with conditional appends or fences, and counts the histories that
// it could not decide in time: the search is exponential at worst. Call it where time is real.
func Models(h *History, patience time.Duration) (found []Anomaly, decided, undecided int) {
	c := newChecker(h)
	for _, log := range c.logs() {
		ops := c.modelled(log)
		if len(ops) == 0 || log.Start > 0 {
			continue
		}
		if len(ops) > modelOps {
			undecided++
			continue
		}
		switch porcupine.CheckOperationsTimeout(partitionModel, ops, patience) {
		case porcupine.Unknown:
			undecided++
			continue
		case porcupine.Illegal:
			var lines []string
			for _, op := range ops {
				lines = append(lines, fmt.Sprintf("  %s–%s %s", time.Duration(op.Call), time.Duration(op.Return), partitionModel.DescribeOperation(op.Input, op.Output)))
			}
			c.note(Unlinearizable, "%s: no order of these explains the answers:\n%s", log.Partition, strings.Join(lines, "\n"))
		}
		decided++
	}
	return c.found, decided, undecided
}

// modelled translates the operations on a partition; none if nothing is to be judged there. What the log says
// of appends whose outcome is unknown makes them certain: they are there, or never will be.
func (c *checker) modelled(log *Log) []porcupine.Operation {
	var ops []porcupine.Operation
	worth := false
	end := int64(0)
	for _, op := range c.h.Ops {
		if op.Partition == log.Partition {
			end = max(end, int64(op.Return), int64(op.Call))
		}
	}
	for i, op := range c.h.Ops {
		if op.Partition != log.Partition {
			continue
		}
		in := modelInput{op.Kind, int64(len(op.Values)), op.Expected, op.Token, op.Current}
		out := modelOutput{op.Outcome, op.Reason, op.Next}
		returned := int64(op.Return)
		switch {
		case op.appends():
			worth = worth || op.Kind == Conditional || op.Kind == Fenced
			base, found := c.baseOf(op)
			if found {
				out.outcome, out.offset = Done, base
			}
			if !found && (op.Outcome == Unknown || op.excused() || op.aside()) {
				continue
			}
			if op.Outcome == Unknown || op.Kind == Buffered {
				returned = end + 1
			}
		case op.Kind == Tail && op.Outcome == Done:
		case op.Kind == Fence:
			worth = true
			if op.Outcome == Unknown {
				returned = end + 1
			}
		default:
			continue
		}
		ops = append(ops, porcupine.Operation{ClientId: i, Input: in, Output: out, Call: int64(op.Call), Return: returned})
	}
	if !worth {
		return nil
	}
	return slices.Clip(ops)
}
