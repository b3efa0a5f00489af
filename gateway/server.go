package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"runtime/debug"
	"time"

	"connectrpc.com/connect/v2"
	"connectrpc.com/connect/v2/connectgzip"
	"connectrpc.com/connect/v2/connecthttp"
	"connectrpc.com/grpcreflect/v2"

	"github.com/varvelog/varve/api/varve/v1/varvev1connect"
)

const (
	// maxCall bounds a call that is not a stream, whatever deadline its client set.
	// Deleting a topic of very many partitions takes longest; it can be repeated.
	maxCall = 10 * time.Minute
	// maxHeaderBytes bounds the headers of a request.
	maxHeaderBytes = 64 << 10
	// maxStreams bounds the calls that one HTTP/2 connection has open: followers.
	maxStreams = 1000
)

// APIServer has the services of the API.
func (g *Gateway) APIServer() *connect.Server {
	server := connect.NewServer(g.intercept)
	varvev1connect.RegisterLogServiceHandler(server, &logService{g})
	varvev1connect.RegisterTopicServiceHandler(server, &topicService{g})
	varvev1connect.RegisterClusterServiceHandler(server, &clusterService{g})
	return server
}

// Handler serves the API, reflection, /livez, /readyz and /metrics.
func (g *Gateway) Handler() http.Handler {
	server := g.APIServer()
	grpcreflect.Register(server)

	api := http.NewServeMux()
	connecthttp.Mount(api, server, transportOptions(g.config.MaxRequestBytes, g.reader.room)...)
	failures := connecthttp.NewErrorWriter()
	api.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { unknownPath(w, r, failures) })
	limited := limitRequest(api, g.config.MaxRequestBytes, bodyTime)
	admitted := newAdmission(g.config, failures).wrap(g.bodies.wrap(api, g.serving))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", g.serveRoot)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]any{"live": true})
	})
	mux.HandleFunc("GET /readyz", g.serveReady)
	mux.Handle("GET /metrics", g.meters.handler())
	mux.Handle(varvev1connect.LogServiceProduceProcedure, limitRequest(admitted, g.config.MaxRequestBytes, bodyTime))
	for _, service := range []string{varvev1connect.LogServiceName, varvev1connect.TopicServiceName, varvev1connect.ClusterServiceName} {
		mux.Handle("/"+service+"/", limited)
	}
	mux.Handle("/", api) // reflection, whose streams go both ways
	return mux
}

// transportOptions are what the services are mounted with. Answers are never
// compressed: payload is compressed by its producer, or not worth it. Requests may be;
// the transport stops inflating at the limit.
func transportOptions(limit int, room *messageRoom) []connecthttp.Option {
	return []connecthttp.Option{
		connecthttp.WithReadMaxBytes(limit),
		connecthttp.WithCodecs(newBinaryCodec(room), newJSONCodec()),
		connecthttp.WithCompressors(connectgzip.New()),
		connecthttp.WithCompressMinBytes(math.MaxInt),
	}
}

// NewHTTPServer returns a server of Handler for HTTP/1.1 and unencrypted HTTP/2. It has
// no limit on how long an answer takes, since followers stay for days: requests are
// limited as they are read, writes as they stall.
func (g *Gateway) NewHTTPServer() *http.Server { return g.httpServer(g.Handler()) }

// NewPeerHTTPServer returns a server of PeerServer, for unencrypted HTTP/2.
func (g *Gateway) NewPeerHTTPServer() *http.Server {
	mux := http.NewServeMux()
	connecthttp.Mount(mux, g.PeerServer(), connecthttp.WithReadMaxBytes(peerMessage), connecthttp.WithCompressMinBytes(math.MaxInt))
	return g.httpServer(mux)
}

func (g *Gateway) httpServer(handler http.Handler) *http.Server {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         &protocols,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams:          maxStreams,
			MaxReadFrameSize:              1 << 20,
			MaxReceiveBufferPerStream:     4 << 20,
			MaxReceiveBufferPerConnection: 16 << 20,
			SendPingTimeout:               30 * time.Second, // finds connections that are gone
			PingTimeout:                   15 * time.Second,
			WriteByteTimeout:              time.Minute,
		},
		ErrorLog: httpLog(g.log),
	}
}

// intercept stands around every call: not before the gateway serves, not for ever,
// panics and errors in the words of the API.
func (g *Gateway) intercept(next connect.ServerFunc) connect.ServerFunc {
	return func(ctx context.Context, spec connect.Spec, stream connect.ServerStream) (err error) {
		defer func() {
			if p := recover(); p != nil {
				g.meters.panics.Add(1)
				g.log.Error("panic", "procedure", spec.Procedure, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
				err = connect.NewError(connect.CodeInternal, internalMessage)
			}
		}()
		g.resting.touch()
		if err := g.serving(); err != nil && !ofPeers(spec) {
			return g.connectError(err)
		}
		if spec.StreamType == connect.StreamTypeUnary {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, maxCall)
			defer cancel()
		}
		err = next(ctx, spec, stream)
		if err == nil {
			return nil // not a nil *connect.Error
		}
		if cutShort(err) {
			return connect.NewError(connect.CodeInvalidArgument, "the request ended before its body was complete").WithCause(err)
		}
		return g.connectError(err)
	}
}

// serving is what callers are told when this gateway does not serve, or not yet.
func (g *Gateway) serving() error {
	if s := g.state.Load(); !s.ready && s.reason != stateDraining {
		return refuse(connect.CodeUnavailable, reasonDraining, "the gateway does not serve: %s", s.reason).withRetriable()
	}
	return nil
}

// cutShort says that the transport (nobody else here makes a *connect.Error) could not
// read a request to its end.
func cutShort(err error) bool {
	var e *connect.Error
	if !errors.As(err, &e) || !errors.Is(e, io.ErrUnexpectedEOF) {
		return false
	}
	// Other codes say that what came was complete, and wrong.
	return e.Code() == connect.CodeUnknown || e.Code() == connect.CodeInternal || e.Code() == connect.CodeCanceled
}

// stateDraining is the reason of Ready while what was accepted is being finished.
const stateDraining = "draining"

// unknownPath answers what is neither a method nor a page.
func unknownPath(w http.ResponseWriter, r *http.Request, failures *connecthttp.ErrorWriter) {
	if r.Method != http.MethodPost || !failures.IsSupported(r) {
		http.Error(w, fmt.Sprintf("there is nothing at %.200q; the API is described at /", r.URL.Path), http.StatusNotFound)
		return
	}
	// A failed write means that the client is gone.
	_ = failures.Write(w, r, connect.Errorf(connect.CodeUnimplemented, "there is no method %.200q; methods are named like %s",
		r.URL.Path, varvev1connect.LogServiceProduceProcedure))
}

func (g *Gateway) serveRoot(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	fmt.Fprintf(w, `varve %s, a log on object storage. Gateway %s.

The API speaks Connect, gRPC and gRPC-Web on this port, and describes itself by gRPC reflection:

    curl -H 'content-type: application/json' http://HOST%s \
         -d '{"topic":"hello-world","records":[{"key":"aw==","value":"aGVsbG8="}]}'

/livez, /readyz and /metrics are for whoever runs it.
`, g.config.Version, g.ID(), varvev1connect.LogServiceProduceProcedure)
}

func (g *Gateway) serveReady(w http.ResponseWriter, _ *http.Request) {
	ready, reason := g.Ready()
	if ready {
		writeJSON(w, http.StatusOK, map[string]any{"ready": true})
		return
	}
	writeJSON(w, http.StatusServiceUnavailable, map[string]any{"ready": false, "reason": reason})
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// A failed write means that the client is gone.
	_ = json.NewEncoder(w).Encode(value)
}
