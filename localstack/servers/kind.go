package servers

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// What both servers are started with. Dynalite takes any credentials.
const (
	AccessKey = "varve"
	SecretKey = "varve-secret"
)

// A Kind is one sort of server: how it is had, run, and known to be ready.
type Kind struct {
	// Name is what files and messages call it.
	Name string

	fetch func(ctx context.Context, notes io.Writer) (command []string, err error)
	args  func(port int, data string) []string
	env   []string
	probe func(ctx context.Context, url string) (*http.Request, error) // answered by 200 once the server is ready
}

// MinIO is the S3 server. It takes AccessKey and SecretKey.
var MinIO = Kind{
	Name:  "minio",
	fetch: fetchMinIO,
	args: func(port int, data string) []string {
		return []string{"server", "--quiet", "--address", "127.0.0.1:" + strconv.Itoa(port), data}
	},
	env: []string{
		"MINIO_ROOT_USER=" + AccessKey,
		"MINIO_ROOT_PASSWORD=" + SecretKey,
		"MINIO_BROWSER=off",
		"MINIO_UPDATE=off",
	},
	probe: listBuckets,
}

// listBuckets asks what a client would. MinIO's own /minio/health/ready says yes a
// little before the server stops to answer requests with ServerNotInitialized.
func listBuckets(ctx context.Context, url string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/", nil)
	if err != nil {
		return nil, err
	}
	const nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" // its SHA-256
	request.Header.Set("X-Amz-Content-Sha256", nothing)
	keys := aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey}
	return request, v4.NewSigner().SignHTTP(ctx, keys, request, nothing, "s3", "us-east-1", time.Now())
}

// Dynalite is the DynamoDB server. It knows conditional writes, ordered queries
// and consistent reads, but no transactions, and it does not return the old item
// when a condition fails. It does not fsync: its data outlives the process, not
// the host.
var Dynalite = Kind{
	Name:  "dynalite",
	fetch: fetchDynalite,
	args: func(port int, data string) []string {
		return []string{
			"--host", "127.0.0.1", "--port", strconv.Itoa(port), "--path", data,
			"--createTableMs", "0", "--deleteTableMs", "0",
		}
	},
	probe: func(ctx context.Context, url string) (*http.Request, error) {
		return http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	},
}

// Fetch makes sure that the server's program is in the user's cache folder.
// Getting it the first time needs the network; notes says so when it takes long.
func (k Kind) Fetch(ctx context.Context, notes io.Writer) error {
	_, err := k.fetch(ctx, notes)
	return err
}
