package proxy

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/pool"
)

// APIError is an error as OpenAI's API has it. Its words are for who sent the request: which provider or budget it is, and what to do.
type APIError struct {
	Status     int           // of HTTP
	Type       string        // OpenAI's, such as invalid_request_error
	Code       string        // for programs, such as budget_used
	Param      string        // of the request, which is wrong; empty: none is
	Message    string        // for people
	RetryAfter time.Duration // when to send the request again; 0: do not
}

// Error is its message.
func (e *APIError) Error() string { return e.Message }

type errorBody struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    string  `json:"code"`
}

func (e *APIError) body() errorBody {
	b := errorBody{Message: e.Message, Type: e.Type, Code: e.Code}
	if e.Param != "" {
		b.Param = &e.Param
	}
	return b
}

// write sends it. Official clients send a request again at 408, 409, 429 and 5xx unless x-should-retry says otherwise, after the time that
// Retry-After says.
func (e *APIError) write(w http.ResponseWriter) {
	w.Header().Set("X-Should-Retry", strconv.FormatBool(e.RetryAfter > 0))
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	serve.JSON(w, e.Status, struct {
		Error errorBody `json:"error"`
	}{e.body()})
}

// event is the error within a stream whose answer has begun: official clients raise it. Of chats and completions it has the finish_reason
// "error" too, for clients that look at choices alone.
func (e *APIError) event(path string) []byte {
	if path == pathResponses {
		text, _ := json.Marshal(struct {
			Type    string    `json:"type"`
			Code    string    `json:"code"`
			Message string    `json:"message"`
			Error   errorBody `json:"error"`
		}{"error", e.Code, e.Message, e.body()})
		return fmt.Appendf(nil, "event: error\ndata: %s\n\n", text)
	}
	type choice struct {
		Index        int      `json:"index"`
		Delta        struct{} `json:"delta"`
		FinishReason string   `json:"finish_reason"`
	}
	text, _ := json.Marshal(struct {
		Error   errorBody `json:"error"`
		Choices []choice  `json:"choices"`
	}{e.body(), []choice{{FinishReason: "error"}}})
	return fmt.Appendf(nil, "data: %s\n\n", text)
}

// kind is what an error is, without its text: net/http's quotes what came over the connection, which may be a prompt or an answer.
func kind(err error) string {
	var code syscall.Errno
	var certificate *tls.CertificateVerificationError
	var dns *net.DNSError
	var timeout net.Error
	for _, own := range []error{errLimit, context.Canceled, context.DeadlineExceeded, pool.ErrClosed, pool.ErrEndpoint, io.ErrUnexpectedEOF, io.EOF} {
		if errors.Is(err, own) {
			return own.Error()
		}
	}
	switch {
	case errors.As(err, &code):
		return code.Error()
	case errors.As(err, &certificate):
		return "its certificate is not trusted"
	case errors.As(err, &dns):
		return "its name cannot be looked up"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return fmt.Sprintf("%T", err)
}

func invalid(param, format string, args ...any) *APIError {
	return &APIError{Status: http.StatusBadRequest, Type: "invalid_request_error", Code: "invalid_value", Param: param, Message: fmt.Sprintf(format, args...)}
}

func notFound(code, format string, args ...any) *APIError {
	return &APIError{Status: http.StatusNotFound, Type: "invalid_request_error", Code: code, Message: fmt.Sprintf(format, args...)}
}

func denied(status int, code, format string, args ...any) *APIError {
	return &APIError{Status: status, Type: "authentication_error", Code: code, Message: fmt.Sprintf(format, args...)}
}

// overBudget is 402, which clients do not send again.
func overBudget(format string, args ...any) *APIError {
	return &APIError{Status: http.StatusPaymentRequired, Type: "insufficient_quota", Code: "budget_used", Message: fmt.Sprintf(format, args...)}
}

// walletEmpty is 402, too: only who fills the wallet can help.
func walletEmpty(short *pool.WalletError) *APIError {
	words := short.Error()
	return &APIError{Status: http.StatusPaymentRequired, Type: "insufficient_quota", Code: "wallet_empty",
		Message: strings.ToUpper(words[:1]) + words[1:] + ", and send the request again."}
}

// busy is 429, which clients send again.
func busy(after time.Duration, code, format string, args ...any) *APIError {
	return &APIError{Status: http.StatusTooManyRequests, Type: "rate_limit_error", Code: code, RetryAfter: max(after, time.Second), Message: fmt.Sprintf(format, args...)}
}

// failedAt is 503, which clients send again.
func failedAt(format string, args ...any) *APIError {
	return &APIError{Status: http.StatusServiceUnavailable, Type: "server_error", Code: "providers_failed", RetryAfter: time.Second, Message: fmt.Sprintf(format, args...)}
}
