package e2e

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"

	"github.com/varvelog/varve/cmd/varve/e2e/chaosproxy"
)

// beside is another gateway on the same bucket and table.
func (p place) beside(t *testing.T) place {
	p.data = t.TempDir()
	return p
}

// hears waits until a process says a line with all the words.
func (p *process) hears(t *testing.T, words ...string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !slices.ContainsFunc(p.said.list(), func(l logLine) bool {
		return !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(l.Text, word) })
	}) {
		if p.ended() || time.Now().After(deadline) {
			t.Fatalf("varve does not say %q; it said\n%s", words, p.said.tail(12))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestStartWaits: a bucket or a table that cannot be reached yet is waited for, and that is said. (TestRefusalsOfServers
// has the end of the wait, and what is not waited for.)
func TestStartWaits(t *testing.T) {
	t.Parallel()
	stack := shared.start(t)
	behind := func(backend string, protocol chaosproxy.Protocol) *chaosproxy.Proxy {
		p, err := chaosproxy.New(backend, protocol, 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		p.SetCut(true)
		return p
	}
	bucket, table := behind(stack.minio.URL(), chaosproxy.S3), behind(stack.dynalite.URL(), chaosproxy.DynamoDB)
	where := place{data: t.TempDir(), env: stack.env(), args: []string{
		"--segments", "s3://" + stack.newBucket(t) + "/logs?region=" + region + "&endpoint=" + url.QueryEscape(bucket.URL),
		"--metadata", tableURL(table.URL, stack.newTable(t)),
	}}
	p := launch(t, where, freeAddress(t))
	p.hears(t, "the start waits", "dynamodb://")
	table.SetCut(false)
	p.hears(t, "the start waits", "s3://")
	bucket.SetCut(false)
	p.ready(t).stop(t)
}

// TestOneFolderForTwo: gateways that share a table must not share a disk.
func TestOneFolderForTwo(t *testing.T) {
	t.Parallel()
	where := onMinIO(t)
	p := start(t, where)
	refuses(t, where, 1, where.data, "in use by another process", "data folder of its own")
	p.stop(t)
}

// TestOneAddressForTwo: a gateway that would have others told an address which leads to another one is refused, also
// when that one works on another table.
func TestOneAddressForTwo(t *testing.T) {
	t.Parallel()
	where := onMinIO(t)
	taken := freeAddress(t)
	p := start(t, where.with("--peer-listen", taken))
	refuses(t, where.beside(t).with("--advertise", taken), 1, taken, "leads to another one", "used by this one", "--advertise of its own")
	refuses(t, onMinIO(t).with("--advertise", taken), 1, taken, "leads to another one", "of cluster", "the same --metadata")
	if said := p.said.tail(10); strings.Contains(said, "does not reach itself") {
		t.Errorf("with an address of its own:\n%s", said)
	}
	p.stop(t)
	// What cannot be found out from here is not refused.
	p = start(t, where.with("--advertise", freeAddress(t)))
	p.hears(t, "does not reach itself", "--advertise")
	p.stop(t)
}

// TestAddressOfAnotherCluster: a gateway dies, and one that works on another table gets its address. Nobody takes it for
// the dead one, and the log says who it is.
func TestAddressOfAnotherCluster(t *testing.T) {
	t.Parallel()
	const partitions = 16
	where, address := onMinIO(t).with("--lease-time", "2s"), freeAddress(t)
	first := start(t, where.with("--peer-listen", address))
	second := start(t, where.beside(t))
	l := newLoad(t, second.url())
	makeTopic(t, l.client, topic, partitions)
	for p := range int32(partitions) {
		appendOne(t, l.client, topic, p, "before")
	}
	first.kill()
	stranger := start(t, onMinIO(t).with("--peer-listen", address))
	for p := range int32(partitions) {
		appendOne(t, l.client, topic, p, "after")
	}
	second.hears(t, "another gateway does not answer as it should", "of cluster", "the same --metadata")
	stranger.stop(t)
	second.stop(t)
}

// copyTable copies a table's rows into a new one, as a backup that is restored does.
func copyTable(t *testing.T, from string) (to string) {
	t.Helper()
	stack := shared.start(t)
	to = stack.newTable(t)
	c := dynamodb.New(dynamodb.Options{BaseEndpoint: aws.String(stack.dynalite.URL()), Region: region, Credentials: keys})
	pages := dynamodb.NewScanPaginator(c, &dynamodb.ScanInput{TableName: &from})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, item := range page.Items {
			if _, err := c.PutItem(t.Context(), &dynamodb.PutItemInput{TableName: &to, Item: item}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return to
}

// TestRestoredTable: an older copy of the table would have offsets given twice.
func TestRestoredTable(t *testing.T) {
	t.Parallel()
	stack := shared.start(t)
	name := stack.newTable(t)
	bucket := "minio://" + stack.minioHost() + "/" + stack.newBucket(t) + "/logs"
	at := func(table string) place {
		return place{data: filepath.Join(t.TempDir(), "data"), env: stack.env(),
			args: []string{"--segments", bucket + "?tls=false", "--metadata", tableURL(stack.dynalite.URL(), table)}}
	}
	where := at(name)
	start(t, where).stop(t)
	old := copyTable(t, name)
	p := start(t, where)
	l := newLoad(t, p.url())
	makeTopic(t, l.client, topic, 1)
	appendOne(t, l.client, topic, 0, "after the copy")
	p.stop(t)
	refuses(t, at(old), 1, "rolled back", "dynamodb://"+old, bucket, "generation 1", "has seen 2", "Restore the newest copy")
	// The newest one is as good as the table itself, under whichever name.
	p = start(t, at(copyTable(t, name)))
	out, said, status := run(t, nil, "cat", topic, "--server", p.url())
	if status != 0 || out != "after the copy\n" {
		t.Errorf("cat: exit status %d, %q; it said %s", status, out, said)
	}
	p.stop(t)
}
