package dynamotable

import (
	"fmt"
	"strconv"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/varvelog/varve/metadata"
)

// Names of attributes are short since they are paid for in each item.
const (
	attrPartition = "p"
	attrSort      = "s"
	attrStamp     = "t"
	attrNonce     = "n"
	attrValue     = "v"
)

type item = map[string]types.AttributeValue

func text(s string) types.AttributeValue { return &types.AttributeValueMemberS{Value: s} }

func encodeKey(k metadata.Key) item {
	return item{attrPartition: text(k.Partition), attrSort: text(k.Sort)}
}

func encodeRow(r metadata.Row) item {
	it := encodeKey(r.Key)
	it[attrStamp] = text(encodeStamp(r.Stamp))
	it[attrNonce] = &types.AttributeValueMemberN{Value: strconv.FormatUint(r.Nonce, 10)}
	if len(r.Value) > 0 {
		it[attrValue] = &types.AttributeValueMemberB{Value: r.Value}
	}
	return it
}

func decodeItem(it item) (metadata.Row, error) {
	partition, ok1 := it[attrPartition].(*types.AttributeValueMemberS)
	sort, ok2 := it[attrSort].(*types.AttributeValueMemberS)
	if !ok1 || !ok2 {
		return metadata.Row{}, fmt.Errorf("%w: an item without keys %s and %s", metadata.ErrCorrupt, attrPartition, attrSort)
	}
	r := metadata.Row{Key: metadata.Key{Partition: partition.Value, Sort: sort.Value}}
	stamp, ok1 := it[attrStamp].(*types.AttributeValueMemberS)
	nonce, ok2 := it[attrNonce].(*types.AttributeValueMemberN)
	if !ok1 || !ok2 {
		return metadata.Row{}, fmt.Errorf("%w: item %s has no stamp %s or nonce %s", metadata.ErrCorrupt, r.Key, attrStamp, attrNonce)
	}
	var err error
	if r.Stamp, err = decodeStamp(stamp.Value); err != nil {
		return metadata.Row{}, fmt.Errorf("%w: item %s: %w", metadata.ErrCorrupt, r.Key, err)
	}
	if r.Nonce, err = strconv.ParseUint(nonce.Value, 10, 64); err != nil {
		return metadata.Row{}, fmt.Errorf("%w: item %s: nonce: %w", metadata.ErrCorrupt, r.Key, err)
	}
	switch v := it[attrValue].(type) {
	case nil:
	case *types.AttributeValueMemberB:
		r.Value = v.Value
	default:
		return metadata.Row{}, fmt.Errorf("%w: item %s: value %s is not binary", metadata.ErrCorrupt, r.Key, attrValue)
	}
	return r, nil
}

// encodeStamp has a fixed width, so that DynamoDB's order of strings is that of stamps.
func encodeStamp(s metadata.Stamp) string {
	return fmt.Sprintf("%016x%016x", s.Epoch, s.Sequence)
}

func decodeStamp(s string) (metadata.Stamp, error) {
	if len(s) != 32 {
		return metadata.Stamp{}, fmt.Errorf("stamp %q has not 32 digits", s)
	}
	epoch, err := strconv.ParseUint(s[:16], 16, 64)
	if err != nil {
		return metadata.Stamp{}, fmt.Errorf("stamp: %w", err)
	}
	sequence, err := strconv.ParseUint(s[16:], 16, 64)
	if err != nil {
		return metadata.Stamp{}, fmt.Errorf("stamp: %w", err)
	}
	return metadata.Stamp{Epoch: epoch, Sequence: sequence}, nil
}

func encodeCondition(c metadata.Condition) (expression *string, values item) {
	stamp := item{":t": text(encodeStamp(c.Stamp))}
	switch c.Kind {
	case metadata.Absent:
		return aws.String("attribute_not_exists(p)"), nil
	case metadata.Equal:
		return aws.String("t = :t"), stamp
	case metadata.Below:
		return aws.String("attribute_not_exists(p) OR t < :t"), stamp
	}
	return nil, nil
}
