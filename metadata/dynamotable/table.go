package dynamotable

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http/httptrace"
	"sync/atomic"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/varvelog/varve/metadata"
)

// Consumed is told what an answered request cost, in read or write capacity units.
type Consumed func(op metadata.Op, units float64)

// Table is a metadata.Table in DynamoDB.
type Table struct {
	client   *dynamodb.Client
	name     string
	consumed Consumed
}

var _ metadata.Table = (*Table)(nil)

// Open returns the table that the options name. It asks nothing of it yet: a missing
// table, or missing credentials, show at the first call.
func Open(ctx context.Context, o Options) (*Table, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	client, err := NewClient(ctx, o)
	if err != nil {
		return nil, err
	}
	return New(client, o.Table, o.Consumed), nil
}

// New returns the table of that name. Whatever tries the client would make, the table's are one.
// A set consumed makes DynamoDB count.
func New(client *dynamodb.Client, name string, consumed Consumed) *Table {
	return &Table{
		client: dynamodb.New(client.Options(), func(o *dynamodb.Options) {
			o.Retryer = aws.NopRetryer{}
			if o.Credentials != nil {
				o.Credentials = markedCredentials{o.Credentials}
			}
		}),
		name:     name,
		consumed: consumed,
	}
}

func (t *Table) String() string { return "dynamodb://" + t.name }

// Get implements metadata.Table.
func (t *Table) Get(ctx context.Context, key metadata.Key, c metadata.Consistency) (metadata.Row, error) {
	if err := key.Validate(); err != nil {
		return metadata.Row{}, err
	}
	var out *dynamodb.GetItemOutput
	err := t.call(ctx, metadata.OpGet, func(ctx context.Context) (_ *types.ConsumedCapacity, err error) {
		out, err = t.client.GetItem(ctx, &dynamodb.GetItemInput{
			TableName:              &t.name,
			Key:                    encodeKey(key),
			ConsistentRead:         aws.Bool(bool(c)),
			ReturnConsumedCapacity: t.counting(),
		})
		if err != nil {
			return nil, err
		}
		return out.ConsumedCapacity, nil
	})
	if err != nil {
		return metadata.Row{}, fmt.Errorf("get %s: %w", key, err)
	}
	if len(out.Item) == 0 {
		return metadata.Row{}, fmt.Errorf("%w: %s", metadata.ErrNotFound, key)
	}
	return decodeItem(out.Item)
}

// Put implements metadata.Table.
func (t *Table) Put(ctx context.Context, row metadata.Row, cond metadata.Condition) error {
	if err := errors.Join(row.Validate(), cond.Validate()); err != nil {
		return err
	}
	expression, values := encodeCondition(cond)
	err := t.call(ctx, metadata.OpPut, func(ctx context.Context) (*types.ConsumedCapacity, error) {
		out, err := t.client.PutItem(ctx, &dynamodb.PutItemInput{
			TableName:                 &t.name,
			Item:                      encodeRow(row),
			ConditionExpression:       expression,
			ExpressionAttributeValues: values,
			ReturnConsumedCapacity:    t.counting(),
		})
		if err != nil {
			return nil, err
		}
		return out.ConsumedCapacity, nil
	})
	if err != nil {
		return fmt.Errorf("put %s %s: %w", row.Key, cond, err)
	}
	return nil
}

// Delete implements metadata.Table.
func (t *Table) Delete(ctx context.Context, key metadata.Key, cond metadata.Condition) error {
	if err := errors.Join(key.Validate(), cond.Validate()); err != nil {
		return err
	}
	expression, values := encodeCondition(cond)
	err := t.call(ctx, metadata.OpDelete, func(ctx context.Context) (*types.ConsumedCapacity, error) {
		out, err := t.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{
			TableName:                 &t.name,
			Key:                       encodeKey(key),
			ConditionExpression:       expression,
			ExpressionAttributeValues: values,
			ReturnConsumedCapacity:    t.counting(),
		})
		if err != nil {
			return nil, err
		}
		return out.ConsumedCapacity, nil
	})
	if err != nil {
		return fmt.Errorf("delete %s %s: %w", key, cond, err)
	}
	return nil
}

// Range implements metadata.Table. It returns the first page that has rows: DynamoDB may
// give empty ones before it.
func (t *Table) Range(ctx context.Context, r metadata.Range) ([]metadata.Row, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	if r.Empty() {
		return nil, ctxError(ctx)
	}
	query := t.query(r)
	for {
		var out *dynamodb.QueryOutput
		err := t.call(ctx, metadata.OpRange, func(ctx context.Context) (_ *types.ConsumedCapacity, err error) {
			out, err = t.client.Query(ctx, query)
			if err != nil {
				return nil, err
			}
			return out.ConsumedCapacity, nil
		})
		if err != nil {
			return nil, fmt.Errorf("range of %s: %w", r.Partition, err)
		}
		rows, err := decodePage(out.Items, r)
		if err != nil || len(rows) > 0 || len(out.LastEvaluatedKey) == 0 {
			return rows, err
		}
		query.ExclusiveStartKey = out.LastEvaluatedKey
	}
}

func (t *Table) query(r metadata.Range) *dynamodb.QueryInput {
	q := &dynamodb.QueryInput{
		TableName:                 &t.name,
		ConsistentRead:            aws.Bool(bool(r.Consistency)),
		ScanIndexForward:          aws.Bool(!r.Reverse),
		ExpressionAttributeValues: item{":p": text(r.Partition)},
		ReturnConsumedCapacity:    t.counting(),
	}
	condition := "p = :p"
	if r.From != "" {
		q.ExpressionAttributeValues[":from"] = text(r.From)
	}
	if r.To != "" {
		q.ExpressionAttributeValues[":to"] = text(r.To)
	}
	switch {
	case r.From != "" && r.To != "":
		// A query takes one condition on the sort key, and this one includes To:
		// decodePage drops it.
		condition += " AND s BETWEEN :from AND :to"
	case r.From != "":
		condition += " AND s >= :from"
	case r.To != "":
		condition += " AND s < :to"
	}
	q.KeyConditionExpression = &condition
	if r.Limit > 0 {
		q.Limit = aws.Int32(int32(min(r.Limit, math.MaxInt32)))
	}
	return q
}

func decodePage(items []item, r metadata.Range) ([]metadata.Row, error) {
	rows := make([]metadata.Row, 0, len(items))
	for _, it := range items {
		row, err := decodeItem(it)
		if err != nil {
			return nil, err
		}
		if r.To == "" || row.Sort < r.To {
			rows = append(rows, row)
		}
	}
	return rows, nil
}

// call makes one request, and notes whether it can have left this process.
func (t *Table) call(ctx context.Context, op metadata.Op, request func(context.Context) (*types.ConsumedCapacity, error)) error {
	if err := ctxError(ctx); err != nil {
		return err
	}
	var sent atomic.Bool
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { sent.Store(true) },
	})
	units, err := request(traced)
	if err != nil {
		return translate(err, !op.Reads(), sent.Load())
	}
	if t.consumed != nil && units != nil {
		t.consumed(op, aws.ToFloat64(units.CapacityUnits))
	}
	return nil
}

// ctxError refuses a context that has ended: nothing happened yet.
func ctxError(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", metadata.ErrUnavailable, err)
	}
	return nil
}

func (t *Table) counting() types.ReturnConsumedCapacity {
	if t.consumed == nil {
		return types.ReturnConsumedCapacityNone
	}
	return types.ReturnConsumedCapacityTotal
}
