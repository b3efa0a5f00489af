package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/grpcreflect/v2"
	"golang.org/x/sync/errgroup"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// served is a gateway behind a real port.
type served struct {
	*testGateway
	url string
}

// serveGateway starts a gateway, and the server that varve serve uses.
func serveGateway(t *testing.T, config Config) *served {
	t.Helper()
	g := startGateway(t, config, memory())
	return &served{g, serveHTTP(t, g.Gateway)}
}

func serveHTTP(t *testing.T, g *Gateway) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := g.NewHTTPServer()
	var group errgroup.Group
	group.Go(func() error { return server.Serve(listener) })
	t.Cleanup(func() {
		server.Close()
		if err := group.Wait(); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("server ended with %v", err)
		}
	})
	return "http://" + listener.Addr().String()
}

// httpClients speak HTTP/1.1 and unencrypted HTTP/2.
func httpClients(t *testing.T) map[string]*http.Client {
	t.Helper()
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	clients := make(map[string]*http.Client)
	for name, p := range map[string]*http.Protocols{"http/1.1": &h1, "h2c": &h2} {
		transport := &http.Transport{Protocols: p}
		t.Cleanup(transport.CloseIdleConnections)
		clients[name] = &http.Client{Transport: transport}
	}
	return clients
}

// answer is what came back for an HTTP request.
type answer struct {
	status int
	header http.Header
	body   string
}

// code is the Connect code of an error, or empty.
func (a answer) code() string {
	var e struct{ Code string }
	if json.Unmarshal([]byte(a.body), &e) != nil {
		return ""
	}
	return e.Code
}

func ask(t *testing.T, client *http.Client, method, url string, body io.Reader, header map[string]string) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		r.Header.Set(k, v)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(text)}
}

var jsonType = map[string]string{"Content-Type": "application/json"}

func postJSON(t *testing.T, client *http.Client, url, body string) answer {
	t.Helper()
	return ask(t, client, http.MethodPost, url, strings.NewReader(body), jsonType)
}

func TestPages(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true, Version: "v9.9"})
	for name, client := range httpClients(t) {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				path, body string
				status     int
			}{
				{"/", "varve v9.9, a log on object storage", 200},
				{"/livez", `{"live":true}`, 200},
				{"/readyz", `{"ready":true}`, 200},
				{"/metrics", "\nvarve_flushes_total 0\n", 200},
				{"/metrics", "\ngo_goroutines ", 200},
				{"/nope", `there is nothing at "/nope"`, 404},
				{"/varve.v1.LogService/Produce", "", 405},
			} {
				if got := ask(t, client, http.MethodGet, g.url+c.path, nil, nil); got.status != c.status || !strings.Contains(got.body, c.body) {
					t.Errorf("%s: %d %.300s, want %d with %q", c.path, got.status, got.body, c.status, c.body)
				}
			}
		})
	}
}

func TestReadiness(t *testing.T) {
	g, err := New(Config{Exclusive: true}, memory())
	if err != nil {
		t.Fatal(err)
	}
	url := serveHTTP(t, g)
	client := httpClients(t)["http/1.1"]
	if got := ask(t, client, http.MethodGet, url+"/readyz", nil, nil); got.status != 503 || strings.TrimSpace(got.body) != `{"ready":false,"reason":"starting"}` {
		t.Errorf("before the start: %d %s", got.status, got.body)
	}
	if got := postJSON(t, client, url+varvev1connect.ClusterServiceListGatewaysProcedure, "{}"); got.code() != "unavailable" || !strings.Contains(got.body, "starting") {
		t.Errorf("a call before the start: %s", got.body)
	}
	g.setState(false, stateDraining)
	if got := ask(t, client, http.MethodGet, url+"/readyz", nil, nil); got.status != 503 || !strings.Contains(got.body, `"reason":"draining"`) {
		t.Errorf("draining: %d %s", got.status, got.body)
	}
	if got := postJSON(t, client, url+varvev1connect.ClusterServiceUsageProcedure, "{}"); got.status != 200 {
		t.Errorf("a read while draining: %s", got.body)
	}
}

func TestBadRequests(t *testing.T) {
	const limit = 128 << 10
	g := serveGateway(t, Config{Exclusive: true, MaxRequestBytes: limit})
	produce, service := varvev1connect.LogServiceProduceProcedure, "/"+varvev1connect.LogServiceName
	for name, client := range httpClients(t) {
		t.Run(name, func(t *testing.T) {
			for _, c := range []struct {
				what, path, body string
				header           map[string]string
				status           int
				code, says       string
			}{
				{"unknown field", produce, `{"topik":"t"}`, nil, 400, "invalid_argument", "unknown field"},
				{"not JSON", produce, `{"topic":`, nil, 400, "invalid_argument", ""},
				{"nothing", produce, ``, nil, 400, "invalid_argument", ""},
				{"bad base64", produce, `{"recordBatch":"%%"}`, nil, 400, "invalid_argument", ""},
				{"bad UTF-8", produce, "{\"topic\":\"\xff\"}", nil, 400, "invalid_argument", ""},
				{"bad name", produce, `{"topic":"a/b","records":[{}]}`, nil, 400, "invalid_argument", "a/b"},
				{"no records", produce, `{"topic":"t"}`, nil, 404, "not_found", ""},
				{"too large", produce, `{"topic":"` + strings.Repeat("x", 2*limit) + `"}`, nil, 429, "resource_exhausted", "131072"},
				{"unknown method", service + "/Sing", `{}`, nil, 501, "unimplemented", "Sing"},
				{"unknown service", "/varve.v1.Nope/Sing", `{}`, nil, 501, "unimplemented", "Sing"},
				{"unknown encoding", produce, `{}`, map[string]string{"Content-Encoding": "zip"}, 501, "unimplemented", "zip"},
				{"broken gzip", produce, `{}`, map[string]string{"Content-Encoding": "gzip"}, 400, "invalid_argument", "gzip"},
				{"bad timeout", produce, `{}`, map[string]string{"Connect-Timeout-Ms": "soon"}, 400, "invalid_argument", "timeout"},
				{"unknown type", produce, `{}`, map[string]string{"Content-Type": "text/xml"}, 415, "", ""},
				{"broken proto", produce, "\x2a\xff", map[string]string{"Content-Type": "application/proto"}, 400, "invalid_argument", ""},
			} {
				header := map[string]string{"Content-Type": "application/json"}
				for k, v := range c.header {
					header[k] = v
				}
				got := ask(t, client, http.MethodPost, g.url+c.path, strings.NewReader(c.body), header)
				if got.status != c.status || got.code() != c.code || !strings.Contains(got.body, c.says) {
					t.Errorf("%s: %d %.300s, want %d %s with %q", c.what, got.status, got.body, c.status, c.code, c.says)
				}
			}
		})
	}
	if n := g.meters.internals.Load() + g.meters.panics.Load(); n != 0 {
		t.Errorf("%d bad requests counted as internal errors", n)
	}
	if g.meters.appends.Load() != 0 {
		t.Error("a bad request was appended")
	}
}

// TestTruncatedRequest sends less than was announced.
func TestTruncatedRequest(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	for _, contentType := range []string{"application/proto", "application/json"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(g.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: varve\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\nhalf",
			varvev1connect.LogServiceProduceProcedure, contentType, 10_000)
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got := (answer{body: string(body)}); response.StatusCode != 400 || got.code() != "invalid_argument" {
			t.Errorf("%s: %d %s", contentType, response.StatusCode, body)
		}
	}
}

// TestGzipBomb sends a small body that claims gigabytes: neither memory nor time may be
// spent on what is past the limit.
func TestGzipBomb(t *testing.T) {
	const claims = 1 << 30
	var bomb bytes.Buffer
	z, err := gzip.NewWriterLevel(&bomb, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range claims >> 20 {
		if _, err := z.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	g := serveGateway(t, Config{Exclusive: true, MaxRequestBytes: 8 << 20})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	got := ask(t, httpClients(t)["http/1.1"], http.MethodPost, g.url+varvev1connect.LogServiceProduceProcedure, &bomb,
		map[string]string{"Content-Type": "application/proto", "Content-Encoding": "gzip"})
	runtime.ReadMemStats(&after)
	if got.code() != "resource_exhausted" {
		t.Fatalf("%d %.200s", got.status, got.body)
	}
	if spent := after.TotalAlloc - before.TotalAlloc; spent > 128<<20 {
		t.Errorf("%d MiB were allocated for a request of at most 8", spent>>20)
	}
}

func TestAnswersAreNotCompressed(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	got := ask(t, httpClients(t)["http/1.1"], http.MethodPost, g.url+varvev1connect.ClusterServiceUsageProcedure, strings.NewReader("{}"),
		map[string]string{"Content-Type": "application/json", "Accept-Encoding": "gzip"})
	if got.status != 200 || got.header.Get("Content-Encoding") != "" || !strings.HasPrefix(got.body, "{") {
		t.Errorf("%d, encoding %q: %.100q", got.status, got.header.Get("Content-Encoding"), got.body)
	}
}

// TestAdmission fills the memory for requests: the next one is told so, in its own
// protocol, before its body is read.
func TestAdmission(t *testing.T) {
	const room = 1 << 20
	a := newAdmission(Config{RequestBytes: room, MaxRequestBytes: room, AdmitWait: time.Millisecond}, connecthttp.NewErrorWriter())
	handler := a.wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.room.TryAcquire(room) {
			t.Error("a request took no room")
		}
		io.WriteString(w, "done")
	}))
	request := func(contentType string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("12345"))
		r.Header.Set("Content-Type", contentType)
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	if w := request("application/json"); w.Body.String() != "done" {
		t.Errorf("with room: %d %s", w.Code, w.Body)
	}
	if !a.room.TryAcquire(room) {
		t.Fatal("a request that ended holds room")
	}
	if w := request("application/json"); w.Code != 429 || !strings.Contains(w.Body.String(), `"resource_exhausted"`) {
		t.Errorf("Connect: %d %s", w.Code, w.Body)
	}
	if w := request("application/grpc"); w.Header().Get("Grpc-Status") != fmt.Sprint(uint32(connect.CodeResourceExhausted)) {
		t.Errorf("gRPC: %d %v", w.Code, w.Header())
	}
	a.room.Release(room)
	if w := request("application/json"); w.Body.String() != "done" {
		t.Errorf("with room again: %d %s", w.Code, w.Body)
	}
	for _, c := range []struct {
		length int64
		header string
		want   int64
	}{{5, "", 5}, {-1, "", room}, {2 * room, "", room}, {5, "Content-Encoding", room}, {5, "Grpc-Encoding", room}} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.ContentLength = c.length
		if c.header != "" {
			r.Header.Set(c.header, "gzip")
		}
		if got := a.sizeOf(r); got != c.want {
			t.Errorf("length %d with %q takes %d, want %d", c.length, c.header, got, c.want)
		}
	}
}

// TestSlowBody has a body take too long, and an answer take longer than any body may.
func TestSlowBody(t *testing.T) {
	const bodyTime = 100 * time.Millisecond
	type outcome struct {
		err  error
		gone error
	}
	outcomes := make(chan outcome, 1)
	server := httptest.NewServer(limitRequest(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.ReadAll(r.Body)
		if err == nil { // a follower
			select {
			case <-r.Context().Done():
			case <-time.After(3 * bodyTime):
			}
		}
		outcomes <- outcome{err, r.Context().Err()}
	}), 1<<20, bodyTime))
	defer server.Close()
	response, err := http.Post(server.URL, "text/plain", strings.NewReader("all at once"))
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if got := <-outcomes; got.err != nil || got.gone != nil {
		t.Errorf("a quick body: read %v, then context %v", got.err, got.gone)
	}
	never, stop := io.Pipe()
	defer stop.Close()
	go http.Post(server.URL, "text/plain", never)
	if got := <-outcomes; got.err == nil {
		t.Error("a body that never came was read")
	}
}

func TestInterceptRecovers(t *testing.T) {
	var log strings.Builder
	g := &Gateway{meters: NewMeters(), log: slog.New(slog.NewTextHandler(&log, nil)), resting: newResting(nil)}
	g.setState(true, "")
	call := func(f connect.ServerFunc) error { return g.intercept(f)(t.Context(), connect.Spec{}, nil) }
	err := call(func(context.Context, connect.Spec, connect.ServerStream) error { panic("hunter2") })
	if connect.CodeOf(err) != connect.CodeInternal || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a panic became %v", err)
	}
	if !strings.Contains(log.String(), "hunter2") || g.meters.panics.Load() != 1 {
		t.Errorf("log %q", log.String())
	}
	if err := call(func(context.Context, connect.Spec, connect.ServerStream) error { return nil }); err != nil {
		t.Errorf("a success became %v", err)
	}
	err = call(func(ctx context.Context, _ connect.Spec, _ connect.ServerStream) error {
		if _, limited := ctx.Deadline(); !limited {
			return errors.New("a unary call has no end")
		}
		return refuse(connect.CodeNotFound, reasonTopicNotFound, "no")
	})
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a refusal became %v", err)
	}
}

// protocols are the ways to speak to the API.
func protocols(t *testing.T, url string) map[string]*connect.Client {
	http := httpClients(t)
	client := func(via string, options ...connecthttp.Option) *connect.Client {
		return connect.NewClient(connecthttp.NewTransport(http[via], url, append(options, connecthttp.WithReadMaxBytes(64<<20))...))
	}
	return map[string]*connect.Client{
		"connect":      client("http/1.1"),
		"connect h2c":  client("h2c"),
		"connect json": client("http/1.1", connecthttp.WithProtoJSON()),
		"connect gzip": client("http/1.1", connecthttp.WithSendGzip()),
		"grpc":         client("h2c", connecthttp.WithGRPC()),
		"grpc gzip":    client("h2c", connecthttp.WithGRPC(), connecthttp.WithSendGzip()),
		"grpc-web":     client("http/1.1", connecthttp.WithGRPCWeb()),
	}
}

func TestReflection(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	stream := grpcreflect.NewClient(protocols(t, g.url)["grpc"]).NewStream(t.Context())
	defer stream.Close()
	names, err := stream.ListServices()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{varvev1connect.LogServiceName, varvev1connect.TopicServiceName, varvev1connect.ClusterServiceName} {
		found := false
		for _, name := range names {
			found = found || string(name) == want
		}
		if !found {
			t.Errorf("%s is not among %v", want, names)
		}
	}
}

// TestProduceInAllProtocols sends batches small and large.
func TestProduceInAllProtocols(t *testing.T) {
	g := serveGateway(t, Config{Exclusive: true})
	g.create(t, "a", 1, nil)
	next := int64(0)
	for name, client := range protocols(t, g.url) {
		t.Run(name, func(t *testing.T) {
			log := varvev1connect.NewLogServiceClient(client)
			for _, size := range []int{1, 500_000} {
				value := bytes.Repeat([]byte{'v'}, size)
				out, err := log.Produce(t.Context(), &varvev1.ProduceRequest{Topic: "a", Partition: new(int32), RecordBatch: batchOf(t, value)})
				if err != nil {
					t.Fatal(err)
				}
				if got := out.GetResults()[0].GetBaseOffset(); got != next {
					t.Fatalf("offset %d, want %d", got, next)
				}
				read, err := log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "a", Decode: true,
					Start: &varvev1.Place{At: &varvev1.Place_Offset{Offset: next}}})
				if err != nil {
					t.Fatal(err)
				}
				if len(read.GetRecords()) != 1 || !slices.Equal(read.GetRecords()[0].GetValue(), value) {
					t.Fatalf("read %d records at %d", len(read.GetRecords()), next)
				}
				next++
			}
			_, err := log.Fetch(t.Context(), &varvev1.FetchRequest{Topic: "absent"})
			var failed *connect.Error
			if !errors.As(err, &failed) || failed.Code() != connect.CodeNotFound || infoOf(t, failed).GetReason() != reasonTopicNotFound {
				t.Errorf("an absent topic: %v", err)
			}
		})
	}
}
