package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamotypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/varvelog/varve/localstack/servers"
)

// What up makes, and compose.yaml too.
const (
	bucket = "varve"
	table  = "varve"
	region = "us-east-1"
)

var keys = credentials.NewStaticCredentialsProvider(servers.AccessKey, servers.SecretKey, "")

func s3Client(endpoint string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(endpoint),
		Region:       region,
		Credentials:  keys,
		UsePathStyle: true,
	})
}

func dynamoClient(endpoint string) *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{
		BaseEndpoint: aws.String(endpoint),
		Region:       region,
		Credentials:  keys,
	})
}

// makeBucket makes the bucket unless it is there.
func makeBucket(ctx context.Context, endpoint string) error {
	_, err := s3Client(endpoint).CreateBucket(ctx, &s3.CreateBucketInput{Bucket: aws.String(bucket)})
	if owned := (*s3types.BucketAlreadyOwnedByYou)(nil); errors.As(err, &owned) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("making bucket %q: %w", bucket, err)
	}
	return nil
}

// makeTable makes the table unless it is there, and waits until it can be used.
func makeTable(ctx context.Context, endpoint string) error {
	client := dynamoClient(endpoint)
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: aws.String(table),
		AttributeDefinitions: []dynamotypes.AttributeDefinition{
			{AttributeName: aws.String("p"), AttributeType: dynamotypes.ScalarAttributeTypeS},
			{AttributeName: aws.String("s"), AttributeType: dynamotypes.ScalarAttributeTypeS},
		},
		KeySchema: []dynamotypes.KeySchemaElement{
			{AttributeName: aws.String("p"), KeyType: dynamotypes.KeyTypeHash},
			{AttributeName: aws.String("s"), KeyType: dynamotypes.KeyTypeRange},
		},
		BillingMode: dynamotypes.BillingModePayPerRequest,
	})
	if inUse := (*dynamotypes.ResourceInUseException)(nil); err != nil && !errors.As(err, &inUse) {
		return fmt.Errorf("making table %q: %w", table, err)
	}
	waiter := dynamodb.NewTableExistsWaiter(client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 50*time.Millisecond, time.Second
	})
	if err := waiter.Wait(ctx, &dynamodb.DescribeTableInput{TableName: aws.String(table)}, time.Minute); err != nil {
		return fmt.Errorf("waiting for table %q: %w", table, err)
	}
	return nil
}
