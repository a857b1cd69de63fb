// Package serve has what the servers of this module do alike for every client.
package serve

import (
	"encoding/json"
	"net/http"
	"time"
)

const (
	// BodyTimeout bounds the time in which a client must send its body.
	BodyTimeout = 10 * time.Second
	// WriteTimeout bounds one write to a client that does not read: of a whole
	// answer, or of a piece of a Stream.
	WriteTimeout = 30 * time.Second
)

// Hurry bounds the time in which a client must take an answer that is no
// stream.
func Hurry(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(WriteTimeout))
}

// JSON answers with a document that no cache keeps.
func JSON(w http.ResponseWriter, status int, answer any) {
	Hurry(w)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(answer) // the client is gone if this fails: nobody is left to tell
}
