package dynamotable_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/dynamotable"
	"github.com/varvelog/varve/metadata/tabletest"
	"github.com/varvelog/varve/metadata/tabletest/dynalitetest"
)

func TestMain(m *testing.M) { dynalitetest.Main(m) }

func options(endpoint string) dynamotable.Options {
	return dynamotable.Options{
		Table:       dynalitetest.NewTableName(),
		Region:      dynalitetest.Region,
		Endpoint:    endpoint,
		Credentials: credentials.NewStaticCredentialsProvider(dynalitetest.AccessKey, dynalitetest.SecretKey, ""),
	}
}

func newClient(t testing.TB, o dynamotable.Options) *dynamodb.Client {
	t.Helper()
	client, err := dynamotable.NewClient(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// create makes the table that the options name, and opens it.
func create(t testing.TB, o dynamotable.Options) *dynamotable.Table {
	t.Helper()
	if err := dynamotable.CreateTable(t.Context(), newClient(t, o), o.Table); err != nil {
		t.Fatal(err)
	}
	table, err := dynamotable.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func testRow(sort string) metadata.Row {
	return metadata.Row{
		Key:   metadata.Key{Partition: "p", Sort: sort},
		Stamp: metadata.Stamp{Epoch: 1, Sequence: 1},
		Nonce: metadata.NewNonce(),
		Value: []byte("value"),
	}
}

func TestTable(t *testing.T) {
	tabletest.Run(t, func(t *testing.T) metadata.Table {
		return create(t, options(dynalitetest.Start(t)))
	})
}

func BenchmarkTable(b *testing.B) {
	tabletest.Benchmark(b, func(b *testing.B) metadata.Table {
		return create(b, options(dynalitetest.Start(b)))
	})
}

func TestCreateTable(t *testing.T) {
	o := options(dynalitetest.Start(t))
	client := newClient(t, o)
	table, err := dynamotable.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	r := testRow("s")
	if err := table.Put(t.Context(), r, metadata.IfAbsent()); !errors.Is(err, metadata.ErrNoTable) {
		t.Fatalf("Put before the table is there: %v", err)
	}
	for range 2 {
		if err := dynamotable.CreateTable(t.Context(), client, o.Table); err != nil {
			t.Fatal(err)
		}
	}
	if err := table.Put(t.Context(), r, metadata.IfAbsent()); err != nil {
		t.Fatal(err)
	}

	other := dynalitetest.NewTableName()
	_, err = client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName:            &other,
		BillingMode:          types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("id"), AttributeType: types.ScalarAttributeTypeN}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("id"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := dynamotable.CreateTable(t.Context(), client, other); err == nil || !strings.Contains(err.Error(), `"id N"`) {
		t.Fatalf("CreateTable over another program's table: %v", err)
	}
}

func TestConsumed(t *testing.T) {
	o := options(dynalitetest.Start(t))
	got := make(map[metadata.Op]float64)
	o.Consumed = func(op metadata.Op, units float64) { got[op] += units }
	table := create(t, o)
	r := testRow("s")
	r.Value = make([]byte, 1900)
	if err := table.Put(t.Context(), r, metadata.IfAbsent()); err != nil {
		t.Fatal(err)
	}
	for _, c := range []metadata.Consistency{metadata.Strong, metadata.Eventual} {
		if _, err := table.Get(t.Context(), r.Key, c); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := table.Range(t.Context(), metadata.Range{Partition: "p", Consistency: metadata.Strong}); err != nil {
		t.Fatal(err)
	}
	if err := table.Delete(t.Context(), r.Key, metadata.Condition{}); err != nil {
		t.Fatal(err)
	}
	// A write unit is 1 KB, a strong read unit 4 KB, an eventual one half of it.
	want := map[metadata.Op]float64{metadata.OpPut: 2, metadata.OpGet: 1.5, metadata.OpRange: 1, metadata.OpDelete: 2}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatalf("units (-want +got):\n%s", diff)
	}
}
