package bill

import (
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"github.com/varvelog/varve/metadata"
)

// MaxAccounts bounds the topics that have an account each; what further ones use is counted for
// all of them together. An account takes some 200 bytes.
const MaxAccounts = 100_000

// Share is a topic's part in something, by weight: bytes, mostly.
type Share struct {
	Topic  metadata.TopicID
	Weight int64
}

// AddShare adds a weight to a list of shares: to the last one, if it is the same topic's.
func AddShare(shares []Share, topic metadata.TopicID, weight int64) []Share {
	if n := len(shares); n > 0 && shares[n-1].Topic == topic {
		shares[n-1].Weight += weight
		return shares
	}
	return append(shares, Share{topic, weight})
}

type account [Units]atomic.Uint64

func (a *account) usage() (u Usage) {
	for i := range a {
		u[i] = a[i].Load()
	}
	return u
}

// Ledger has the accounts of one gateway since its start. Nothing here is asked for by appends: it is
// written once a flush, a commit, or another call to bucket or table. All methods may be called at once.
type Ledger struct {
	since time.Time // by the wall clock that the gateway was given
	began time.Time // by this process's own

	mu       sync.RWMutex
	accounts map[metadata.TopicID]*account
	cluster  account
	rest     account // of topics beyond MaxAccounts
}

// NewLedger returns an empty ledger; now is what its statements begin with.
func NewLedger(now time.Time) *Ledger {
	return &Ledger{since: now, began: time.Now(), accounts: make(map[metadata.TopicID]*account)}
}

// Statement is what was used since a moment.
type Statement struct {
	Since   time.Time
	Counted time.Duration // for how long
	// Cluster is what no topic is named for, Rest what topics beyond MaxAccounts used.
	Cluster, Rest Usage
	Topics        map[metadata.TopicID]Usage
}

// Statement says what was used so far.
func (l *Ledger) Statement() Statement {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s := l.statement(len(l.accounts))
	s.Cluster, s.Rest = l.cluster.usage(), l.rest.usage()
	for id, a := range l.accounts {
		s.Topics[id] = a.usage()
	}
	return s
}

// Of says what one topic used so far, as a statement of nothing else.
func (l *Ledger) Of(id metadata.TopicID) Statement {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s := l.statement(1)
	if a := l.accounts[id]; a != nil {
		s.Topics[id] = a.usage()
	}
	return s
}

func (l *Ledger) statement(topics int) Statement {
	return Statement{Since: l.since, Counted: time.Since(l.began), Topics: make(map[metadata.TopicID]Usage, topics)}
}

// Merge adds another gateway's statement. Since and Counted stay.
func (s *Statement) Merge(o *Statement) {
	s.Cluster.Add(&o.Cluster)
	s.Rest.Add(&o.Rest)
	for id, used := range o.Topics {
		sum := s.Topics[id]
		sum.Add(&used)
		s.Topics[id] = sum
	}
}

// Total is the sum of all accounts.
func (s *Statement) Total() (u Usage) {
	u.Add(&s.Cluster)
	u.Add(&s.Rest)
	for _, t := range s.Topics {
		u.Add(&t)
	}
	return u
}

// account is a topic's own, or that of all that have none.
func (l *Ledger) account(id metadata.TopicID) *account {
	l.mu.RLock()
	a := l.accounts[id]
	l.mu.RUnlock()
	if a != nil {
		return a
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a = l.accounts[id]; a != nil {
		return a
	}
	if len(l.accounts) >= MaxAccounts {
		return &l.rest
	}
	a = new(account)
	l.accounts[id] = a
	return a
}

// amount is so much of a unit.
type amount struct {
	unit Unit
	n    uint64
}

// charge divides amounts among shares by their weights; without shares they are the cluster's.
func (l *Ledger) charge(shares []Share, amounts ...amount) {
	if len(shares) == 0 {
		l.cluster.add(amounts)
		return
	}
	if len(shares) == 1 {
		l.account(shares[0].Topic).add(amounts)
		return
	}
	var all uint64
	for _, s := range shares {
		all += uint64(max(s.Weight, 0))
	}
	if all == 0 { // nobody weighs anything: the first one pays
		l.account(shares[0].Topic).add(amounts)
		return
	}
	var upTo uint64
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, s := range shares {
		a, from := l.accounts[s.Topic], upTo
		if a == nil { // its first time
			l.mu.RUnlock()
			a = l.account(s.Topic)
			l.mu.RLock()
		}
		upTo += uint64(max(s.Weight, 0))
		for _, m := range amounts {
			// Differences of a running sum: what is rounded off here is added there.
			if n := portion(m.n, upTo, all) - portion(m.n, from, all); n > 0 {
				a[m.unit].Add(n)
			}
		}
	}
}

func (a *account) add(amounts []amount) {
	for _, m := range amounts {
		if m.n > 0 {
			a[m.unit].Add(m.n)
		}
	}
}

// portion is n × part / all, rounded down; part is all at most.
func portion(n, part, all uint64) uint64 {
	high, low := bits.Mul64(n, part)
	quotient, _ := bits.Div64(high, low, all)
	return quotient
}

// Batches are record batches, summed up.
type Batches struct{ Bytes, Records int64 }

// Appended counts record batches of a topic that were accepted.
func (l *Ledger) Appended(id metadata.TopicID, b Batches) {
	l.account(id).add([]amount{{AppendedBytes, uint64(b.Bytes)}, {AppendedRecords, uint64(b.Records)}})
}
