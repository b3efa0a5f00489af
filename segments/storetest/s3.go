package storetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/varvelog/varve/segments"
)

// S3Bucket is the bucket that stores of [RunS3] use.
const S3Bucket = "bucket"

// RunS3 checks what a backend for S3 sends and how it takes answers that a good
// server seldom gives. Open returns a store without a prefix at a server that speaks
// plain HTTP at host:port; checksum is auto, always or when-required.
func RunS3(t *testing.T, open func(t *testing.T, endpoint, checksum string) segments.Store) {
	tests := []struct {
		name string
		run  func(*testing.T, *s3Server, func(checksum string) segments.Store)
	}{
		{"Requests", s3Requests},
		{"Refusals", s3Refusals},
		{"ShortAnswer", s3ShortAnswer},
		{"IgnoredRange", s3IgnoredRange},
		{"UnknownChecksum", s3UnknownChecksum},
		{"Silence", s3Silence},
		{"ForeignKeys", s3ForeignKeys},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			server := &s3Server{}
			listener := httptest.NewServer(server)
			t.Cleanup(listener.Close)
			test.run(t, server, func(checksum string) segments.Store {
				return open(t, listener.Listener.Addr().String(), checksum)
			})
		})
	}
}

// s3Request is what the server saw.
type s3Request struct {
	Line, Body                                       string
	Range, IfNoneMatch, Payload, Checksum, Encodings string
	Length                                           int64
}

// s3Server answers every request with one function, and remembers them.
type s3Server struct {
	mu       sync.Mutex
	requests []s3Request
	answer   http.HandlerFunc
}

func (s *s3Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A body that is cut short shows in what was read.
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.requests = append(s.requests, s3Request{
		Line: r.Method + " " + strings.TrimSuffix(r.URL.Path, "/"), Body: string(body), Length: r.ContentLength,
		Range: r.Header.Get("Range"), IfNoneMatch: r.Header.Get("If-None-Match"),
		Payload: r.Header.Get("X-Amz-Content-Sha256"), Checksum: r.Header.Get("X-Amz-Checksum-Crc32c"),
		Encodings: strings.Join(r.TransferEncoding, ",") + r.Header.Get("Content-Encoding") + r.Header.Get("X-Amz-Trailer"),
	})
	answer := s.answer
	s.mu.Unlock()
	answer(w, r)
}

func (s *s3Server) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// take returns the requests since it was called last.
func (s *s3Server) take() []s3Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.requests
	s.requests = nil
	return taken
}

const emptyList = `<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>`

func object(w http.ResponseWriter, status int, header map[string]string, body string) {
	w.Header().Set("ETag", `"e"`)
	w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
	for name, value := range header {
		w.Header().Set(name, value)
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body) // the client may have left
}

// s3Requests checks that each call is one request, and what it carries.
func s3Requests(t *testing.T, server *s3Server, open func(string) segments.Store) {
	const unsigned = "UNSIGNED-PAYLOAD"
	body := segments.NewBody([]byte("123456"), []byte("789"))
	const sum = "4waSgw==" // the check value of CRC-32C, E3069283
	for checksum, want := range map[string]string{"auto": sum, "always": sum, "when-required": ""} {
		store := open(checksum)
		server.set(func(w http.ResponseWriter, _ *http.Request) { object(w, http.StatusOK, nil, "") })
		if err := store.Put(t.Context(), "a/b.seg", body); err != nil {
			t.Errorf("Put: %v", err)
		}
		wantPut := []s3Request{{
			Line: "PUT /bucket/a/b.seg", Body: "123456789", Length: 9, IfNoneMatch: "*", Payload: unsigned, Checksum: want,
		}}
		if diff := cmp.Diff(wantPut, server.take()); diff != "" {
			t.Errorf("Put with checksum %s: %s", checksum, diff)
		}
	}
	store := open("auto")
	lines := func(op string, err error, want ...string) {
		t.Helper()
		var got []string
		for _, request := range server.take() {
			got = append(got, strings.TrimSpace(request.Line+" "+request.Range))
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: requests %q, %v; want %q", op, got, err, want)
		}
	}
	server.set(func(w http.ResponseWriter, _ *http.Request) {
		object(w, http.StatusPartialContent, map[string]string{"Content-Range": "bytes 3-5/9"}, "456")
	})
	_, _, err := store.Get(t.Context(), "a/b.seg", 3, 3)
	lines("Get", err, "GET /bucket/a/b.seg bytes=3-5")
	server.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	lines("Delete", store.Delete(t.Context(), "a/b.seg"), "DELETE /bucket/a/b.seg")
	server.set(func(w http.ResponseWriter, _ *http.Request) { object(w, http.StatusOK, nil, emptyList) })
	_, err = store.List(t.Context(), "a/", "a/a", 5)
	lines("List", err, "GET /bucket")
}

// s3Refusals checks what becomes of each refusal, and that none is tried again here.
func s3Refusals(t *testing.T, server *s3Server, open func(string) segments.Store) {
	store := open("auto")
	tests := []struct {
		status int
		code   string
		want   error
	}{
		{http.StatusNotFound, "NoSuchKey", segments.ErrNotFound},
		{http.StatusNotFound, "NoSuchBucket", segments.ErrNoBucket},
		{http.StatusPreconditionFailed, "PreconditionFailed", segments.ErrExists},
		{http.StatusConflict, "ConditionalRequestConflict", segments.ErrUnavailable},
		{http.StatusForbidden, "AccessDenied", segments.ErrDenied},
		{http.StatusForbidden, "InvalidAccessKeyId", segments.ErrDenied},
		{http.StatusForbidden, "SignatureDoesNotMatch", segments.ErrDenied},
		{http.StatusForbidden, "RequestTimeTooSkewed", segments.ErrDenied},
		{http.StatusBadRequest, "ExpiredToken", segments.ErrDenied},
		{http.StatusBadRequest, "BadDigest", segments.ErrUnavailable},
		{http.StatusMovedPermanently, "PermanentRedirect", segments.ErrNoBucket},
		{http.StatusTooManyRequests, "SlowDown", segments.ErrUnavailable},
		{http.StatusInternalServerError, "InternalError", segments.ErrUnavailable},
		{http.StatusServiceUnavailable, "SlowDown", segments.ErrUnavailable},
		{http.StatusBadGateway, "", segments.ErrUnavailable},
		{http.StatusInsufficientStorage, "XMinioStorageFull", segments.ErrFull},
		{http.StatusBadRequest, "XMinioAdminBucketQuotaExceeded", segments.ErrFull},
		{http.StatusForbidden, "QuotaExceeded", segments.ErrFull},
		{http.StatusInsufficientStorage, "", segments.ErrFull},
	}
	for _, test := range tests {
		server.set(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(test.status)
			if test.code != "" {
				fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as told</Message></Error>", test.code)
			}
		})
		_, _, getErr := store.Get(t.Context(), "key", 0, -1)
		_, listErr := store.List(t.Context(), "", "", 1)
		for op, err := range map[string]error{"Put": put(t.Context(), store, "key", "x"), "Get": getErr, "List": listErr} {
			if !errors.Is(err, test.want) {
				t.Errorf("%s: %d %s: %v, want %v", op, test.status, test.code, err, test.want)
			}
		}
		if n := len(server.take()); n != 3 {
			t.Errorf("%d %s: 3 calls made %d requests", test.status, test.code, n)
		}
	}
}

func s3ShortAnswer(t *testing.T, server *s3Server, open func(string) segments.Store) {
	store := open("auto")
	for _, header := range []map[string]string{
		{"Content-Length": "9"}, {"Content-Length": "9", "Content-Range": "bytes 0-8/9"}, {"Content-Range": "bytes 0-8/9"},
	} {
		status, length := http.StatusOK, int64(-1)
		if header["Content-Range"] != "" {
			status, length = http.StatusPartialContent, 9
		}
		server.set(func(w http.ResponseWriter, _ *http.Request) { object(w, status, header, "12345") })
		if data, _, err := store.Get(t.Context(), "key", 0, length); !errors.Is(err, segments.ErrUnavailable) {
			t.Errorf("5 bytes of 9 with %v: %q, %v", header, data, err)
		}
	}
}

func s3IgnoredRange(t *testing.T, server *s3Server, open func(string) segments.Store) {
	store := open("auto")
	server.set(func(w http.ResponseWriter, _ *http.Request) { object(w, http.StatusOK, nil, "123456789") })
	for _, r := range [][2]int64{{3, 3}, {3, -1}, {-3, 0}} {
		if data, _, err := store.Get(t.Context(), "key", r[0], r[1]); !errors.Is(err, segments.ErrUnavailable) {
			t.Errorf("Get(%d, %d) = %q, %v", r[0], r[1], data, err)
		}
	}
}

// s3UnknownChecksum is a store that does not know the checksum's header.
func s3UnknownChecksum(t *testing.T, server *s3Server, open func(string) segments.Store) {
	server.set(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Amz-Checksum-Crc32c") != "" {
			object(w, http.StatusNotImplemented, nil, "<Error><Code>NotImplemented</Code></Error>")
		}
	})
	for checksum, want := range map[string]error{"auto": nil, "always": segments.ErrUnavailable} {
		store := open(checksum)
		first, second := put(t.Context(), store, "key", "x"), put(t.Context(), store, "key", "x")
		if !errors.Is(first, segments.ErrUnavailable) || !errors.Is(second, want) {
			t.Errorf("checksum %s: %v, then %v", checksum, first, second)
		}
	}
}

// s3Silence is a server that never answers.
func s3Silence(t *testing.T, server *s3Server, open func(string) segments.Store) {
	store := open("auto")
	arrived := make(chan struct{})
	server.set(func(_ http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-r.Context().Done()
	})
	for op, call := range map[string]func(context.Context) error{
		"Put":    func(ctx context.Context) error { return put(ctx, store, "key", "x") },
		"Delete": func(ctx context.Context) error { return store.Delete(ctx, "key") },
		"Get":    func(ctx context.Context) error { _, _, err := store.Get(ctx, "key", 0, -1); return err },
		"List":   func(ctx context.Context) error { _, err := store.List(ctx, "", "", 1); return err },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-arrived
			cancel()
		}()
		if err := call(ctx); !errors.Is(err, segments.ErrUnavailable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", op, err)
		}
	}
}

// s3ForeignKeys is a bucket in which others keep things too.
func s3ForeignKeys(t *testing.T, server *s3Server, open func(string) segments.Store) {
	server.set(func(w http.ResponseWriter, r *http.Request) {
		page := `<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>more</NextContinuationToken>` +
			`<Contents><Key>a b</Key><Size>1</Size></Contents><Contents><Key>c/</Key><Size>0</Size></Contents></ListBucketResult>`
		if r.URL.Query().Get("continuation-token") == "more" {
			page = `<ListBucketResult><Contents><Key>d</Key><Size>4</Size></Contents></ListBucketResult>`
		}
		object(w, http.StatusOK, map[string]string{"Content-Type": "application/xml"}, page)
	})
	got, err := open("auto").List(t.Context(), "", "", 10)
	if diff := cmp.Diff([]segments.ObjectInfo{{Key: "d", Size: 4}}, got); err != nil || diff != "" {
		t.Errorf("List: %v, %s", err, diff)
	}
}
