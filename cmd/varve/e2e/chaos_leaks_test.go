package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/varvelog/varve/client"
	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/segments"
)

// settleTime is how long the rest of merging and collecting may take, once nothing else happens.
const settleTime = time.Minute

// judgeLeaks has garbage collected until the bucket holds what the indexes name and nothing else, and says what it holds. Only uploads of
// gateways whose disks are lost stay: recovery may still name them, for a week.
func (f *fleet) judgeLeaks(t *testing.T, c *client.Client, found *anomalies) string {
	t.Helper()
	deleteTheRest(t, c)
	began, rounds := time.Now(), 0
	for {
		report, err := c.Collect(t.Context(), client.CollectOptions{Wait: true})
		if err != nil {
			t.Fatal(err)
		}
		rounds++
		held := f.holds(t, c)
		if len(held.leaked) == 0 {
			return fmt.Sprintf("%d segments that are named, %d of them merged ones; %d of gateways whose disks are lost; all else gone %s after the load, in %d collections",
				held.named, held.merged, held.ofLost, time.Since(began).Round(100*time.Millisecond), rounds)
		}
		if time.Since(began) > settleTime {
			for _, key := range held.leaked {
				found.note(leaked, "%s; the last collection: %+v", key, report)
			}
			return fmt.Sprintf("%d segments that are named, and %d that are not", held.named, len(held.leaked))
		}
	}
}

// deleteTheRest asks again for deletions that whoever asked first gave up: the gateway that was at it may have died.
func deleteTheRest(t *testing.T, c *client.Client) {
	t.Helper()
	for topic, err := range c.Topics(t.Context(), "passing-") {
		if err == nil {
			err = c.DeleteTopic(t.Context(), topic.Name, true)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// holding is what a bucket holds.
type holding struct {
	named, merged, ofLost int
	leaked                []string
}

// holds compares the bucket with the indexes. It is read first: what is put meanwhile counts for nothing.
func (f *fleet) holds(t *testing.T, c *client.Client) (h holding) {
	t.Helper()
	listed := listSegments(t, f.bucket)
	_, gateways, err := c.Gateways(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waited := make(map[metadata.GatewayID]bool) // their disks did not come back
	for _, g := range gateways {
		waited[metadata.GatewayID(g.ID)] = g.State == "sealed"
	}
	named := namedObjects(t, c)
	for _, key := range listed {
		_, uploader, _, err := segments.ParseObjectKey(key)
		switch {
		case err != nil:
			t.Errorf("an object that nobody writes: %v", err)
		case named[key]:
			h.named++
			if metadata.GatewayID(uploader).IsMerger() {
				h.merged++
			}
		case waited[metadata.GatewayID(uploader).Owner()]: // what it merged ends with it
			h.ofLost++
		default:
			h.leaked = append(h.leaked, key)
		}
	}
	return h
}

// keyPrefix is what gateways are told to write below.
const keyPrefix = "logs/"

// bareClient is one for the bucket itself.
func bareClient() *s3.Client {
	return s3.New(s3.Options{BaseEndpoint: aws.String(shared.minio.URL()), Region: region, Credentials: keys, UsePathStyle: true})
}

// listSegments lists the segments in a bucket, by the keys that gateways have for them.
func listSegments(t *testing.T, bucket string) (keysOf []string) {
	t.Helper()
	pages := s3.NewListObjectsV2Paginator(bareClient(), &s3.ListObjectsV2Input{Bucket: &bucket, Prefix: aws.String(keyPrefix)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, object := range page.Contents {
			if key := strings.TrimPrefix(*object.Key, keyPrefix); strings.HasSuffix(key, segments.Suffix) {
				keysOf = append(keysOf, key)
			}
		}
	}
	return keysOf
}

// namedObjects are those that the indexes of all topics name.
func namedObjects(t *testing.T, c *client.Client) map[string]bool {
	t.Helper()
	named := make(map[string]bool)
	for topic, err := range c.Topics(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		for p := range topic.Partitions {
			for r, err := range c.Segments(t.Context(), topic.Name, p, 0) {
				if err != nil {
					t.Fatal(err)
				}
				named[r.Object] = true
			}
		}
	}
	return named
}
