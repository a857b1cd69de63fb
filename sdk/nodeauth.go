package sdk

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// A gateway and a node know each other by a secret that both hold. Every request
// and every answer carries a MAC over all that it says, so that neither can be
// made up or changed on the way; a request also carries its time and a number
// that is used once, so that it cannot be played again. What they say can be
// read on the way: TLS or a private network keeps it from strangers.
const (
	headerNodeTime  = "Gpupay-Time"  // unix milliseconds
	headerNodeNonce = "Gpupay-Nonce" // 32 hex digits, never the same twice
	headerNodeBody  = "Gpupay-Body"  // SHA-256 of the body, hex
	headerNodeMAC   = "Gpupay-Mac"   // HMAC-SHA256, hex
)

// nodeWindow is how far the clocks of a gateway and a node may be apart.
const nodeWindow = time.Minute

// minNodeSecret is the fewest characters of a secret: less could be guessed.
const minNodeSecret = 32

// errNodeSecret says that the other side does not hold the secret.
var errNodeSecret = errors.New("it does not hold the secret for this node's name")

// nodeKey is what both sides make their MACs with: the secret bound to one node,
// so that what is meant for one is worth nothing at another.
type nodeKey []byte

func newNodeKey(name, secret string) (nodeKey, error) {
	if name == "" {
		return nil, errors.New("it has no name")
	}
	if len(secret) < minNodeSecret {
		return nil, fmt.Errorf("the secret has %d characters, want at least %d: make one with `openssl rand -hex 32`", len(secret), minNodeSecret)
	}
	return nodeKey(mac([]byte(secret), "gpupay node", name)), nil
}

// mac is over the parts and where each of them ends.
func mac(key []byte, parts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, part := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(part), part)
	}
	return h.Sum(nil)
}

func (k nodeKey) request(r *http.Request) string {
	return hex.EncodeToString(mac(k, "request", r.Method, r.URL.RequestURI(),
		r.Header.Get(headerNodeTime), r.Header.Get(headerNodeNonce), r.Header.Get(headerNodeBody)))
}

// answer is over what was asked, too: an answer to another request is none.
func (k nodeKey) answer(request string, status int, body []byte) string {
	return hex.EncodeToString(mac(k, "answer", request, strconv.Itoa(status), digestHex(body)))
}

func digestHex(body []byte) string {
	sum := sha256.Sum256(body)
	return hex.EncodeToString(sum[:])
}

// sign makes a request ours.
func (k nodeKey) sign(r *http.Request, body []byte, now time.Time) {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails: it ends the program instead
	r.Header.Set(headerNodeTime, strconv.FormatInt(now.UnixMilli(), 10))
	r.Header.Set(headerNodeNonce, hex.EncodeToString(nonce))
	r.Header.Set(headerNodeBody, digestHex(body))
	r.Header.Set(headerNodeMAC, k.request(r))
}

// verify checks an answer to a request.
func (k nodeKey) verify(r *http.Request, resp *http.Response, body []byte) error {
	want := k.answer(r.Header.Get(headerNodeMAC), resp.StatusCode, body)
	if !hmac.Equal([]byte(want), []byte(resp.Header.Get(headerNodeMAC))) {
		return fmt.Errorf("%w: it answered %s", errNodeSecret, resp.Status)
	}
	return nil
}

// nodeGate lets in what is signed with the key, in time, and once.
type nodeGate struct {
	key     nodeKey
	started time.Time // what was played before it is refused by its time
	now     func() time.Time

	mu   sync.Mutex
	seen map[string]time.Time // nonces, until when they are refused
}

var (
	errNodeTime   = errors.New("its time is not ours: compare the clocks of gateway and node")
	errNodeReplay = errors.New("it was sent before")
)

// admit says whose a request is before a byte of its body is read: to a stranger
// it costs one MAC.
func (g *nodeGate) admit(r *http.Request) error {
	if !hmac.Equal([]byte(g.key.request(r)), []byte(r.Header.Get(headerNodeMAC))) {
		return errNodeSecret
	}
	ms, err := strconv.ParseInt(r.Header.Get(headerNodeTime), 10, 64)
	if err != nil {
		return errNodeTime
	}
	now, at := g.now(), time.UnixMilli(ms)
	if at.Before(now.Add(-nodeWindow)) || at.After(now.Add(nodeWindow)) || at.Before(g.started) {
		return fmt.Errorf("%w: it says %s, it is %s here", errNodeTime, at.UTC().Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return g.once(r.Header.Get(headerNodeNonce), at.Add(nodeWindow), now)
}

func (g *nodeGate) once(nonce string, until, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, used := g.seen[nonce]; used {
		return errNodeReplay
	}
	if len(g.seen) >= 1024 && len(g.seen)&(len(g.seen)-1) == 0 { // at each doubling: cheap, and none is forgotten early
		for old, end := range g.seen {
			if end.Before(now) {
				delete(g.seen, old)
			}
		}
	}
	g.seen[nonce] = until
	return nil
}

// body reads what the MAC is over.
func (g *nodeGate) body(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxNodeRequest))
	if err != nil {
		return nil, err
	}
	if digestHex(raw) != r.Header.Get(headerNodeBody) {
		return nil, fmt.Errorf("%w: the body is another one", errNodeSecret)
	}
	return raw, nil
}

// sealed is an answer that is complete before its first byte is sent, so that its
// MAC can stand in front.
type sealed struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (s *sealed) Header() http.Header         { return s.header }
func (s *sealed) Write(b []byte) (int, error) { return s.body.Write(b) }
func (s *sealed) WriteHeader(status int)      { s.status = status }

// seal sends an answer to who asked.
func (g *nodeGate) seal(w http.ResponseWriter, r *http.Request, s *sealed) {
	s.header.Set(headerNodeMAC, g.key.answer(r.Header.Get(headerNodeMAC), s.status, s.body.Bytes()))
	w.WriteHeader(s.status)
	_, _ = w.Write(s.body.Bytes())
}
