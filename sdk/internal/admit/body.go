package admit

import (
	"io"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// maxBody bounds what is read of a body. The wire has none, but an HTTP server reads on to the end of what a client announced.
const maxBody = 64 << 10

// DrainBody reads a request's body and forgets it: the protocol has none. It fails where a client sends none of what it announced
// within serve.BodyTimeout, or too much: its connection is closed then.
func DrainBody(w http.ResponseWriter, r *http.Request) error {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	control := http.NewResponseController(w)
	// A ResponseWriter without deadlines leaves it to the server's own.
	_ = control.SetReadDeadline(time.Now().Add(serve.BodyTimeout))
	if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
		w.Header().Set("Connection", "close")
		return wire.MalformedCredential.With("the body was not read: credentials go into the Authorization header")
	}
	_ = control.SetReadDeadline(time.Time{})
	return nil
}
