package serve

import (
	"io"
	"net/http"
)

// Events is a text/event-stream to a client.
type Events struct {
	w   http.ResponseWriter
	out *Stream
}

// NewEvents is a stream of events of which none was written. Each is given WriteTimeout.
func NewEvents(w http.ResponseWriter) Events { return Events{w, NewStream(w, WriteTimeout)} }

// Begin sends the headers.
func (e Events) Begin() {
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	e.w.WriteHeader(http.StatusOK)
}

// Send writes an event, and has it go out at once.
func (e Events) Send(event io.WriterTo) error {
	if _, err := event.WriteTo(e.out); err != nil {
		return err
	}
	return e.out.Flush()
}

// Comment writes what no client takes for an event, and has it go out at once.
func (e Events) Comment(text string) error {
	if _, err := io.WriteString(e.out, text); err != nil {
		return err
	}
	return e.out.Flush()
}
