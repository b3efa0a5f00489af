package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

// floorObject is the size of the objects that a bare S3 client puts: that of a segment.
const floorObject = 8 * mib

// objectClient is the least that a client of a bucket does: payload unsigned, no checksum.
type objectClient interface {
	put(ctx context.Context, key string, data []byte) error
	// get fills into with the whole object.
	get(ctx context.Context, key string, into []byte) error
	remove(ctx context.Context, key string) error
}

// objectsResult is what `varve bench floor-objects` prints.
type objectsResult struct {
	Op      string  `json:"op"`
	SDK     string  `json:"sdk"`
	Callers int     `json:"callers"`
	Objects int64   `json:"objects"`
	Seconds float64 `json:"seconds"`
	MiB     float64 `json:"mib_per_second"`
	CPU     float64 `json:"cpu_seconds_per_gib"`
}

// newFloorObjectsCommand is hidden: `varve bench floor` runs it as a process of its own.
func newFloorObjectsCommand() *cobra.Command {
	var sdk, op, place string
	var callers int
	var duration time.Duration
	cmd := &cobra.Command{
		Use: "floor-objects", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := parseLocation("--segments", place, segmentsKeys)
			if err != nil {
				return err
			}
			open := openBareAWS
			if sdk == sdkMinIO {
				open = openBareMinIO
			}
			c, prefix, err := open(cmd.Context(), l)
			if err != nil {
				return err
			}
			run := putObjects
			if op == opGet {
				run = getObjects
			}
			r, err := run(cmd.Context(), c, prefix, callers, duration)
			if err != nil {
				return err
			}
			r.SDK, r.Op = sdk, op
			return json.NewEncoder(cmd.OutOrStdout()).Encode(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&sdk, "sdk", sdkAWS, "aws or minio")
	f.StringVar(&op, "op", opPut, "put or get")
	f.StringVar(&place, "segments", "", "the bucket")
	f.IntVar(&callers, "callers", 4, "calls at once")
	f.DurationVar(&duration, "duration", 3*time.Second, "how long")
	return cmd
}

const (
	sdkAWS   = "aws"
	sdkMinIO = "minio"

	opPut = "put"
	opGet = "get"
	// floorObjectsRead is how many objects a bare client gets, over and over.
	floorObjectsRead = 16
)

// getObjects puts a few objects, gets them for a while, each caller into memory of its own, and deletes them.
func getObjects(ctx context.Context, c objectClient, prefix string, callers int, duration time.Duration) (r objectsResult, err error) {
	run := fmt.Sprintf("%sfloor-%016x/", prefix, rand.Uint64())
	key := func(n int64) string { return run + strconv.FormatInt(n%floorObjectsRead, 10) }
	defer func() { err = errors.Join(err, removeObjects(ctx, c, floorObjectsRead, key)) }()
	for n := range int64(floorObjectsRead) {
		if err := c.put(ctx, key(n), randomObject()); err != nil {
			return r, err
		}
	}
	return timed(ctx, callers, duration, func() func(n int64) error {
		into := make([]byte, floorObject)
		return func(n int64) error { return c.get(ctx, key(n), into) }
	})
}

// timed has callers make calls of an object each, for a while.
func timed(ctx context.Context, callers int, duration time.Duration, caller func() func(n int64) error) (objectsResult, error) {
	var next atomic.Int64
	began, cpu := time.Now(), processCPU()
	var group errgroup.Group
	for range callers {
		group.Go(func() error {
			call := caller()
			for time.Since(began) < duration && ctx.Err() == nil {
				if err := call(next.Add(1)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	elapsed, used := time.Since(began), processCPU()-cpu
	bytes := float64(next.Load() * floorObject)
	return objectsResult{Callers: callers, Objects: next.Load(), Seconds: elapsed.Seconds(),
		MiB: bytes / mib / elapsed.Seconds(), CPU: used.Seconds() / (bytes / gib)}, err
}

func randomObject() []byte {
	data := make([]byte, floorObject)
	random := rand.NewChaCha8([32]byte{1})
	// It never fails.
	_, _ = random.Read(data)
	return data
}

// removeObjects deletes objects 0 to count, also when the run was interrupted.
func removeObjects(ctx context.Context, c objectClient, count int64, key func(int64) string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	var sweep errgroup.Group
	sweep.SetLimit(8)
	for n := range count {
		sweep.Go(func() error { return c.remove(ctx, key(n)) })
	}
	return sweep.Wait()
}

// putObjects puts objects for a while and then deletes them.
func putObjects(ctx context.Context, c objectClient, prefix string, callers int, duration time.Duration) (objectsResult, error) {
	data := randomObject()
	run := fmt.Sprintf("%sfloor-%016x/", prefix, rand.Uint64())
	key := func(n int64) string { return run + strconv.FormatInt(n, 10) }
	if err := c.put(ctx, key(0), data); err != nil { // connections and credentials
		return objectsResult{}, err
	}
	r, err := timed(ctx, callers, duration, func() func(n int64) error {
		return func(n int64) error { return c.put(ctx, key(n), data) }
	})
	return r, errors.Join(err, removeObjects(ctx, c, r.Objects+1, key))
}

// bareAWS is Amazon's client.
type bareAWS struct {
	client *s3.Client
	bucket string
}

func openBareAWS(ctx context.Context, l location) (objectClient, string, error) {
	endpoint, bucket, prefix, err := bareBucket(l)
	if err != nil {
		return nil, "", err
	}
	loaded, err := awsconfig.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, "", err
	}
	region := l.query["region"]
	if region == "" {
		region = "us-east-1"
	}
	options := s3.Options{Region: region, Credentials: loaded.Credentials, UsePathStyle: endpoint != ""}
	if endpoint != "" {
		options.BaseEndpoint = &endpoint
	}
	options.APIOptions = append(options.APIOptions, func(stack *middleware.Stack) error {
		if _, found := stack.Finalize.Get((&v4.ComputePayloadSHA256{}).ID()); !found {
			return nil
		}
		return v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware(stack)
	})
	return &bareAWS{s3.New(options), bucket}, prefix, nil
}

func (c *bareAWS) put(ctx context.Context, key string, data []byte) error {
	_, err := c.client.PutObject(ctx, &s3.PutObjectInput{Bucket: &c.bucket, Key: &key, Body: bytes.NewReader(data)})
	return err
}

func (c *bareAWS) get(ctx context.Context, key string, into []byte) error {
	answer, err := c.client.GetObject(ctx, &s3.GetObjectInput{Bucket: &c.bucket, Key: &key})
	if err != nil {
		return err
	}
	_, err = io.ReadFull(answer.Body, into)
	return errors.Join(err, answer.Body.Close())
}

func (c *bareAWS) remove(ctx context.Context, key string) error {
	_, err := c.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &c.bucket, Key: &key})
	return err
}

// bareMinIO is MinIO's client.
type bareMinIO struct {
	core   minio.Core
	bucket string
}

func openBareMinIO(_ context.Context, l location) (objectClient, string, error) {
	endpoint, bucket, prefix, err := bareBucket(l)
	if err != nil {
		return nil, "", err
	}
	host, secure := strings.TrimPrefix(endpoint, "http://"), false
	if rest, https := strings.CutPrefix(endpoint, "https://"); https {
		host, secure = rest, true
	}
	if host == "" {
		host, secure = "s3.amazonaws.com", true
	}
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, "", err
	}
	transport.MaxIdleConnsPerHost = http.DefaultMaxIdleConnsPerHost * 16
	client, err := minio.New(host, &minio.Options{Secure: secure, Transport: transport, Region: l.query["region"],
		Creds: credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvMinio{}, &credentials.EnvAWS{}, &credentials.FileAWSCredentials{}})})
	if err != nil {
		return nil, "", err
	}
	return &bareMinIO{minio.Core{Client: client}, bucket}, prefix, nil
}

func (c *bareMinIO) put(ctx context.Context, key string, data []byte) error {
	_, err := c.core.PutObject(ctx, c.bucket, key, bytes.NewReader(data), int64(len(data)), "", "",
		minio.PutObjectOptions{DisableMultipart: true, DisableContentSha256: true})
	return err
}

func (c *bareMinIO) get(ctx context.Context, key string, into []byte) error {
	body, _, _, err := c.core.GetObject(ctx, c.bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	_, err = io.ReadFull(body, into)
	return errors.Join(err, body.Close())
}

func (c *bareMinIO) remove(ctx context.Context, key string) error {
	return c.core.RemoveObject(ctx, c.bucket, key, minio.RemoveObjectOptions{})
}

// bareBucket is what a location means to any client of S3; the endpoint is empty for Amazon's.
func bareBucket(l location) (endpoint, bucket, prefix string, err error) {
	switch l.scheme {
	case schemeS3:
		endpoint, bucket, prefix = l.query["endpoint"], l.host, l.path
	case schemeMinIO:
		bucket, prefix, _ = strings.Cut(l.path, "/")
		endpoint = "https://" + l.host
		if l.query["tls"] == "false" {
			endpoint = "http://" + l.host
		}
	default:
		return "", "", "", fmt.Errorf("--segments: the bare clients put into s3:// and minio://, not %s://", l.scheme)
	}
	if prefix != "" {
		prefix += "/"
	}
	return endpoint, bucket, prefix, nil
}
