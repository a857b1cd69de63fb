package serve_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
)

// TestStream: over HTTP/1.1 and HTTP/2, a client that does not read ends a stream when a piece had its time, or when the handler's
// time is over, and one that reads has all of it, whatever pauses the server makes and however late its last words come.
func TestStream(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		timeout time.Duration
		reads   bool
		serve   func(*serve.Stream) error
	}{
		"a client that does not read": {time.Second, false, func(s *serve.Stream) error {
			_, err := s.Write(make([]byte, 64<<20)) // more than sockets hold
			return err
		}},
		"a client that does not read, past its time": {time.Hour, false, func(s *serve.Stream) error {
			defer time.AfterFunc(100*time.Millisecond, s.End).Stop()
			_, err := s.Write(make([]byte, 64<<20))
			return err
		}},
		"a client that does not read, late": {time.Hour, false, func(s *serve.Stream) error {
			s.End()
			_, err := s.Write(make([]byte, 64<<20))
			return err
		}},
		"a server that pauses": {2 * time.Second, true, func(s *serve.Stream) error { return twice(s, 3*time.Second) }},
		"a server that pauses, late": {time.Hour, true, func(s *serve.Stream) error {
			s.End()
			return twice(s, serve.LateTimeout*5/4)
		}},
	} {
		for protocol, h2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
			t.Run(name+" "+protocol, func(t *testing.T) {
				t.Parallel()
				served := make(chan error, 1)
				s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					served <- c.serve(serve.NewStream(w, c.timeout))
				}))
				s.EnableHTTP2 = h2
				s.StartTLS()
				defer s.Close()
				defer s.CloseClientConnections()
				resp, err := s.Client().Get(s.URL)
				if err != nil {
					t.Fatal(err)
				}
				defer resp.Body.Close()
				if resp.ProtoMajor == 2 != h2 {
					t.Fatal(resp.Proto)
				}
				if c.reads {
					if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != 2*size {
						t.Errorf("%d bytes, %v", n, err)
					}
				}
				select {
				case err := <-served:
					if c.reads != (err == nil) {
						t.Error(err)
					}
				case <-time.After(20 * time.Second):
					t.Error("the stream waits for its client")
				}
			})
		}
	}
}

const size = 100 << 10

// twice writes before and after a pause.
func twice(s *serve.Stream, pause time.Duration) error {
	_, err := s.Write(make([]byte, size))
	if err == nil {
		err = s.Flush()
	}
	time.Sleep(pause) // deadlines are of the wall clock
	if err == nil {
		_, err = s.Write(make([]byte, size))
	}
	return err
}
