package upstream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

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

// Models asks the upstream which models it serves, as OpenAI's API lists them or ollama's.
func (p *Proxy) Models(ctx context.Context) (models []string, err error) {
	path := "/v1/models"
	if !p.routes.models {
		path = "/api/tags"
	}
	err = p.ask(ctx, path, func(from io.Reader) error {
		var list struct {
			Data   []struct{ ID string }
			Models []struct{ Name string }
		}
		if json.NewDecoder(from).Decode(&list) != nil { // its words would quote the answer
			return errors.New("the upstream's list of models is none")
		}
		for _, model := range list.Data {
			models = append(models, model.ID)
		}
		if path == "/v1/models" { // llama.cpp has both lists there
			return nil
		}
		for _, model := range list.Models {
			models = append(models, model.Name)
		}
		return nil
	})
	if len(models) > maxModels {
		models = models[:maxModels]
	}
	for i, model := range models {
		models[i] = redact.Text(model)
	}
	return models, err
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
