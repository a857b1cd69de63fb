package upstream

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

// API is a set of routes that clients know.
type API string

const (
	// OpenAI is what OpenAI's clients call, and beside it the messages of Anthropic's and the reranking of Cohere's, as vLLM, SGLang,
	// llama.cpp, TGI and ollama serve them under /v1.
	OpenAI API = "openai"
	// Ollama is what ollama's clients call for answers, embeddings, and to see which models there are.
	Ollama API = "ollama"
)

// Prefix is a path that an operator has served beside the APIs, and all paths below it that are no control routes.
type Prefix struct {
	// Path begins with a slash, and does not end with one. It is no control route and has none of ollama's or OpenAI's API below it
	// by being their root: "/", "/api" and "/v1" are refused.
	Path string
	// Methods default to GET and POST.
	Methods []string
	// Query names the parameters that are passed on. By default there are none: they often hold keys.
	Query []string
	// Judged has a stream's events be read for errors and for its end, as those of the APIs are. Set it only where the server puts
	// what a model writes into JSON strings: where it is sent as it is, a model could write what looks like an error.
	Judged bool
}

// A Route is where a request goes.
type Route struct {
	// Path is what the upstream is asked for, under the path of its URL.
	Path string
	// Query holds the parameters that are passed on, encoded.
	Query string

	ollama bool // errors have ollama's shape
	judged bool
	any    bool // a document may be no object and no array
}

var openAI = []string{
	"POST /v1/chat/completions",
	"POST /v1/completions",
	"POST /v1/responses",
	"POST /v1/embeddings",
	"POST /v1/rerank",
	"POST /v1/messages",
	"POST /v1/messages/count_tokens",
	"POST /v1/audio/speech",
	"POST /v1/audio/transcriptions",
	"POST /v1/audio/translations",
	"POST /v1/images/generations",
	"POST /v1/images/edits",
	"GET /v1/models",
}

var ollama = []string{
	"POST /api/chat",
	"POST /api/generate",
	"POST /api/embed",
	"POST /api/embeddings",
	"POST /api/show",
	"GET /api/tags",
	"GET /api/version",
}

// oneModel is the route of a single model, whose name may have slashes.
const oneModel = "/v1/models/"

// routes is what a Proxy serves.
type routes struct {
	base     string           // path of the upstream's URL
	exact    map[string]Route // by method and path
	models   bool             // whether single models are shown
	prefixes []Prefix
}

func newRoutes(base string, apis []API, prefixes []Prefix) (routes, error) {
	t := routes{base: base, exact: make(map[string]Route)}
	for _, api := range apis {
		switch api {
		case OpenAI:
			t.add(openAI, Route{judged: true})
			t.models = true
		case Ollama:
			t.add(ollama, Route{judged: true, ollama: true})
		default:
			return t, fmt.Errorf("there is no API %q: give %q or %q", api, OpenAI, Ollama)
		}
	}
	for _, prefix := range prefixes {
		if err := prefix.check(base); err != nil {
			return t, err
		}
		if prefix.Methods == nil {
			prefix.Methods = []string{http.MethodGet, http.MethodPost}
		}
		t.prefixes = append(t.prefixes, prefix)
	}
	if len(t.exact)+len(t.prefixes) == 0 {
		return t, fmt.Errorf("no API and no prefix is served: give one")
	}
	return t, nil
}

func (t routes) add(all []string, route Route) {
	for _, known := range all {
		_, route.Path, _ = strings.Cut(known, " ")
		route.any = strings.HasPrefix(route.Path, "/v1/audio/") // its text may come as it is
		t.exact[known] = route
	}
}

// check refuses a prefix under which control routes would be reached.
func (p Prefix) check(base string) error {
	switch {
	case !plain(p.Path):
		return fmt.Errorf("prefix %q is no path that is served: it begins with a slash, ends with none, and has neither dots at the ends of its parts nor anything encoded", p.Path)
	case base+p.Path == "/api" || base+p.Path == "/v1":
		return fmt.Errorf("prefix %q has control routes below it: name the routes themselves, or the API", p.Path)
	case controls(p.Path) || controls(base+p.Path):
		return fmt.Errorf("prefix %q is a control route of an inference server: whoever pays could stop it or change what it serves", p.Path)
	}
	for _, method := range p.Methods {
		if method != http.MethodGet && method != http.MethodPost && method != http.MethodPut && method != http.MethodDelete {
			return fmt.Errorf("prefix %q: method %q is not passed on", p.Path, method)
		}
	}
	return nil
}

// match finds the route of a request. Only a path that is written plainly has one, so that there is one way to read it for whoever
// comes after.
func (t routes) match(r *http.Request) (Route, bool) {
	if r.URL.Opaque != "" || r.URL.EscapedPath() != r.URL.Path || !plain(r.URL.Path) || controls(r.URL.Path) || controls(t.base+r.URL.Path) {
		return Route{}, false
	}
	path := r.URL.Path
	if route, ok := t.exact[r.Method+" "+path]; ok {
		return route, true
	}
	if t.models && r.Method == http.MethodGet && strings.HasPrefix(path, oneModel) {
		return Route{Path: path, judged: true}, true
	}
	for _, prefix := range t.prefixes {
		below, ok := strings.CutPrefix(path, prefix.Path)
		if ok && (below == "" || below[0] == '/') && slices.Contains(prefix.Methods, r.Method) {
			return Route{Path: path, Query: pick(r, prefix.Query), judged: prefix.Judged, any: true}, true
		}
	}
	return Route{}, false
}

// pick encodes anew the parameters that have one of the names.
func pick(r *http.Request, names []string) string {
	if len(names) == 0 || r.URL.RawQuery == "" {
		return ""
	}
	all := r.URL.Query()
	for name := range all {
		if !slices.Contains(names, name) {
			all.Del(name)
		}
	}
	return all.Encode()
}

// maxPath bounds a path, in bytes.
const maxPath = 512

// plain says whether a path has one reading: parts of letters, digits and "-_.:@+", none of them empty, none that begins or ends
// with a dot.
func plain(path string) bool {
	if len(path) > maxPath || !strings.HasPrefix(path, "/") {
		return false
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "" || part[0] == '.' || part[len(part)-1] == '.' {
			return false
		}
		for _, c := range []byte(part) {
			letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
			if !letter && strings.IndexByte("-_.:@+", c) < 0 {
				return false
			}
		}
	}
	return true
}
