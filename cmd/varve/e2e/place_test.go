package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/varvelog/varve/localstack/servers"
)

// place is where a gateway keeps everything: it can be restarted there.
type place struct {
	data string   // folder
	args []string // of varve serve, besides --data and --listen
	env  []string
	// alone: no other gateway can use the table.
	alone bool
	// log is a file for what processes say, if not empty.
	log string
}

// with returns the place with more arguments.
func (p place) with(args ...string) place {
	p.args = append(p.args[:len(p.args):len(p.args)], args...)
	return p
}

// embedded is a folder and nothing else.
func embedded(t *testing.T) place { return place{data: t.TempDir(), alone: true} }

// onMinIO and onS3 are a bucket and a table of their own on the servers, with the two object
// store clients there are.
func onMinIO(t *testing.T) place {
	stack := shared.start(t)
	return onServers(t, stack, "minio://"+stack.minioHost()+"/"+stack.newBucket(t)+"/logs?tls=false")
}

func onS3(t *testing.T) place {
	stack := shared.start(t)
	return onServers(t, stack, "s3://"+stack.newBucket(t)+"/logs?region="+region+"&endpoint="+url.QueryEscape(stack.minio.URL()))
}

func onServers(t *testing.T, stack *stack, segments string) place {
	return place{
		data: t.TempDir(),
		// Spaced more closely than the default, so that more happens between two kills.
		args: []string{"--segments", segments, "--metadata", tableURL(stack.dynalite.URL(), stack.newTable(t)), "--flush-interval", "25ms"},
		env:  stack.env(),
	}
}

// backends are the two pairs that every promise must hold on.
var backends = []struct {
	name string
	open func(*testing.T) place
}{
	{"bolt and files", embedded},
	{"DynamoDB and MinIO", onMinIO},
}

const region = "us-east-1"

// stack is MinIO and a DynamoDB server, started for the first test that wants them.
type stack struct {
	folder          string // where their data goes
	once            sync.Once
	err             error
	minio, dynalite *servers.Process
	names           atomic.Int64
}

// shared serves all tests of a run.
var shared stack

func (s *stack) start(t *testing.T) *stack {
	t.Helper()
	s.once.Do(func() {
		s.minio, s.err = s.run(servers.MinIO)
		if s.err == nil {
			s.dynalite, s.err = s.run(servers.Dynalite)
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s
}

func (s *stack) run(kind servers.Kind) (*servers.Process, error) {
	return kind.Start(context.Background(), servers.Options{
		Data: filepath.Join(s.folder, kind.Name), Log: filepath.Join(s.folder, kind.Name+".log"), Notes: os.Stderr,
	})
}

func (s *stack) stop(ctx context.Context) error {
	var faults []error
	for _, p := range []*servers.Process{s.minio, s.dynalite} {
		if p == nil {
			continue
		}
		if running, err := p.Running(); err != nil || !running {
			faults = append(faults, fmt.Errorf("a server that tests need ended by itself: %q", p.Command), err)
		}
		faults = append(faults, p.Stop(ctx))
	}
	return errors.Join(faults...)
}

func (s *stack) minioHost() string { return strings.TrimPrefix(s.minio.URL(), "http://") }

// env is what both SDKs take credentials from.
func (s *stack) env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + servers.AccessKey, "AWS_SECRET_ACCESS_KEY=" + servers.SecretKey,
		"MINIO_ACCESS_KEY=" + servers.AccessKey, "MINIO_SECRET_KEY=" + servers.SecretKey,
		"AWS_EC2_METADATA_DISABLED=true",
	}
}

func tableURL(endpoint, name string) string {
	return "dynamodb://" + name + "?region=" + region + "&endpoint=" + url.QueryEscape(endpoint)
}

var keys = credentials.NewStaticCredentialsProvider(servers.AccessKey, servers.SecretKey, "")

func (s *stack) newBucket(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("bucket-%d", s.names.Add(1))
	client := s3.New(s3.Options{BaseEndpoint: aws.String(s.minio.URL()), Region: region, Credentials: keys, UsePathStyle: true})
	if _, err := client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatal(err)
	}
	return name
}

func (s *stack) newTable(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("table-%d", s.names.Add(1))
	client := dynamodb.New(dynamodb.Options{BaseEndpoint: aws.String(s.dynalite.URL()), Region: region, Credentials: keys})
	_, err := client.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: &name,
		AttributeDefinitions: []types.AttributeDefinition{
			{AttributeName: aws.String("p"), AttributeType: types.ScalarAttributeTypeS},
			{AttributeName: aws.String("s"), AttributeType: types.ScalarAttributeTypeS},
		},
		KeySchema: []types.KeySchemaElement{
			{AttributeName: aws.String("p"), KeyType: types.KeyTypeHash},
			{AttributeName: aws.String("s"), KeyType: types.KeyTypeRange},
		},
		BillingMode: types.BillingModePayPerRequest,
	})
	if err != nil {
		t.Fatal(err)
	}
	waiter := dynamodb.NewTableExistsWaiter(client, func(o *dynamodb.TableExistsWaiterOptions) {
		o.MinDelay, o.MaxDelay = 50*time.Millisecond, time.Second
	})
	if err := waiter.Wait(t.Context(), &dynamodb.DescribeTableInput{TableName: &name}, time.Minute); err != nil {
		t.Fatal(err)
	}
	return name
}
