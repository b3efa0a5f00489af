package dynamotable_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/metadata"
	"github.com/varvelog/varve/metadata/dynamotable"
	"github.com/varvelog/varve/metadata/tabletest/dynalitetest"
)

// serve opens a table on a server that the test plays.
func serve(t *testing.T, handler http.HandlerFunc) *dynamotable.Table {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return openTable(t, options(server.URL))
}

func openTable(t *testing.T, o dynamotable.Options) *dynamotable.Table {
	t.Helper()
	table, err := dynamotable.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// eachCall makes one call of each kind and returns the errors.
func eachCall(ctx context.Context, table metadata.Table) (reads, writes []error) {
	r := testRow("s")
	_, get := table.Get(ctx, r.Key, metadata.Strong)
	_, rng := table.Range(ctx, metadata.Range{Partition: "p"})
	return []error{get, rng}, []error{
		table.Put(ctx, r, metadata.IfAbsent()),
		table.Delete(ctx, r.Key, metadata.IfBelow(r.Stamp)),
	}
}

// sentinels are all kinds that a table's error can have.
var sentinels = []error{
	metadata.ErrNotFound, metadata.ErrConflict, metadata.ErrUnknown, metadata.ErrUnavailable, metadata.ErrDenied,
	metadata.ErrNoTable, metadata.ErrCorrupt, metadata.ErrTooLarge,
}

// wantKinds wants errors of that kind and no other; nil wants errors without a kind.
func wantKinds(t *testing.T, what string, errs []error, want error) {
	t.Helper()
	for _, err := range errs {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		for _, kind := range sentinels {
			if errors.Is(err, kind) != (kind == want) {
				t.Errorf("%s: got error %v, want kind %v", what, err, want)
			}
		}
	}
}

func TestErrorsOfTheServer(t *testing.T) {
	for _, test := range []struct {
		status       int
		code         string
		reads, write error
	}{
		{400, "ProvisionedThroughputExceededException", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{400, "ThrottlingException", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{400, "RequestLimitExceeded", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{400, "LimitExceededException", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{400, "TransactionConflictException", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{400, "ResourceNotFoundException", metadata.ErrNoTable, metadata.ErrNoTable},
		{400, "AccessDeniedException", metadata.ErrDenied, metadata.ErrDenied},
		{400, "UnrecognizedClientException", metadata.ErrDenied, metadata.ErrDenied},
		{400, "InvalidSignatureException", metadata.ErrDenied, metadata.ErrDenied},
		{400, "ExpiredTokenException", metadata.ErrDenied, metadata.ErrDenied},
		{400, "MissingAuthenticationTokenException", metadata.ErrDenied, metadata.ErrDenied},
		{403, "", metadata.ErrDenied, metadata.ErrDenied},
		{400, "ValidationException", nil, nil},
		{400, "SerializationException", nil, nil},
		{413, "", nil, nil},
		{429, "", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{408, "", metadata.ErrUnavailable, metadata.ErrUnknown},
		{500, "InternalServerError", metadata.ErrUnavailable, metadata.ErrUnknown},
		{502, "", metadata.ErrUnavailable, metadata.ErrUnknown},
		{503, "ServiceUnavailable", metadata.ErrUnavailable, metadata.ErrUnknown},
		{503, "ThrottlingException", metadata.ErrUnavailable, metadata.ErrUnavailable},
		{302, "", metadata.ErrUnavailable, metadata.ErrUnknown},
	} {
		t.Run(fmt.Sprint(test.status, test.code), func(t *testing.T) {
			var requests atomic.Int64
			table := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				requests.Add(1)
				w.WriteHeader(test.status)
				if test.code != "" {
					fmt.Fprintf(w, `{"__type":"com.amazonaws.dynamodb.v20120810#%s","message":"as the test wants it"}`, test.code)
				}
			})
			reads, writes := eachCall(t.Context(), table)
			wantKinds(t, "read", reads, test.reads)
			wantKinds(t, "write", writes, test.write)
			if n := requests.Load(); n != 4 {
				t.Errorf("4 calls made %d requests", n)
			}
		})
	}
}

func TestErrorsOfTheNetwork(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"closed without an answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"Item":`)
		},
		"no JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Item":`) },
		"wrong checksum": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Amz-Crc32", "1")
			_, _ = w.Write([]byte("{}"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			reads, writes := eachCall(t.Context(), serve(t, handler))
			wantKinds(t, "read", reads, metadata.ErrUnavailable)
			wantKinds(t, "write", writes, metadata.ErrUnknown)
		})
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := "http://" + listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	reads, writes := eachCall(t.Context(), openTable(t, options(address)))
	wantKinds(t, "read", reads, metadata.ErrUnavailable)
	wantKinds(t, "write", writes, metadata.ErrUnavailable)
}

type noCredentials struct{}

func (noCredentials) Retrieve(context.Context) (aws.Credentials, error) {
	// As the metadata service of a host that is none: a request of its own that failed.
	_, err := http.Get("http://127.0.0.1:0/")
	return aws.Credentials{}, err
}

func TestNoCredentials(t *testing.T) {
	o := options("http://127.0.0.1:1")
	o.Credentials = noCredentials{}
	reads, writes := eachCall(t.Context(), openTable(t, o))
	wantKinds(t, "read", reads, metadata.ErrDenied)
	wantKinds(t, "write", writes, metadata.ErrDenied)
	if !strings.Contains(reads[0].Error(), "AWS_ACCESS_KEY_ID") {
		t.Errorf("the error %q does not say what to set", reads[0])
	}
}

func TestOptions(t *testing.T) {
	_, err := dynamotable.Open(t.Context(), dynamotable.Options{Connections: -1, Timeout: -1})
	for _, part := range []string{"table name", "connections", "timeout"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("the error %v does not name the %s", err, part)
		}
	}
	t.Setenv("AWS_REGION", "")
	t.Setenv("AWS_DEFAULT_REGION", "")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	if _, err := dynamotable.Open(t.Context(), dynamotable.Options{Table: "t"}); err == nil || !strings.Contains(err.Error(), "AWS_REGION") {
		t.Errorf("without a region: %v", err)
	}
}

// TestCancelledInFlight cancels each call once the server has it.
func TestCancelledInFlight(t *testing.T) {
	arrived := make(chan struct{})
	table := serve(t, func(_ http.ResponseWriter, r *http.Request) {
		// Only with the body read does the server notice that the client went.
		_, _ = io.Copy(io.Discard, r.Body)
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	r := testRow("s")
	for name, test := range map[string]struct {
		call func(context.Context) error
		want error
	}{
		"Get": {func(ctx context.Context) error { _, err := table.Get(ctx, r.Key, metadata.Strong); return err }, metadata.ErrUnavailable},
		"Range": {func(ctx context.Context) error {
			_, err := table.Range(ctx, metadata.Range{Partition: "p"})
			return err
		}, metadata.ErrUnavailable},
		"Put":    {func(ctx context.Context) error { return table.Put(ctx, r, metadata.IfAbsent()) }, metadata.ErrUnknown},
		"Delete": {func(ctx context.Context) error { return table.Delete(ctx, r.Key, metadata.Condition{}) }, metadata.ErrUnknown},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		errs := make(chan error)
		go func() { errs <- test.call(ctx) }()
		<-arrived
		cancel()
		err := <-errs
		wantKinds(t, name, []error{err}, test.want)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v does not wrap %v", name, err, context.Canceled)
		}
	}
}

// TestQueryOnTheWire checks what dynalite cannot: empty pages in mid-range, the consistency
// that is asked for, and limits.
func TestQueryOnTheWire(t *testing.T) {
	var asked []map[string]any
	pages := []string{
		`{"Items":[],"LastEvaluatedKey":{"p":{"S":"p"},"s":{"S":"1"}}}`,
		`{"Items":[],"LastEvaluatedKey":{"p":{"S":"p"},"s":{"S":"2"}}}`,
		`{"Items":[{"p":{"S":"p"},"s":{"S":"3"},"t":{"S":"000000000000000a000000000000000b"},"n":{"N":"7"},"v":{"B":"dg=="}}]}`,
		`{"Items":[]}`,
	}
	table := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(w, pages[len(asked)])
		asked = append(asked, body)
	})
	rows, err := table.Range(t.Context(), metadata.Range{Partition: "p", Limit: 5, Reverse: true, Consistency: metadata.Strong})
	want := []metadata.Row{{Key: metadata.Key{Partition: "p", Sort: "3"}, Stamp: metadata.Stamp{Epoch: 10, Sequence: 11}, Nonce: 7, Value: []byte("v")}}
	if diff := cmp.Diff(want, rows); err != nil || diff != "" {
		t.Fatalf("error %v, rows (-want +got):\n%s", err, diff)
	}
	if rows, err := table.Range(t.Context(), metadata.Range{Partition: "p"}); len(rows) != 0 || err != nil {
		t.Fatalf("an empty last page: %v, error %v", rows, err)
	}
	for i, body := range asked {
		first := i == 0 || i == 3
		got := fmt.Sprint(body["ConsistentRead"], body["Limit"], body["ScanIndexForward"], body["ExclusiveStartKey"] == nil)
		want := fmt.Sprint(i < 3, map[bool]any{true: 5.0, false: nil}[i < 3], i == 3, first)
		if got != want {
			t.Errorf("query %d: consistent, limit, forward, first: %s, want %s", i, got, want)
		}
	}
}

func TestCorruptItems(t *testing.T) {
	const key, stamp, nonce = `"p":{"S":"p"},"s":{"S":"s"}`, `"t":{"S":"000000000000000a000000000000000b"}`, `"n":{"N":"7"}`
	for name, attributes := range map[string]string{
		"no keys":      stamp + "," + nonce,
		"no stamp":     key + "," + nonce,
		"no nonce":     key + "," + stamp,
		"short stamp":  key + "," + nonce + `,"t":{"S":"0a"}`,
		"wrong epoch":  key + "," + nonce + `,"t":{"S":"g00000000000000a000000000000000b"}`,
		"wrong digits": key + "," + nonce + `,"t":{"S":"000000000000000ag00000000000000b"}`,
		"large nonce":  key + "," + stamp + `,"n":{"N":"18446744073709551616"}`,
		"text value":   key + "," + stamp + "," + nonce + `,"v":{"S":"v"}`,
	} {
		t.Run(name, func(t *testing.T) {
			table := serve(t, func(w http.ResponseWriter, r *http.Request) {
				form := `{"Item":{%s}}`
				if strings.HasSuffix(r.Header.Get("X-Amz-Target"), "Query") {
					form = `{"Items":[{%s}]}`
				}
				fmt.Fprintf(w, form, attributes)
			})
			_, get := table.Get(t.Context(), testRow("s").Key, metadata.Strong)
			_, rng := table.Range(t.Context(), metadata.Range{Partition: "p"})
			wantKinds(t, "read", []error{get, rng}, metadata.ErrCorrupt)
		})
	}
}

// TestLostAnswers drops the answers of a real server after it has written: settled puts find
// their own rows, and only one of them.
func TestLostAnswers(t *testing.T) {
	o := options(dynalitetest.Start(t))
	direct := create(t, o)
	target, err := url.Parse(o.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	var puts atomic.Int64
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ModifyResponse = func(answer *http.Response) error {
		if strings.HasSuffix(answer.Request.Header.Get("X-Amz-Target"), "PutItem") && puts.Add(1)%2 == 1 {
			panic(http.ErrAbortHandler)
		}
		return nil
	}
	server := httptest.NewServer(proxy)
	t.Cleanup(server.Close)
	o.Endpoint = server.URL
	table := openTable(t, o)
	for i := range 10 {
		r := testRow(fmt.Sprint(i))
		if err := metadata.PutSettled(t.Context(), table, r, metadata.IfAbsent(), nil); err != nil {
			t.Fatal(err)
		}
		if got, err := direct.Get(t.Context(), r.Key, metadata.Strong); err != nil || got.Nonce != r.Nonce {
			t.Fatalf("the row has nonce %d, want %d, error %v", got.Nonce, r.Nonce, err)
		}
		r.Nonce = metadata.NewNonce()
		if err := metadata.PutSettled(t.Context(), table, r, metadata.IfAbsent(), nil); !errors.Is(err, metadata.ErrConflict) {
			t.Fatalf("a second row: %v", err)
		}
	}
	if n := puts.Load(); n != 20 {
		t.Fatalf("20 settled puts made %d requests", n)
	}
}
