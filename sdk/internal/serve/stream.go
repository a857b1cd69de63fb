package serve

import (
	"net/http"
	"sync"
	"time"
)

// LateTimeout bounds what a client makes a handler wait, in all, after its time
// is over.
const LateTimeout = 2 * time.Second

// piece is how much a client must take within one timeout.
const piece = 32 << 10

// Stream writes an answer that goes on. Each piece has a deadline of its own, so
// that a client that does not read holds nobody up. Between writes there is none:
// the server may pause for as long as it likes, also over HTTP/2, where a deadline
// that passes resets the stream. A stream's server calls Hurry when it is over.
type Stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration // of a piece

	mu    sync.Mutex
	began time.Time     // when the write that goes on began; zero: none does
	late  bool          // see End
	left  time.Duration // that writes may still take, once it is late
}

// NewStream writes to w. A client has so much time to take a piece.
func NewStream(w http.ResponseWriter, timeout time.Duration) *Stream {
	return &Stream{w: w, control: http.NewResponseController(w), timeout: timeout}
}

// Write writes p piece by piece. What it wrote may stay in a buffer until Flush.
func (s *Stream) Write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		next := p[n:min(n+piece, len(p))]
		err = s.timed(func() error {
			wrote, err := s.w.Write(next)
			n += wrote
			return err
		})
	}
	return n, err
}

// Flush sends what was written.
func (s *Stream) Flush() error { return s.timed(s.control.Flush) }

// End has the time of the handler be over: its writes, the one that goes on and
// those to come, wait for LateTimeout in all.
func (s *Stream) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.late, s.left = true, LateTimeout
	if !s.began.IsZero() {
		s.began = time.Now()
		_ = s.control.SetWriteDeadline(s.began.Add(min(s.left, s.timeout)))
	}
}

// timed does one write within its time.
func (s *Stream) timed(do func() error) error {
	s.begin()
	defer s.done()
	return do()
}

func (s *Stream) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began = time.Now()
	timeout := s.timeout
	if s.late {
		timeout = min(timeout, s.left)
	}
	_ = s.control.SetWriteDeadline(s.began.Add(timeout))
}

func (s *Stream) done() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.late {
		s.left -= time.Since(s.began)
	}
	s.began = time.Time{}
	_ = s.control.SetWriteDeadline(time.Time{})
}
