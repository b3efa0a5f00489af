package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/varvelog/varve/localstack/servers"
)

const (
	region = "us-east-1"
	name   = "scale-demo" // of bucket and table
)

// backends are a bucket and a table on servers of their own.
type backends struct {
	folder          string
	minio, dynalite *servers.Process
}

// prepare starts the servers and makes bucket and table. The caller stops them.
func prepare(ctx context.Context, folder string, notes io.Writer) (b *backends, err error) {
	b = &backends{folder: folder}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	start := func(kind servers.Kind) (*servers.Process, error) {
		return kind.Start(ctx, servers.Options{
			Data: filepath.Join(folder, kind.Name), Log: filepath.Join(folder, kind.Name+".log"), Notes: notes,
		})
	}
	if b.minio, err = start(servers.MinIO); err != nil {
		return b, err
	}
	if b.dynalite, err = start(servers.Dynalite); err != nil {
		return b, err
	}
	return b, errors.Join(b.makeBucket(ctx), b.makeTable(ctx))
}

var keys = credentials.NewStaticCredentialsProvider(servers.AccessKey, servers.SecretKey, "")

func (b *backends) makeBucket(ctx context.Context) error {
	client := s3.New(s3.Options{BaseEndpoint: aws.String(b.minio.URL()), Region: region, Credentials: keys, UsePathStyle: true})
	if _, err := client.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(name)}); err != nil {
		return fmt.Errorf("making the bucket: %w", err)
	}
	return nil
}

func (b *backends) makeTable(ctx context.Context) error {
	client := dynamodb.New(dynamodb.Options{BaseEndpoint: aws.String(b.dynalite.URL()), Region: region, Credentials: keys})
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: aws.String(name), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String("p"), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String("s"), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: []types.KeySchemaElement{
			{AttributeName: aws.String("p"), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String("s"), KeyType: types.KeyTypeRange},
		},
	})
	if err != nil {
		return fmt.Errorf("making the table: %w", err)
	}
	waiter := dynamodb.NewTableExistsWaiter(client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 50*time.Millisecond, time.Second
	})
	return waiter.Wait(ctx, &dynamodb.DescribeTableInput{TableName: aws.String(name)}, time.Minute)
}

// args are those of varve serve.
func (b *backends) args() []string {
	endpoint := func(p *servers.Process) string { return "?region=" + region + "&endpoint=" + url.QueryEscape(p.URL()) }
	return []string{"--segments", "s3://" + name + "/log" + endpoint(b.minio), "--metadata", "dynamodb://" + name + endpoint(b.dynalite)}
}

func (b *backends) env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey, "AWS_EC2_METADATA_DISABLED=true"}
}

func (b *backends) stop() error {
	var faults []error
	for _, p := range []*servers.Process{b.minio, b.dynalite} {
		if p != nil {
			faults = append(faults, p.Stop(context.Background()))
		}
	}
	return errors.Join(faults...)
}
