package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
)

// hastyUpkeep are paces at which whoever looks after the log does so at once.
var hastyUpkeep = []string{"--merge-age", "1s", "--gc-interval", "1s", "--gc-grace", "1s", "--lease-time", "2s"}

// shelf is a bucket and a table that gateways share, each with a way to the bucket of its own.
type shelf struct {
	t             *testing.T
	bucket, table string
	stack         *stack
}

func newShelf(t *testing.T) *shelf {
	stack := shared.start(t)
	return &shelf{t: t, stack: stack, bucket: stack.newBucket(t), table: stack.newTable(t)}
}

// place is one for a gateway behind a proxy; kind is s3 or minio.
func (s *shelf) place(kind string, args ...string) (place, *proxy) {
	s.t.Helper()
	p := newProxy(s.t, s.stack.minio.URL())
	segments := "minio://" + strings.TrimPrefix(p.url, "http://") + "/" + s.bucket + "/logs?tls=false"
	if kind == "s3" {
		segments = "s3://" + s.bucket + "/logs?region=" + region + "&endpoint=" + url.QueryEscape(p.url)
	}
	return place{data: s.t.TempDir(), env: s.stack.env(), args: append([]string{"--segments", segments,
		"--metadata", tableURL(s.stack.dynalite.URL(), s.table), "--flush-interval", "25ms"}, args...)}, p
}

// damage flips a bit in a span.
func (s *shelf) damage(r client.SegmentRange) {
	s.t.Helper()
	key := keyPrefix + r.Object
	got, err := bareClient().GetObject(s.t.Context(), &s3.GetObjectInput{Bucket: &s.bucket, Key: &key})
	if err != nil {
		s.t.Fatal(err)
	}
	defer got.Body.Close()
	b, err := io.ReadAll(got.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	b[r.Position+r.Length-2] ^= 4
	if _, err := bareClient().PutObject(s.t.Context(), &s3.PutObjectInput{Bucket: &s.bucket, Key: &key, Body: bytes.NewReader(b)}); err != nil {
		s.t.Fatal(err)
	}
}

// remove deletes an object behind everybody's back.
func (s *shelf) remove(object string) {
	s.t.Helper()
	key := keyPrefix + object
	if _, err := bareClient().DeleteObject(s.t.Context(), &s3.DeleteObjectInput{Bucket: &s.bucket, Key: &key}); err != nil {
		s.t.Fatal(err)
	}
}

// page gets a page of a gateway.
func page(t *testing.T, p *process, path string) (status int, text string) {
	t.Helper()
	response, err := http.Get(p.url() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(b)
}

// metric is the sum of a metric over its labels.
func metric(t *testing.T, p *process, name string) (sum float64) {
	t.Helper()
	_, text := page(t, p, "/metrics")
	for _, m := range regexp.MustCompile(`(?m)^`+name+`(?:\{[^}]*\})? (\S+)$`).FindAllStringSubmatch(text, -1) {
		v, err := strconv.ParseFloat(m[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// wantLog reads the topic from its start and compares.
func wantLog(t *testing.T, p *process, name string, want ...string) {
	t.Helper()
	out, said, status := run(t, nil, "cat", name, "--server", p.url())
	if got := strings.Fields(out); status != 0 || !slices.Equal(got, want) {
		t.Errorf("cat %s: exit status %d, %q, want %q; it said\n%s", name, status, got, want, said)
	}
}

// nothingLeaks waits until the bucket holds what is named and nothing else.
func (s *shelf) nothingLeaks(c *client.Client) {
	s.t.Helper()
	f := &fleet{bucket: s.bucket}
	waitFor(s.t, "an end of what nothing names", func() bool { return len(f.holds(s.t, c).leaked) == 0 })
}

// sound runs varve verify.
func sound(t *testing.T, p *process) {
	t.Helper()
	if out, said, status := run(t, nil, "verify", "--deep", "--server", p.url()); status != 0 {
		t.Errorf("varve verify: exit status %d\n%s%s", status, out, said)
	}
}

// TestBucketFull: a bucket that takes nothing any more, or nothing now, has appends refused, clearly, and nothing else: what is there is read,
// trimmed and, in a full one, collected, which makes room. What was acked as buffered is committed once there is some.
func TestBucketFull(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind string
		no   bucketRefusal
		why  string
		full bool
	}{
		{"minio", bucketRefusal{http.StatusInsufficientStorage, "XMinioStorageFull"}, "it is full", true},
		{"s3", bucketRefusal{http.StatusForbidden, "QuotaExceeded"}, "it is full", true},
		{"s3", bucketRefusal{http.StatusServiceUnavailable, "SlowDown"}, "uploads have been failing", false},
	} {
		t.Run(c.no.code, func(t *testing.T) {
			t.Parallel()
			s := newShelf(t)
			where, bucket := s.place(c.kind, append(hastyUpkeep, "--gc-interval", "1h")...)
			p := start(t, where)
			l := newLoad(t, p.url())
			makeTopic(t, l.client, topic, 1)
			for _, v := range []string{"zero", "one", "two", "three"} {
				appendOne(t, l.client, topic, 0, v)
			}
			bucket.refuse(http.MethodPut, c.no)
			produceBuffered(t, l, "buffered")
			unready := func() bool { status, _ := page(t, p, "/readyz"); return status != http.StatusOK }
			waitFor(t, "a gateway that says that it is not ready", unready)
			if _, why := page(t, p, "/readyz"); !strings.Contains(why, c.why) {
				t.Errorf("/readyz: %s", why)
			}
			began := time.Now()
			_, err := l.produce(&varvev1.ProduceRequest{Topic: topic, Records: []*varvev1.Record{{Value: []byte("refused")}}})
			if info := infoOf(err); !info.GetRetriable() || info.GetUnknownOutcome() || !strings.Contains(err.Error(), c.why) || time.Since(began) > time.Second {
				t.Errorf("an append after %s: %v, %v", time.Since(began), err, info)
			}

			wantLog(t, p, topic, "zero", "one", "two", "three")
			if _, err := l.client.TrimTopic(t.Context(), topic, client.At(2), 0); err != nil {
				t.Error(err)
			}
			wantLog(t, p, topic, "two", "three")
			if c.full {
				s.makesRoom(l.client, 2)
				p.hears(t, "the bucket is full: garbage goes")
			}

			bucket.refuse(http.MethodPut, bucketRefusal{})
			waitFor(t, "a gateway that is ready", func() bool { return !unready() })
			appendOne(t, l.client, topic, 0, "last")
			wantLog(t, p, topic, "two", "three", "buffered", "last")
			sound(t, p)
			p.stop(t)
		})
	}
}

// makesRoom has garbage collected: so many segments go. (The gateway may be the first, whose grace is over as well.)
func (s *shelf) makesRoom(c *client.Client, segments int) {
	s.t.Helper()
	before := len(listSegments(s.t, s.bucket))
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	got, err := c.Collect(ctx, client.CollectOptions{Wait: true})
	if after := len(listSegments(s.t, s.bucket)); err != nil || after != before-segments {
		s.t.Errorf("collection: %+v, %v; %d segments, of %d", got, err, after, before)
	}
}

// TestBucketRefusesDeletes: the collector says so and tries again later, nothing else suffers, and the garbage goes once it may.
func TestBucketRefusesDeletes(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	where, bucket := s.place("s3", hastyUpkeep...)
	p := start(t, where)
	l := newLoad(t, p.url())
	makeTopic(t, l.client, topic, 1)
	bucket.refuse(http.MethodDelete, bucketRefusal{http.StatusForbidden, "AccessDenied"})
	const records = 8
	var want []string
	for n := range records {
		want = append(want, fmt.Sprint("v", n))
		appendOne(t, l.client, topic, 0, want[n])
	}
	compactNow(t, p)
	p.hears(t, "the bucket does not delete garbage", "AccessDenied")
	if n := metric(t, p, "varve_collect_refused_total"); n < records {
		t.Errorf("varve_collect_refused_total is %v", n)
	}
	if held := len(listSegments(t, s.bucket)); held != records+1 {
		t.Errorf("%d segments", held)
	}
	out, said, status := run(t, nil, "gc", "--server", p.url())
	if status != 1 || !strings.Contains(out, "refused") || !strings.Contains(said, "AccessDenied") {
		t.Errorf("varve gc: exit status %d, %s%s", status, out, said)
	}
	if status, why := page(t, p, "/readyz"); status != http.StatusOK {
		t.Errorf("/readyz: %d %s", status, why)
	}
	appendOne(t, l.client, topic, 0, "after")
	wantLog(t, p, topic, append(want, "after")...)
	bucket.refuse(http.MethodDelete, bucketRefusal{})
	s.nothingLeaks(l.client)
	wantLog(t, p, topic, append(want, "after")...)
	sound(t, p)
	p.stop(t)
}

// compactNow has all of a topic that can be merged be merged.
func compactNow(t *testing.T, p *process) {
	t.Helper()
	if out, said, status := run(t, nil, "compact", "--wait", "--server", p.url()); status != 0 {
		t.Errorf("varve compact: exit status %d\n%s%s", status, out, said)
	}
}

// ofSegments are requests for segments of a kind: what gateways upload, or what compactors do.
func ofSegments(method string, merged bool) func(*http.Request) bool {
	return func(r *http.Request) bool {
		return r.Method == method && strings.HasSuffix(r.URL.Path, ".seg") && strings.Contains(r.URL.Path, "-m/") == merged
	}
}

// TestCollectedUnderAReader: a reader has looked into the index when what it is about to read is merged, and collected at once. It goes on by
// the new index.
func TestCollectedUnderAReader(t *testing.T) {
	t.Parallel()
	s := newShelf(t)
	hasty := append(hastyUpkeep, "--gc-interval", "1h", "--gc-grace", "1ms")
	where, _ := s.place("s3", hasty...)
	writer := start(t, where)
	where, bucket := s.place("minio", append(hasty, "--role", "gateway")...)
	reader := start(t, where)
	const partitions = 4 // some of which each of the two sequences
	l := newLoad(t, writer.url())
	makeTopic(t, l.client, topic, partitions)
	var want []string
	for n := range 6 {
		want = append(want, fmt.Sprint("v", n))
		for p := range int32(partitions) {
			appendOne(t, l.client, topic, p, want[n])
		}
	}
	bucket.holdOnly(ofSegments(http.MethodGet, false))
	read := make(chan error, partitions)
	for p := range partitions {
		go func() {
			out, said, status := run(t, nil, "cat", topic, "--partition", fmt.Sprint(p), "--server", reader.url())
			var err error
			if got := strings.Fields(out); status != 0 || !slices.Equal(got, want) {
				err = fmt.Errorf("partition %d: exit status %d, %q, want %q; it said\n%s", p, status, got, want, said)
			}
			read <- err
		}()
	}
	waitFor(t, "readers that wait for the bucket", func() bool { return bucket.holds() >= partitions })
	old := listSegments(t, s.bucket)
	compactNow(t, writer)
	waitFor(t, "a collection of what was merged", func() bool {
		if _, err := l.client.Collect(t.Context(), client.CollectOptions{Wait: true}); err != nil {
			t.Fatal(err)
		}
		left := listSegments(t, s.bucket)
		return !slices.ContainsFunc(old, func(key string) bool { return slices.Contains(left, key) })
	})
	bucket.release()
	for range partitions {
		if err := <-read; err != nil {
			t.Error(err)
		}
	}
	sound(t, writer)
	reader.stop(t)
	writer.stop(t)
}
