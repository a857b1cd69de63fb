// Package service serves a provider, a node or a watchtower over HTTP, with what only its operator should see beside it,
// and stops it in the order in which nothing is lost.
package service

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"
)

// StopTimeout bounds how long Serve takes to stop: what is being answered ends in it, and what drains.
const StopTimeout = time.Minute

// Service is what is served.
type Service struct {
	Handler         http.Handler // of renters, gateways or payees
	TLS             *tls.Config  // plain HTTP if nil
	Metrics, Health http.Handler // for the operator, at /metrics and /healthz; there is none of what is nil

	Pages map[string]http.Handler // more for the operator, by path, as http.ServeMux takes it; may be nil

	// Run works beside the requests until its context ends, and Serve ends with it. Its context is no child of Serve's: what
	// is served when an interrupt comes is still settled. Nothing runs if it is nil.
	Run func(ctx context.Context) error
	// Stop ends what is served before the connections close, such as by a stream's last record. Nothing is to be done if it is nil.
	Stop func(ctx context.Context) error
}

// NewServer serves strangers: none of them holds a connection by being slow to ask. It has no WriteTimeout, since leases are
// streams; the handler bounds each of its writes. How many connections there may be is for what stands in front of it, with TLS.
func NewServer(handler http.Handler) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second, // of a request, not of the stream that answers it
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    32 << 10,
	}
}

// Serve serves on two listeners, which it closes, until the context ends or something fails. The operator's may be nil.
func Serve(ctx context.Context, s Service, public, admin net.Listener) error {
	failed := make(chan error, 2)
	server := NewServer(s.Handler)
	server.TLSConfig = s.TLS
	go func() {
		if s.TLS != nil {
			failed <- server.ServeTLS(public, "", "")
			return
		}
		failed <- server.Serve(public)
	}()
	operator := operatorServer(s)
	if admin != nil {
		go func() { failed <- operator.Serve(admin) }()
	}
	work, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	ran := make(chan error, 1)
	if s.Run != nil {
		go func() { ran <- s.Run(work) }()
	}
	var err error
	over := false
	select {
	case err = <-failed:
	case err = <-ran:
		over = true
	case <-ctx.Done():
	}
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), StopTimeout)
	defer cancel()
	if s.Stop != nil {
		err = errors.Join(err, s.Stop(ending))
	}
	err = errors.Join(err, server.Shutdown(ending), operator.Shutdown(ending))
	if end(); s.Run != nil && !over {
		err = errors.Join(err, <-ran)
	}
	return err
}

func operatorServer(s Service) *http.Server {
	mux := http.NewServeMux()
	if s.Metrics != nil {
		mux.Handle("GET /metrics", s.Metrics)
	}
	if s.Health != nil {
		mux.Handle("GET /healthz", s.Health)
	}
	for path, page := range s.Pages {
		mux.Handle(path, page)
	}
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}
