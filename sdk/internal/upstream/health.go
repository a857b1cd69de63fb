package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/internal/pace"
	"github.com/gpupay/gpupay/sdk/internal/reach"
)

const (
	// probeEvery and probeTimeout make that an upstream which is down is known within probeEvery + 2*probeTimeout, less than 10 s: it is
	// down when two probes in a row have failed, the second of which comes at once.
	probeEvery   = 3 * time.Second
	probeTimeout = 3 * time.Second
	// leastPause is between two probes, whatever failed meanwhile.
	leastPause = 200 * time.Millisecond
	// maxList bounds a list of models, in bytes, and maxModels how many are taken from it.
	maxList   = 1 << 20
	maxModels = 1000
)

// Health is whether the upstream works.
type Health struct {
	Up bool
	// Since is when that was noticed.
	Since time.Time
	// Err says why it is down.
	Err error
}

// Watch asks the upstream whether it works until ctx ends, and tells each change; the first answer is one. A call of tell holds
// up the next probe. An upstream that is silent when it is asked, but sends answers, is not down: it has much to do.
func (p *Proxy) Watch(ctx context.Context, tell func(Health)) {
	var now *Health
	for failures := 0; ; {
		began := time.Now()
		err := p.Probe(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errSilent) && p.heardSince(began) {
			err = nil
		}
		failures++
		if err == nil {
			failures = 0
		}
		if up := err == nil; (up || failures > 1) && (now == nil || now.Up != up) {
			now = &Health{Up: up, Since: p.config.Now(), Err: err}
			tell(*now)
		}
		if pace.Pause(ctx, leastPause) != nil {
			return
		}
		if failures == 1 { // is it down, or was it one connection?
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-p.doubt:
		case <-time.After(p.every - time.Since(began)):
		}
	}
}

var errSilent = errors.New("the upstream's health endpoint does not answer in time")

// Probe asks the upstream once whether it works.
func (p *Proxy) Probe(ctx context.Context) error {
	return p.ask(ctx, p.config.HealthPath, func(io.Reader) error { return nil })
}

// maxName bounds the name of a model, in bytes, and maxNames all of them together.
const (
	maxName  = 256
	maxNames = 64 << 10
)

// Models asks the upstream which models it serves, as OpenAI's API lists them or, where it has no such list, ollama's. Of what it says
// names are left, each once, that are fit to be shown to strangers: whoever writes the list is believed in nothing else.
func (p *Proxy) Models(ctx context.Context) (models []string, err error) {
	err = errors.New("no API that is served lists models")
	for _, path := range []string{"/v1/models", "/api/tags"} {
		if _, served := p.routes.exact["GET "+path]; !served {
			continue
		}
		if models, err = p.list(ctx, path); err == nil {
			return models, nil
		}
	}
	return nil, err
}

func (p *Proxy) list(ctx context.Context, path string) (models []string, err error) {
	var list struct {
		Data   []struct{ ID string }
		Models []struct{ Name string }
	}
	err = p.ask(ctx, path, func(from io.Reader) error {
		if json.NewDecoder(from).Decode(&list) != nil { // its words would quote the answer
			return errors.New("the upstream's list of models is none")
		}
		return nil
	})
	seen, all := make(map[string]bool), 0
	add := func(name string) {
		if name == "" || len(name) > maxName || !fit(name) || seen[name] || len(models) == maxModels || all+len(name) > maxNames {
			return
		}
		seen[name], all, models = true, all+len(name), append(models, name)
	}
	for _, model := range list.Data {
		add(model.ID)
	}
	if path == "/v1/models" { // llama.cpp has both lists there
		return models, err
	}
	for _, model := range list.Models {
		add(model.Name)
	}
	return models, err
}

// fit reports whether a name is one that a person can read and nothing else: what is not is left out, and not mended, since a request for
// the mended name would be for no model.
func fit(name string) bool {
	return redact.Text(name) == name && !strings.ContainsRune(name, utf8.RuneError)
}

// ask gets a page of the upstream within probeTimeout.
func (p *Proxy) ask(ctx context.Context, path string, use func(io.Reader) error) error {
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.target.Scheme+"://"+p.target.Host+p.target.Path+path, nil)
	if err != nil {
		return errors.New("the upstream cannot be asked for its health") // err has the URL
	}
	r.Header = p.request(nil)
	res, err := p.transport.RoundTrip(r)
	if err != nil && ctx.Err() != nil {
		return errSilent
	}
	if err != nil {
		if hint := reach.Hint(err); hint != "" {
			return fmt.Errorf("%s: %s", Unreachable, hint)
		}
		return errors.New(string(Unreachable))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the upstream answers %s with status %d", path, res.StatusCode)
	}
	return use(io.LimitReader(res.Body, maxList))
}

// hear notes that the upstream has sent something.
func (p *Proxy) hear() { p.heard.Store(int64(time.Since(p.began))) }

func (p *Proxy) heardSince(t time.Time) bool { return time.Duration(p.heard.Load()) > t.Sub(p.began) }

// suspect has the upstream be asked at once.
func (p *Proxy) suspect() {
	select {
	case p.doubt <- struct{}{}:
	default:
	}
}
