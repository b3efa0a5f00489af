package gateway

import (
	"time"

	"github.com/varvelog/varve/metadata"
)

// chain is the numbers of a tenure's segments that have batches of one partition, in order.
// Each reference names the number before its own. Those that are open lie within
// metadata.AnswersKept numbers, counted from the first that is not settled: the partition keeps so
// many answers, so that none is pushed out whose uploader did not get it. The others wait for
// their turn, and hold up nothing but their own partition.
type chain struct {
	last uint64 // 0: none yet
	open []link // from the first that is not settled on
	// closed: the partition takes nothing more, for ever.
	closed bool
}

// link is one number of a chain.
type link struct {
	number  uint64
	settled bool
	asked   time.Time // since when there could be a verdict; zero: it waits for its upload, or its turn
	send    func()    // if set, it waits for its turn
	alone   bool      // which comes when it is the first that is open
}

// join adds a number, and returns the one before it.
func (c *chain) join(number uint64) (previous uint64) {
	previous, c.last = c.last, number
	c.open = append(c.open, link{number: number})
	return previous
}

// enter says whether the reference with a number may be sent now; if not, send is returned by the
// call of settle that makes room for it. alone: only when none before it is open.
func (c *chain) enter(number uint64, alone bool, now time.Time, send func()) bool {
	for i := range c.open {
		l := &c.open[i]
		if l.number != number {
			continue
		}
		if l.alone = alone; l.mayGo(i) {
			l.asked = now
			return true
		}
		l.send = send
		return false
	}
	return true // its verdict is there already
}

// mayGo says whether the i-th of those that are open may be sent.
func (l *link) mayGo(i int) bool { return i == 0 || i < metadata.AnswersKept && !l.alone }

// settle notes that the verdict on a number is there, and returns what it is the turn of now.
func (c *chain) settle(number uint64, now time.Time) (sends []func()) {
	for i := range c.open {
		if c.open[i].number == number {
			c.open[i].settled, c.open[i].send = true, nil
			break
		}
	}
	gone := 0
	for gone < len(c.open) && c.open[gone].settled {
		gone++
	}
	if c.open = c.open[gone:]; len(c.open) == 0 {
		c.open = nil
	}
	for i := range min(len(c.open), metadata.AnswersKept) {
		if l := &c.open[i]; l.send != nil && l.mayGo(i) {
			sends = append(sends, l.send)
			l.send, l.asked = nil, now
		}
	}
	return sends
}

// waiting is for how long the first reference has been asked about without a verdict.
func (c *chain) waiting(now time.Time) time.Duration {
	if c == nil || len(c.open) == 0 || c.open[0].asked.IsZero() {
		return 0
	}
	return now.Sub(c.open[0].asked)
}
