package bill

import (
	"context"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// Store returns the store with what its calls use counted. Put it beneath retries: each try is billed.
func (l *Ledger) Store(s segments.Store) segments.Store { return &store{s, l} }

type store struct {
	segments.Store
	ledger *Ledger
}

// Put charges a segment to the topics in it, by their bytes: bytes are what fills segments and makes
// more of them, so a GiB costs the same whoever it is shared with. By spans a topic with a few
// records beside a large one would pay half of the other's requests.
func (s *store) Put(ctx context.Context, key string, body segments.Body) error {
	err := s.Store.Put(ctx, key, body)
	unit, shares := OtherPuts, []Share(nil)
	if object, ok := body.(*segments.Object); ok {
		unit, shares = FlushPuts, sharesOf(&object.Directory)
		if metadata.GatewayID(object.Directory.Gateway).IsMerger() {
			unit = MergePuts
		}
	} else if p, said := payerOf(ctx); said {
		shares = p.shares
	}
	stored := uint64(0)
	if err == nil {
		stored = uint64(body.Size())
	}
	s.ledger.charge(shares, amount{unit, Part}, amount{BytesPut, stored})
	return err
}

// sharesOf are the topics of a segment, by bytes. Its spans lie topic by topic.
func sharesOf(d *segments.Directory) (shares []Share) {
	for i := range d.Spans {
		shares = AddShare(shares, metadata.TopicID(d.Spans[i].Topic), d.Spans[i].Length)
	}
	return shares
}

func (s *store) Get(ctx context.Context, key string, offset, length int64) ([]byte, int64, error) {
	data, size, err := s.Store.Get(ctx, key, offset, length)
	s.got(ctx, len(data), err)
	return data, size, err
}

// GetInto implements [segments.IntoReader].
func (s *store) GetInto(ctx context.Context, key string, into []byte, offset int64) (int, error) {
	n, err := segments.GetInto(ctx, s.Store, key, into, offset)
	s.got(ctx, n, err)
	return n, err
}

// GetScattered implements [segments.ScatterReader]: without it such a read would go through memory of its own, and a copy.
func (s *store) GetScattered(ctx context.Context, key string, into [][]byte, offset int64) (int, error) {
	n, err := segments.GetScattered(ctx, s.Store, key, into, offset)
	s.got(ctx, n, err)
	return n, err
}

func (s *store) got(ctx context.Context, n int, err error) {
	unit := OtherGets
	p, said := payerOf(ctx)
	switch {
	case p.merge:
		unit = MergeGets
	case said:
		unit = ReadGets
	}
	if err != nil {
		n = 0
	}
	s.ledger.charge(p.shares, amount{unit, Part}, amount{BytesGot, uint64(n)})
}

func (s *store) Delete(ctx context.Context, key string) error {
	p, _ := payerOf(ctx)
	s.ledger.charge(p.shares, amount{Deletes, Part})
	return s.Store.Delete(ctx, key)
}

func (s *store) List(ctx context.Context, prefix, after string, limit int) ([]segments.ObjectInfo, error) {
	p, _ := payerOf(ctx)
	s.ledger.charge(p.shares, amount{Lists, Part})
	return s.Store.List(ctx, prefix, after, limit)
}
