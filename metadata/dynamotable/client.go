package dynamotable

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
)

// Options say where the table is.
type Options struct {
	// Table is its name.
	Table string
	// Region; empty takes that of the environment or the shared configuration.
	Region string
	// Endpoint is a URL in place of the region's own, for servers that speak
	// DynamoDB's protocol.
	Endpoint string
	// Credentials; nil is the default chain.
	Credentials aws.CredentialsProvider
	// Connections that are kept open between requests; 0 is 128. More are opened
	// when more requests are made at once.
	Connections int
	// Timeout of one request; 0 is 10 s. The caller's context may end it earlier.
	Timeout time.Duration
	// Consumed, if set, is told the capacity units of each answered request.
	Consumed Consumed
}

const (
	defaultConnections = 128
	defaultTimeout     = 10 * time.Second
	dialTimeout        = 3 * time.Second
)

// Validate lists everything that is wrong.
func (o Options) Validate() error {
	var errs []error
	if o.Table == "" {
		errs = append(errs, errors.New("dynamotable: no table name"))
	}
	if o.Connections < 0 {
		errs = append(errs, fmt.Errorf("dynamotable: %d connections", o.Connections))
	}
	if o.Timeout < 0 {
		errs = append(errs, fmt.Errorf("dynamotable: timeout %v", o.Timeout))
	}
	return errors.Join(errs...)
}

// NewClient returns a client that tries each request once. It connects at its first
// request.
func NewClient(ctx context.Context, o Options) (*dynamodb.Client, error) {
	if o.Connections == 0 {
		o.Connections = defaultConnections
	}
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	load := []func(*config.LoadOptions) error{
		config.WithHTTPClient(httpClient(o)),
		config.WithRetryer(func() aws.Retryer { return aws.NopRetryer{} }),
	}
	if o.Region != "" {
		load = append(load, config.WithRegion(o.Region))
	}
	if o.Credentials != nil {
		load = append(load, config.WithCredentialsProvider(o.Credentials))
	}
	cfg, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, fmt.Errorf("dynamotable: load the AWS configuration: %w", err)
	}
	if cfg.Region == "" {
		return nil, errors.New("dynamotable: no region: name one in the table's URL (?region=…) or in AWS_REGION")
	}
	return dynamodb.NewFromConfig(cfg, func(c *dynamodb.Options) {
		// Not before: the configuration puts AWS_CA_BUNDLE into a client of its own kind only.
		c.HTTPClient = checkedClient{c.HTTPClient}
		c.DisableValidateResponseChecksum = true
		if o.Endpoint != "" {
			c.BaseEndpoint = aws.String(o.Endpoint)
		}
	}), nil
}

func httpClient(o Options) *awshttp.BuildableClient {
	return awshttp.NewBuildableClient().
		WithTimeout(o.Timeout).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout }).
		WithTransportOptions(func(t *http.Transport) {
			// The SDK keeps ten: the eleventh caller would pay for a handshake each time.
			t.MaxIdleConns = o.Connections
			t.MaxIdleConnsPerHost = o.Connections
			t.DisableCompression = true
		})
}

// createTimeout bounds how long CreateTable waits for the table; it takes seconds.
const createTimeout = 5 * time.Minute

// CreateTable makes a table with the keys of this package, paid by the request, and
// waits until it can be used. A table that is there already is no error
// if it has those keys.
func CreateTable(ctx context.Context, client *dynamodb.Client, name string) error {
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName:   &name,
		BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String(attrPartition), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String(attrSort), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: keySchema(),
	})
	var exists *types.ResourceInUseException
	if err != nil && !errors.As(err, &exists) {
		return fmt.Errorf("create table %s: %w", name, translate(err, true, true))
	}
	waiter := dynamodb.NewTableExistsWaiter(client, func(w *dynamodb.TableExistsWaiterOptions) {
		w.MinDelay, w.MaxDelay = 50*time.Millisecond, 2*time.Second
	})
	out, err := waiter.WaitForOutput(ctx, &dynamodb.DescribeTableInput{TableName: &name}, createTimeout)
	if err != nil {
		return fmt.Errorf("wait for table %s: %w", name, translate(err, false, true))
	}
	return checkKeys(name, out.Table)
}

func keySchema() []types.KeySchemaElement {
	return []types.KeySchemaElement{
		{AttributeName: aws.String(attrPartition), KeyType: types.KeyTypeHash},
		{AttributeName: aws.String(attrSort), KeyType: types.KeyTypeRange},
	}
}

func checkKeys(name string, table *types.TableDescription) error {
	have := make(map[types.KeyType]string)
	for _, k := range table.KeySchema {
		have[k.KeyType] = aws.ToString(k.AttributeName)
	}
	for _, a := range table.AttributeDefinitions {
		for kind, attr := range have {
			if attr == aws.ToString(a.AttributeName) {
				have[kind] += " " + string(a.AttributeType)
			}
		}
	}
	if have[types.KeyTypeHash] == attrPartition+" S" && have[types.KeyTypeRange] == attrSort+" S" {
		return nil
	}
	return fmt.Errorf("table %s belongs to another program: its hash key is %q and its range key %q, want %q and %q: use another name",
		name, have[types.KeyTypeHash], have[types.KeyTypeRange], attrPartition+" S", attrSort+" S")
}
