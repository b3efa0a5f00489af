package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/client"
)

// run runs a command line to its end.
func run(t *testing.T, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return runWithin(t, patience, env, args...)
}

// runWithin does the same with another limit.
func runWithin(t *testing.T, limit time.Duration, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(args, env)
	var out, notes bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &notes
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var err error
	select {
	case err = <-ended:
	case <-time.After(limit):
		cmd.Process.Kill()
		<-ended
		t.Fatalf("varve %s does not end; it said\n%s", strings.Join(args, " "), notes.String())
	}
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		t.Fatal(err)
	}
	return out.String(), notes.String(), cmd.ProcessState.ExitCode()
}

// refuses runs varve serve where it cannot work, and expects the status and a message with all the
// words, without a trace of the program's inside.
func refuses(t *testing.T, where place, status int, words ...string) {
	t.Helper()
	args := append([]string{"serve", "--data", where.data, "--listen", freeAddress(t)}, where.args...)
	_, said, got := run(t, where.env, args...)
	if got != status {
		t.Errorf("exit status %d, want %d; varve said:\n%s", got, status, said)
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("varve said:\n%swant something with %q", said, word)
		}
	}
	if strings.Contains(said, "goroutine ") {
		t.Errorf("a trace:\n%s", said)
	}
}

// TestRefusals: what cannot work is refused at the start, with the cause and the next step.
func TestRefusals(t *testing.T) {
	t.Run("folder in use", func(t *testing.T) {
		where := embedded(t)
		p := start(t, where)
		refuses(t, where, 1, where.data, "in use by another process", "several gateways need one table")
		l := newLoad(t, p.url())
		makeTopic(t, l.client, topic, 1)
		appendOne(t, l.client, topic, 0, "the first one goes on")
		p.stop(t)
	})
	t.Run("port in use", func(t *testing.T) {
		p := start(t, embedded(t))
		refuses(t, embedded(t).with("--listen", p.address), 1, p.address, "address already in use")
	})
	t.Run("not loopback", func(t *testing.T) {
		refuses(t, embedded(t).with("--listen", "0.0.0.0:0"), 2, "--insecure", "127.0.0.1")
	})
	t.Run("unknown flag", func(t *testing.T) {
		refuses(t, embedded(t).with("--no-such-flag"), 2, "--no-such-flag", "--help")
	})
	t.Run("malformed place", func(t *testing.T) {
		refuses(t, embedded(t).with("--segments", "ftp://host/x"), 2, "--segments", "s3://")
	})
	t.Run("table of another cluster", func(t *testing.T) {
		where := embedded(t)
		start(t, where).stop(t)
		if err := os.Remove(filepath.Join(where.data, "metadata.db")); err != nil {
			t.Fatal(err)
		}
		refuses(t, where, 1, "another cluster")
	})
	t.Run("table rolled back", func(t *testing.T) {
		where := embedded(t)
		start(t, where).stop(t)
		path := filepath.Join(where.data, "metadata.db")
		old, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		start(t, where).stop(t)
		if err := os.WriteFile(path, old, 0o600); err != nil {
			t.Fatal(err)
		}
		refuses(t, where, 1, path, "rolled back")
	})
}

// TestRefusalsOfServers: the same with buckets and tables.
func TestRefusalsOfServers(t *testing.T) {
	stack := shared.start(t)
	bucket := stack.newBucket(t)
	host := stack.minioHost()
	table := tableURL(stack.dynalite.URL(), stack.newTable(t))
	dynamo := strings.SplitAfter(table, "?")[1]
	s3URL := func(bucket string) string {
		return "s3://" + bucket + "?region=" + region + "&endpoint=" + stack.minio.URL()
	}
	minioURL := func(bucket string) string { return "minio://" + host + "/" + bucket + "?tls=false" }
	wrong := append(stack.env(), "AWS_SECRET_ACCESS_KEY=wrong-wrong", "MINIO_SECRET_KEY=wrong-wrong")
	// What waiting could mend is waited for; all else is said at once, long before the minute for that is over.
	hasty := append(stack.env(), "VARVE_START_TIMEOUT=2s")
	for _, c := range []struct {
		name, segments, metadata string
		env                      []string
		words                    []string
	}{
		{"no bucket, S3", s3URL("no-such-bucket"), table, stack.env(), []string{"no-such-bucket", "create-bucket"}},
		{"no bucket, MinIO", minioURL("no-such-bucket"), table, stack.env(), []string{"no-such-bucket", "mc mb"}},
		{"no table", s3URL(bucket), "dynamodb://no-such-table?" + dynamo, stack.env(), []string{"no-such-table", "create-table"}},
		{"wrong secret, S3", s3URL(bucket), table, wrong, []string{bucket, "AWS_SECRET_ACCESS_KEY"}},
		{"wrong secret, MinIO", minioURL(bucket), table, wrong, []string{bucket, "MINIO_SECRET_KEY"}},
		{"no S3 server", "s3://" + bucket + "?region=" + region + "&endpoint=http://" + freeAddress(t), table, hasty, []string{bucket, "tries in", "--start-timeout", "check the address"}},
		{"no DynamoDB server", s3URL(bucket), tableURL("http://"+freeAddress(t), "any"), hasty, []string{"any", "tries in", "--start-timeout", "check the address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			where := place{data: t.TempDir(), args: []string{"--segments", c.segments, "--metadata", c.metadata}, env: c.env}
			refuses(t, where, 1, c.words...)
		})
	}
}

// someRecords is a folder with a topic of one partition: a record a segment.
func someRecords(t *testing.T, values ...string) (where place, ranges []client.SegmentRange) {
	t.Helper()
	where = embedded(t)
	p := start(t, where)
	l := newLoad(t, p.url())
	makeTopic(t, l.client, topic, 1)
	for _, v := range values {
		appendOne(t, l.client, topic, 0, v)
	}
	for r, err := range l.client.Segments(t.Context(), topic, 0, 0) {
		if err != nil {
			t.Fatal(err)
		}
		ranges = append(ranges, r)
	}
	p.stop(t)
	if len(ranges) != len(values) {
		t.Fatalf("%d appends one after the other, %d segments", len(values), len(ranges))
	}
	return where, ranges
}

// TestDamagedTable damages metadata.db in ways that must be noticed at the start.
func TestDamagedTable(t *testing.T) {
	where, _ := someRecords(t, "a", "b")
	path := filepath.Join(where.data, "metadata.db")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(from, to int) []byte {
		b := bytes.Clone(good)
		for i := from; i < to; i++ {
			b[i] ^= 0xff
		}
		return b
	}
	page := os.Getpagesize()
	for _, c := range []struct {
		name    string
		content []byte
	}{
		{"both heads", flipped(0, 2*page)},
		{"all but the heads", flipped(2*page, len(good))},
		{"zeros", make([]byte, len(good))},
		{"cut", good[:3*page]},
		{"another file", bytes.Repeat([]byte("hello\n"), 10_000)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.WriteFile(path, c.content, 0o600); err != nil {
				t.Fatal(err)
			}
			refuses(t, where, 1, path, "damaged", "restore")
			if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, c.content) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
	t.Run("anywhere", func(t *testing.T) {
		r := newRandom(t)
		const tries = 8
		refused := 0
		for range tries {
			// In a folder of its own: what is served there makes the next copy look like an old one.
			scratch := place{data: filepath.Join(t.TempDir(), "data")}
			path := filepath.Join(scratch.data, "metadata.db")
			err := os.CopyFS(scratch.data, os.DirFS(where.data))
			if err == nil {
				err = os.WriteFile(path, scratched(r, good), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if !servesHonestly(t, scratch, path, []string{"a", "b"}) {
				refused++
			}
		}
		t.Logf("of %d scratched tables %d were refused at the start", tries, refused)
	})
}

// scratched flips a few bytes somewhere in what is in use.
func scratched(r *rand.Rand, good []byte) []byte {
	var used []int
	for i, c := range good {
		if c != 0 {
			used = append(used, i)
		}
	}
	b := bytes.Clone(good)
	at := used[r.IntN(len(used))]
	for i := at; i < min(at+1+r.IntN(100), len(b)); i++ {
		b[i] ^= byte(1 + r.IntN(255))
	}
	return b
}

// servesHonestly starts varve on a damaged table. It refuses, saying why and what to do, or the damage is
// where nothing is: then all is there. It never ends with a trace.
func servesHonestly(t *testing.T, where place, path string, want []string) (served bool) {
	t.Helper()
	p := launch(t, where, freeAddress(t))
	select {
	case <-p.exited:
		said := p.said.tail(20)
		clear := strings.Contains(said, path) && strings.Contains(said, "damaged") && strings.Contains(said, "restore")
		if p.cmd.ProcessState.ExitCode() != 1 || !clear || strings.Contains(said, "goroutine ") {
			t.Errorf("exit status %d, said:\n%s", p.cmd.ProcessState.ExitCode(), said)
		}
		return false
	case <-p.serves:
	}
	out, said, status := run(t, nil, "cat", topic, "--server", p.url(), "--timeout", "1s")
	if status != 0 || out != strings.Join(want, "\n")+"\n" {
		t.Errorf("cat printed %q with status %d, want %q; it said\n%s", out, status, want, said)
	}
	p.signal(os.Interrupt)
	p.wait(t, patience)
	if said := p.said.tail(40); strings.Contains(said, "goroutine ") {
		t.Errorf("a trace:\n%s", said)
	}
	return true
}

// TestDamagedSegment: an object that is damaged, short or gone is named with its place, and nothing
// is skipped.
func TestDamagedSegment(t *testing.T) {
	values := []string{"zero", "one", "two", "three"}
	const damaged = 2
	for _, c := range []struct {
		name   string
		damage func(path string, r client.SegmentRange) error
	}{
		{"a flipped bit", func(path string, r client.SegmentRange) error {
			return rewrite(path, func(b []byte) []byte { b[r.Position+r.Length-2] ^= 4; return b })
		}},
		{"cut", func(path string, r client.SegmentRange) error {
			return rewrite(path, func(b []byte) []byte { return b[:r.Position+r.Length-1] })
		}},
		{"gone", func(path string, _ client.SegmentRange) error { return os.Remove(path) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			where, ranges := someRecords(t, values...)
			object := ranges[damaged].Object
			if err := c.damage(filepath.Join(where.data, "segments", filepath.FromSlash(object)), ranges[damaged]); err != nil {
				t.Fatal(err)
			}
			p := start(t, where)
			out, said, status := run(t, nil, "cat", topic, "--server", p.url())
			if status != 1 || !strings.Contains(said, object) {
				t.Errorf("cat: exit status %d, said %q; want 1 and the object's name", status, said)
			}
			if whole := strings.Join(values[:damaged], "\n") + "\n"; out != whole {
				t.Errorf("cat printed %q, want %q and nothing after it", out, whole)
			}

			l := newLoad(t, p.url())
			_, err := l.raw.Fetch(t.Context(), &varvev1.FetchRequest{Topic: topic, Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: damaged}}})
			place := fmt.Sprint(ranges[damaged].Position)
			if connect.CodeOf(err) != connect.CodeDataLoss || !strings.Contains(err.Error(), object) || c.name != "gone" && !strings.Contains(err.Error(), place) {
				t.Errorf("Fetch: %v; want DataLoss at %s of %s", err, place, object)
			}
			if info := infoOf(err); info.GetRetriable() || info.GetTopic() != topic || info.GetPartition() != 0 {
				t.Errorf("Fetch: details %v; want the partition, and nothing to retry", info)
			}
			// The damage is no reason to refuse anything else.
			appendOne(t, l.client, topic, 0, "four")
			out, _, status = run(t, nil, "cat", topic, "--from", fmt.Sprint(damaged+1), "--server", p.url())
			if status != 0 || out != "three\nfour\n" {
				t.Errorf("cat behind the damage: exit status %d, %q", status, out)
			}
			p.stop(t)
		})
	}
}

func rewrite(path string, change func([]byte) []byte) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return err
	}
	return os.WriteFile(path, change(b), 0o600)
}
