package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamotypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/varvelog/varve/localstack/servers"
)

// rig is a stack in a folder of its own, on ports of its own.
type rig struct {
	t          *testing.T
	state      string
	s3, dynamo int
}

func newRig(t *testing.T) rig {
	r := rig{t: t, state: filepath.Join(t.TempDir(), "state")}
	r.s3, r.dynamo = freePort(t), freePort(t)
	t.Cleanup(func() {
		if _, err := r.run(context.Background(), "down"); err != nil {
			t.Error(err)
		}
	})
	return r
}

func freePort(t *testing.T) int {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().(*net.TCPAddr).Port
}

func (r rig) run(ctx context.Context, verb string) (string, error) {
	var out bytes.Buffer
	err := run(ctx, []string{
		verb, "--state", r.state,
		"--s3-port", strconv.Itoa(r.s3), "--dynamodb-port", strconv.Itoa(r.dynamo),
	}, &out, &out)
	return out.String(), err
}

func (r rig) must(verb string, says ...string) string {
	r.t.Helper()
	out, err := r.run(r.t.Context(), verb)
	if err != nil {
		r.t.Fatalf("%s: %v\n%s", verb, err, out)
	}
	for _, want := range says {
		if !strings.Contains(out, want) {
			r.t.Errorf("%s does not say %q:\n%s", verb, want, out)
		}
	}
	return out
}

func (r rig) process(kind servers.Kind) *servers.Process {
	r.t.Helper()
	p, err := (&stack{folder: r.state}).running(kind)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r rig) buckets() *s3.Client {
	return s3Client("http://127.0.0.1:" + strconv.Itoa(r.s3))
}

func (r rig) tables() *dynamodb.Client {
	return dynamoClient("http://127.0.0.1:" + strconv.Itoa(r.dynamo))
}

// item is a row of the table, as Varve keys them.
func item() map[string]dynamotypes.AttributeValue {
	return map[string]dynamotypes.AttributeValue{
		"p": &dynamotypes.AttributeValueMemberS{Value: "cluster"},
		"s": &dynamotypes.AttributeValueMemberS{Value: "id"},
	}
}

func TestUpAndDown(t *testing.T) {
	r := newRig(t)
	r.must("status", "minio     stopped", "dynalite  stopped")
	r.must("up",
		"minio     started", "dynalite  started",
		"export AWS_ACCESS_KEY_ID=varve AWS_SECRET_ACCESS_KEY=varve-secret\n",
		"'s3://varve/dev?endpoint=http://127.0.0.1:"+strconv.Itoa(r.s3)+"&region=us-east-1'",
		"'dynamodb://varve?endpoint=http://127.0.0.1:"+strconv.Itoa(r.dynamo)+"&region=us-east-1'")
	r.must("status", "minio     running", "dynalite  running")
	minio, dynalite := r.process(servers.MinIO), r.process(servers.Dynalite)

	// Data in both, to be found again later.
	_, err := r.buckets().PutObject(t.Context(), &s3.PutObjectInput{
		Bucket: aws.String(bucket), Key: aws.String("k"), Body: strings.NewReader("v")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.tables().PutItem(t.Context(), &dynamodb.PutItemInput{TableName: aws.String(table), Item: item()})
	if err != nil {
		t.Fatal(err)
	}

	r.must("up", "minio     runs already", "dynalite  runs already")
	if r.process(servers.MinIO).PID != minio.PID || r.process(servers.Dynalite).PID != dynalite.PID {
		t.Error("the second up started something")
	}

	// One that was killed is started again, the other is left alone.
	if err := syscall.Kill(dynalite.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := dynalite.Stop(t.Context()); err != nil { // returns when it is gone
		t.Fatal(err)
	}
	r.must("status", "minio     running", "dynalite  stopped")
	r.must("up", "minio     runs already", "dynalite  started")

	r.must("down", "minio     stopped", "dynalite  stopped")
	if running, err := minio.Running(); running || err != nil {
		t.Errorf("MinIO runs = %v, %v after down", running, err)
	}
	r.must("down", "minio     does not run", "dynalite  does not run")

	r.must("up")
	if _, err := r.buckets().HeadObject(t.Context(), &s3.HeadObjectInput{Bucket: aws.String(bucket), Key: aws.String("k")}); err != nil {
		t.Errorf("the object is lost: %v", err)
	}
	got, err := r.tables().GetItem(t.Context(), &dynamodb.GetItemInput{TableName: aws.String(table), Key: item()})
	if err != nil || len(got.Item) == 0 {
		t.Errorf("the row is lost: %v, %v", got, err)
	}
}

func TestUpUndoesWhatItStarted(t *testing.T) {
	r := newRig(t)
	listener, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(r.dynamo))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	out, err := r.run(t.Context(), "up")
	if !errors.Is(err, servers.ErrPortTaken) || !strings.Contains(err.Error(), "--dynamodb-port") {
		t.Errorf("up with a taken port: %v\n%s", err, out)
	}
	r.must("status", "minio     stopped", "dynalite  stopped")
}

func TestUpOnAnotherPort(t *testing.T) {
	r := newRig(t)
	r.must("up")
	before := r.process(servers.MinIO).PID
	moved := r
	moved.s3 = freePort(t)
	if out, err := moved.run(t.Context(), "up"); err == nil || !strings.Contains(err.Error(), "runs already, on port") {
		t.Errorf("up on another port: %v\n%s", err, out)
	}
	if r.process(servers.MinIO).PID != before {
		t.Error("MinIO was started again or stopped")
	}
}

func TestOneCommandAtATime(t *testing.T) {
	r := newRig(t)
	s, err := openStack(r.state, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if out, err := r.run(t.Context(), "up"); err == nil || !strings.Contains(err.Error(), "another localstack command") {
		t.Errorf("two at once: %v\n%s", err, out)
	}
}

func TestDamagedState(t *testing.T) {
	r := newRig(t)
	r.must("status")
	for _, text := range []string{"", "{", `{"pid": 0}`, `{"pid": -1}`} {
		path := filepath.Join(r.state, "minio.json")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := r.run(t.Context(), "down"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("down with %q as minio.json: %v\n%s", text, err, out)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{
		{}, {"sideways"}, {"up", "more"}, {"up", "--s3-port", "0"}, {"--s3-port", "65536", "up"}, {"up", "--no-such-flag"},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out, &out); !errors.Is(err, errUsage) || out.Len() == 0 {
			t.Errorf("%q: error %v, said %q", args, err, out.String())
		}
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"status", "--state", filepath.Join(t.TempDir(), "no", "such")}, &out, &out)
	if err == nil || !strings.Contains(err.Error(), "top of the checkout") {
		t.Errorf("a state folder in no folder: %v", err)
	}

	t.Setenv("VARVE_LOCALSTACK_S3_PORT", "many")
	if err = run(t.Context(), []string{"status"}, &out, &out); err == nil || !strings.Contains(err.Error(), "VARVE_LOCALSTACK_S3_PORT") {
		t.Errorf("a port that is none: %v", err)
	}
}

// TestWith has a command see what it was given, while the servers run.
func TestWith(t *testing.T) {
	var out bytes.Buffer
	script := `echo "$@" $AWS_SECRET_ACCESS_KEY; exit 3`
	err := run(t.Context(), []string{"with", "sh", "-c", script, "varve", "bench"}, &out, t.Output())
	var status *exec.ExitError
	if !errors.As(err, &status) || status.ExitCode() != 3 {
		t.Errorf("the command ended with status 3, and with said %v", err)
	}
	said := out.String()
	for _, part := range []string{"bench --segments s3://varve/with?region=us-east-1&endpoint=http", "--metadata dynamodb://varve?region=", servers.SecretKey} {
		if !strings.Contains(said, part) {
			t.Errorf("the command was given %q, want %q in it", said, part)
		}
	}
	_, rest, _ := strings.Cut(said, "endpoint=http%3A%2F%2F")
	address, _, _ := strings.Cut(rest, " ")
	address = strings.Replace(address, "%3A", ":", 1)
	if conn, err := net.Dial("tcp", address); err == nil {
		conn.Close()
		t.Errorf("a server still listens on %s after the command has ended", address)
	}
}
