package sidecar

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/upstream"
)

// modelsPath is where everybody is told which models there are: a request under /v1 is paid for.
const modelsPath = "/models"

// listEvery is how often the inference server is asked which models it serves.
const listEvery = time.Minute

// models is the list of models as the inference server gives it, for who chooses a provider: what it says is no part of the offer, and
// nobody is billed by it. It is empty while the server is down.
type models struct {
	ask  func(context.Context) ([]string, error)
	told chan struct{}

	mu       sync.Mutex
	up       bool
	document []byte
}

func newModels(ask func(context.Context) ([]string, error)) *models {
	return &models{ask: ask, told: make(chan struct{}, 1), document: listOf(nil)}
}

// heard takes in whether the server works.
func (m *models) heard(h upstream.Health) {
	m.mu.Lock()
	if m.up = h.Up; !m.up {
		m.document = listOf(nil)
	}
	m.mu.Unlock()
	select {
	case m.told <- struct{}{}:
	default:
	}
}

// run asks when the server has begun to work, and each time that a tick comes, until ctx ends. What it cannot be asked stays as it was.
func (m *models) run(ctx context.Context, tick <-chan time.Time) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.told:
		case <-tick:
		}
		names, err := m.ask(ctx)
		m.mu.Lock()
		if err == nil && m.up {
			m.document = listOf(names)
		}
		m.mu.Unlock()
	}
}

// ServeHTTP answers with the list, as OpenAI's API has it.
func (m *models) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	document := m.document
	m.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	serve.Hurry(w)
	_, _ = w.Write(document) // its client is gone if this fails
}

func listOf(names []string) []byte {
	type model struct {
		ID     string `json:"id"`
		Object string `json:"object"`
	}
	data := make([]model, len(names))
	for i, name := range names {
		data[i] = model{name, "model"}
	}
	document, _ := json.Marshal(map[string]any{"object": "list", "data": data}) // no text fails
	return document
}
