package proxy

import (
	"crypto/rand"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/units"
)

// Server is OpenAI's API on this machine.
type Server struct {
	config   Config
	router   *route.Router
	start    time.Time
	mux      *http.ServeMux
	sessions session
	learned  learned
	stats    *stats
	running  atomic.Int64 // reservations that are not corrected

	mu        sync.Mutex // of what follows
	endpoints []route.Endpoint
	looked    time.Time
}

// lookEvery is how long the pool's endpoints are taken to be the same.
const lookEvery = 500 * time.Millisecond

// New makes a Server. It starts nothing: it lives in its requests.
func New(config Config) (*Server, error) {
	if err := config.defaults(); err != nil {
		return nil, err
	}
	router, err := config.router()
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	s := &Server{config: config, router: router, start: config.Now(), mux: http.NewServeMux(), stats: newStats(config.Decimals)}
	s.sessions.where = make(map[uint64]turn)
	s.learned.tokens = make(map[[2]string]float64)
	for _, path := range []string{pathChat, pathCompletions, pathResponses, pathEmbeddings} {
		s.mux.HandleFunc("POST "+path, s.ask)
	}
	s.mux.HandleFunc("GET /v1/models", s.models)
	s.mux.HandleFunc("GET /v1/models/{model...}", s.model)
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		notFound("not_served", "%s %s is not served here. Served are chat/completions, completions, responses, embeddings and models, below /v1.", r.Method, r.URL.Path).write(w)
	})
	return s, nil
}

// ServeHTTP answers a caller of this machine, or of Config.Hosts.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if e := s.guard(r); e != nil {
		e.write(w)
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" { // of Config.Origins
		h := w.Header()
		h.Set("Access-Control-Allow-Origin", origin)
		h.Add("Vary", "Origin")
		h.Set("Access-Control-Expose-Headers", strings.Join([]string{HeaderProvider, HeaderCost, HeaderBudgetLeft, HeaderAttempts}, ", "))
		if r.Method == http.MethodOptions {
			h.Set("Access-Control-Allow-Methods", "GET, POST")
			h.Set("Access-Control-Allow-Headers", "*, Authorization")
			w.WriteHeader(http.StatusNoContent)
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

// guard refuses what a web page may have sent, from a browser on this machine: under a name that its owner had lead here, or as itself.
func (s *Server) guard(r *http.Request) *APIError {
	name := r.Host
	if host, _, err := net.SplitHostPort(name); err == nil {
		name = host
	}
	_, literal := netip.ParseAddr(strings.Trim(name, "[]")) // no name of anybody's leads here then
	if name = strings.ToLower(strings.TrimSuffix(name, ".")); literal != nil && name != "localhost" && !slices.Contains(s.config.Hosts, name) {
		return denied(http.StatusForbidden, "host_refused", "This proxy is not called %q: use http://127.0.0.1 and its port, or start it with --host %s if that name is its own.", redact.Line(name), redact.Line(name))
	}
	if origin := r.Header.Get("Origin"); origin != "" && !slices.Contains(s.config.Origins, origin) {
		return denied(http.StatusForbidden, "origin_refused", "Scripts of the web page %q may not spend this machine's budget. Start the proxy with --origin %s if they shall.", redact.Line(origin), redact.Line(origin))
	}
	return nil
}

// caller is whose request it is.
func (s *Server) caller(r *http.Request) (Key, *APIError) {
	if s.config.Keys == nil {
		return Key{}, nil
	}
	secret, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	key, err := s.config.Keys.find(secret)
	switch {
	case err == errNoKey:
		return Key{}, denied(http.StatusUnauthorized, "invalid_api_key", "This proxy wants a key of its own as OPENAI_API_KEY. Make one with: gpupay proxy key add NAME")
	case err != nil:
		s.config.Log.Error("the file of local keys cannot be read", "err", err)
		return Key{}, denied(http.StatusInternalServerError, "proxy_failed", "The file of local keys cannot be read: the proxy's log says why.")
	}
	return key, nil
}

// ask answers a request that a provider has to be paid for.
func (s *Server) ask(w http.ResponseWriter, r *http.Request) {
	c := &call{Server: s, w: w, r: r, began: s.config.Now()}
	c.line.ID = "req-" + rand.Text()
	w.Header().Set("X-Request-Id", c.line.ID)
	defer c.log()
	var failed *APIError
	if c.key, failed = s.caller(r); failed != nil {
		c.fail(failed)
		return
	}
	if c.q, failed = s.read(w, r); failed != nil {
		c.fail(failed)
		return
	}
	c.whole = c.q
	if len(c.key.Models) > 0 {
		c.q.models = slices.DeleteFunc(c.q.models, func(m string) bool { return !slices.Contains(c.key.Models, m) })
		if len(c.q.models) == 0 {
			c.fail(&APIError{Status: http.StatusForbidden, Type: "invalid_request_error", Code: "model_not_allowed", Param: "model",
				Message: "The local key " + c.key.Name + " is for " + strings.Join(c.key.Models, ", ") + " alone."})
			return
		}
	}
	c.serve()
}

// refresh has the router know the pool's endpoints, which it looks up anew now and then, and where nobody is known for what is asked for.
func (s *Server) refresh(models []string) []route.Endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := slices.ContainsFunc(s.endpoints, func(e route.Endpoint) bool { return slices.Contains(models, e.Model) })
	if now := s.config.Now(); !known || now.Sub(s.looked) > lookEvery {
		endpoints := s.config.Pool.Endpoints()
		if err := s.router.Set(endpoints); err != nil {
			s.config.Log.Error("the list of providers is wrong: the one before it stays", "err", err)
			return s.endpoints
		}
		s.endpoints, s.looked = endpoints, now
	}
	return s.endpoints
}

// clock is the router's.
func (s *Server) clock() time.Duration { return s.config.Now().Sub(s.start) }

// money is an amount in dollars: whole base units, rounded up.
func (s *Server) money(n route.Nano) string { return units.Format(n.RoundUp(), s.config.Decimals) }

// learned is how long answers are, by local key and model.
type learned struct {
	mu     sync.Mutex
	tokens map[[2]string]float64
}

const usualAnswer = 150 // tokens, while nothing is known

func (l *learned) expect(key, model string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n, known := l.tokens[[2]string{key, model}]; known {
		return max(1, int64(n))
	}
	return usualAnswer
}

func (l *learned) add(key, model string, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := [2]string{key, model}
	was, known := l.tokens[at]
	if !known {
		was = float64(n)
	}
	l.tokens[at] = was + 0.2*(float64(n)-was)
}

func size(bytes int64) string {
	if bytes >= 1<<20 {
		return fmt.Sprintf("%d MiB", bytes>>20)
	}
	return fmt.Sprintf("%d bytes", bytes)
}
