package x402

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/gpupay/gpupay/sdk/wire"
)

// The headers.
const (
	HeaderRequired  = "PAYMENT-REQUIRED"  // of a 402: what to pay
	HeaderSignature = "PAYMENT-SIGNATURE" // of a request: the payment
	HeaderResponse  = "PAYMENT-RESPONSE"  // of an answer: what became of it
)

// HeaderIdempotencyKey is the header by which a client says that a request is one
// that it sent before. Who pays with the same voucher and the same key is answered
// from a copy, for a day; up to 255 bytes of any text that is new for each payment.
const HeaderIdempotencyKey = "Idempotency-Key"

const (
	// maxRead bounds what is read from one header. A deposit is about 2 KiB.
	maxRead = 16 << 10
	// maxWritten is less: by default node takes 16 KiB for all headers of an answer.
	maxWritten = 8 << 10
)

var (
	// ErrMalformed is wrapped by every parse error that has no Code.
	ErrMalformed = wire.ErrMalformed
	// ErrNone means that there is no such header.
	ErrNone = errors.New("no x402 payment header")
)

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// set writes v as the only value of a header.
func set(h http.Header, name string, v any) error {
	raw, err := marshal(v)
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	text := base64.StdEncoding.EncodeToString(raw)
	if len(text) > maxWritten {
		return fmt.Errorf("writing %s: %d bytes, at most %d get through to every client", name, len(text), maxWritten)
	}
	h.Set(name, text)
	return nil
}

// get reads a header's only value.
func get(h http.Header, name string) (object, error) {
	values := h.Values(name)
	if len(values) == 0 {
		return object{}, fmt.Errorf("%w: %s", ErrNone, name)
	}
	if len(values) > 1 {
		return object{}, fmt.Errorf("%s: %w", name, malformed("%d headers, want one", len(values)))
	}
	raw, err := unbase64(values[0])
	if err != nil {
		return object{}, fmt.Errorf("%s: %w", name, err)
	}
	o, err := parse(raw)
	if err != nil {
		return object{}, fmt.Errorf("%s: %w", name, err)
	}
	return o, nil
}

func unbase64(text string) ([]byte, error) {
	if len(text) > maxRead {
		return nil, malformed("%d bytes, at most %d are read", len(text), maxRead)
	}
	if strings.ContainsAny(text, "\r\n") { // which encoding/base64 would skip
		return nil, malformed("not base64: a line break")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, malformed("not base64: %v", err)
	}
	return raw, nil
}

// read ends the reading of a message.
func read[T any](name string, o object, value T) (T, error) {
	if err := *o.err; err != nil {
		var none T
		return none, fmt.Errorf("%s: %w", name, err)
	}
	return value, nil
}

func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}
