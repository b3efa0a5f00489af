package metadata

import (
	"context"
	"iter"
)

// Rows goes over the rows of the range in order, page by page, at most Limit of them
// when that is set. After an error, which is its last step, rows may be missing.
// Rows written or removed meanwhile may be seen or not.
func Rows(ctx context.Context, t Table, r Range) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		limited := r.Limit > 0
		for {
			page, err := t.Range(ctx, r)
			if err != nil {
				yield(Row{}, err)
				return
			}
			for _, row := range page {
				if !yield(row, nil) {
					return
				}
			}
			r.Limit -= len(page)
			if len(page) == 0 || limited && r.Limit <= 0 {
				return
			}
			if !limited {
				r.Limit = 0
			}
			r = r.after(page[len(page)-1].Sort)
		}
	}
}

// after is what remains of the range behind the row with that sort key.
func (r Range) after(sort string) Range {
	if r.Reverse {
		r.To = sort
	} else {
		r.From = sort + "\x00"
	}
	return r
}
