package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"google.golang.org/protobuf/proto"

	varvev1 "github.com/varvelog/varve/api/varve/v1"
	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

// wire sends requests that were encoded before, over HTTP/1.1 as the client does, to a gateway or to
// a server of the floor: both are measured with the same client.
type wire struct {
	http *http.Client
	base string
}

// newWire keeps so many connections open.
func (a *app) newWire(base string, connections int) *wire {
	c := newHTTPClient(newDialNotes(a.notef))
	c.Transport.(*http.Transport).MaxIdleConnsPerHost = connections
	return &wire{http: c, base: strings.TrimSuffix(base, "/")}
}

func (w *wire) close() { w.http.CloseIdleConnections() }

// refusal is an answer that is no success.
type refusal struct {
	Status  int    `json:"-"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %s", r.Code, r.Message) }

// temporary: the same request is worth another try, and had no effect.
func (r *refusal) temporary() bool { return r.Code == "resource_exhausted" || r.Code == "unavailable" }

// body is a request's body that tells when the transport has no more use for it.
type body struct {
	bytes.Reader
	released chan struct{}
}

func (b *body) Close() error {
	select {
	case <-b.released:
	default:
		close(b.released)
	}
	return nil
}

// open posts a request, which is free to be changed once open has returned.
func (w *wire) open(ctx context.Context, path, contentType string, request []byte) (*http.Response, error) {
	b := &body{released: make(chan struct{})}
	b.Reset(request)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.base+path, b)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(len(request))
	req.Header.Set("Content-Type", contentType)
	req.Header.Set("Connect-Protocol-Version", "1")
	response, err := w.http.Do(req)
	<-b.released
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusOK {
		return response, nil
	}
	defer response.Body.Close()
	r := &refusal{Status: response.StatusCode, Code: response.Status}
	text, err := io.ReadAll(io.LimitReader(response.Body, 64*kib))
	if err != nil {
		return nil, err
	}
	if json.Unmarshal(text, r) != nil {
		r.Message = string(text)
	}
	return nil, r
}

// call posts a request and returns the whole answer.
func (w *wire) call(ctx context.Context, path string, request []byte) ([]byte, error) {
	response, err := w.open(ctx, path, "application/proto", request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return io.ReadAll(response.Body)
}

// produce sends a Produce request to a gateway.
func (w *wire) produce(ctx context.Context, request []byte) error {
	answer, err := w.call(ctx, varvev1connect.LogServiceProduceProcedure, request)
	if err != nil {
		return err
	}
	var response varvev1.ProduceResponse
	if err := proto.Unmarshal(answer, &response); err != nil {
		return fmt.Errorf("the answer to Produce is malformed: %w", err)
	}
	for _, r := range response.GetResults() {
		if e := r.GetError(); e != nil {
			return &refusal{Code: e.GetCode(), Message: fmt.Sprintf("partition %d: %s", r.GetPartition(), e.GetMessage())}
		}
	}
	return nil
}
