package proxy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/continuation"
)

const (
	pathChat        = "/v1/chat/completions"
	pathCompletions = "/v1/completions"
	pathResponses   = "/v1/responses"
	pathEmbeddings  = "/v1/embeddings"
)

// query is a caller's request: what goes to a provider, and what the router is to know of it.
type query struct {
	path    string
	members []continuation.Member // of the body, but for those that are the proxy's
	stream  bool
	models  []string // in the order in which they are tried
	inTok   int64
	maxTok  int64 // 0: not said
	options options
	turns   []uint64 // see session
}

// body is what a provider is sent, of one model.
func (q *query) body(model string) []byte {
	all := slices.Clone(q.members)
	for i := range all {
		if all[i].Name == "model" {
			all[i].Value, _ = json.Marshal(model)
		}
	}
	return continuation.Object(all)
}

// read takes a request in.
func (s *Server) read(w http.ResponseWriter, r *http.Request) (*query, *APIError) {
	if r.Header.Get("Content-Encoding") != "" {
		return nil, &APIError{Status: http.StatusUnsupportedMediaType, Type: "invalid_request_error", Code: "encoded_body", Message: "The request's body is compressed: send it as it is."}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.config.MaxBody))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, &APIError{Status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Code: "body_too_large", Message: "The request's body has more than " + size(s.config.MaxBody) + "."}
	case err != nil:
		return nil, invalid("", "The request's body did not arrive whole.")
	}
	q := &query{path: r.URL.Path}
	if q.members, err = continuation.Members(body); err != nil {
		return nil, invalid("", "The request's body cannot be read: %v.", err)
	}
	return q, q.parse()
}

// parse reads what the router is to know, and takes out what is the proxy's.
func (q *query) parse() *APIError {
	var model string
	var text int
	for _, m := range q.members {
		if own := alike(m.Name); own != "" {
			return invalid(m.Name, "%q is %q in OpenAI's API: servers that do not tell them apart would read what was not looked at here.", redact.Line(m.Name), own)
		}
		wrong := error(nil)
		switch m.Name {
		case "model":
			wrong = json.Unmarshal(m.Value, &model)
		case "models":
			wrong = json.Unmarshal(m.Value, &q.models)
		case "provider":
			if e := q.options.parse(m.Value); e != nil {
				return e
			}
		case "stream":
			wrong = json.Unmarshal(m.Value, &q.stream)
		case "background":
			if string(m.Value) != "false" && string(m.Value) != "null" {
				return invalid("background", "Work in the background is not passed on: leave out \"background\".")
			}
		case "max_tokens", "max_completion_tokens", "max_output_tokens":
			var n *int64
			if wrong = json.Unmarshal(m.Value, &n); wrong == nil && n != nil {
				q.maxTok = max(q.maxTok, *n)
			}
		case "messages", "prompt", "input", "instructions", "tools":
			text += len(m.Value)
		}
		if wrong != nil {
			return invalid(m.Name, "%q has another type than OpenAI's API gives it.", m.Name)
		}
	}
	q.inTok = int64(text / bytesPerToken)
	if model != "" && !slices.Contains(q.models, model) {
		q.models = append([]string{model}, q.models...)
	}
	if len(q.models) == 0 || slices.Contains(q.models, "") {
		return invalid("model", "The request names no model: GET /v1/models lists them.")
	}
	if len(q.models) > maxModels {
		return invalid("models", "The request names more than %d models.", maxModels)
	}
	if q.path == pathEmbeddings {
		q.maxTok = embeds(q.members, q.inTok)
	}
	q.members = slices.DeleteFunc(q.members, func(m continuation.Member) bool { return m.Name == "models" || m.Name == "provider" })
	if !slices.ContainsFunc(q.members, func(m continuation.Member) bool { return m.Name == "model" }) {
		q.members = append(q.members, continuation.Member{Name: "model"})
	}
	q.turns = turns(q.members)
	return nil
}

// known are the members that are looked at here, for the model, the money and the time.
var known = []string{"model", "models", "provider", "stream", "background", "max_tokens", "max_completion_tokens", "max_output_tokens", "messages", "prompt", "input", "instructions", "tools"}

// alike is the member that a name would be if its letters were of another case; empty: it is that one itself, or none. Servers written in Go
// take the two for one, so that what is sent would not be what a key's models and the reservation were held against.
func alike(name string) string {
	for _, own := range known {
		if name != own && strings.EqualFold(name, own) {
			return own
		}
	}
	return ""
}

// embeds is for how many tokens of an answer's time embeddings are reserved, which have none: 10 ms for a token of the input and 20 ms for a
// text, while nothing is known of the server. Servers take a small part of that, and what is not used comes back.
func embeds(members []continuation.Member, in int64) int64 {
	texts := int64(1)
	for _, m := range members {
		var list []json.RawMessage
		if m.Name == "input" && json.Unmarshal(m.Value, &list) == nil {
			texts = int64(len(list))
		}
	}
	return 16 + in/2 + texts
}

// bytesPerToken is how many bytes of JSON a token has, about: an estimate of it is enough to compare providers.
const bytesPerToken = 4

// maxModels bounds the models that a request tries in turn.
const maxModels = 8

// answers is how many choices are asked for; 0: it is not known.
func (q *query) answers() int {
	n := 1
	for _, m := range q.members {
		if m.Name == "n" && json.Unmarshal(m.Value, &n) != nil || m.Name == "prompt" && m.Value[0] != '"' {
			return 0
		}
	}
	return n
}

// outgoing is the request as a provider gets it.
func (q *query) outgoing(r *http.Request, model string) *http.Request {
	body := q.body(model)
	out := r.Clone(r.Context())
	out.Header = http.Header{"Content-Type": {"application/json"}, "Accept": {"application/json"}}
	if q.stream {
		out.Header.Set("Accept", "text/event-stream")
	}
	out.Method, out.Host, out.RequestURI = http.MethodPost, "", ""
	out.URL.Scheme, out.URL.Host, out.URL.Path, out.URL.RawPath, out.URL.RawQuery = "", "", q.path, "", ""
	out.TransferEncoding, out.Trailer, out.Form, out.PostForm = nil, nil, nil, nil
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	out.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
	return out
}

func retryAfter(res *http.Response) time.Duration {
	seconds, err := time.ParseDuration(strings.TrimSpace(res.Header.Get("Retry-After")) + "s")
	if err != nil || seconds < 0 {
		return 0
	}
	return seconds
}
