package clients

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/renting"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/sidecar"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// engine answers as vLLM and ollama do, as the model that it is asked for says: "test" answers, "slow" streams until its client leaves,
// "quiet" does without a word after the first, "cut" breaks off in its stream, "none" is not there, "busy" is told to come back, and "broken" fails.
type engine struct{ running atomic.Int64 }

// question is what either API asks.
type question struct {
	Model    string            `json:"model"`
	Stream   *bool             `json:"stream"`
	Tools    []json.RawMessage `json:"tools"`
	Encoding string            `json:"encoding_format"`
	Options  struct {
		Usage bool `json:"include_usage"`
	} `json:"stream_options"`
	Messages []struct {
		Role    string `json:"role"`
		Content any    `json:"content"`
	} `json:"messages"`
}

// toolSaid is what a tool that was called has answered, if one has.
func (q question) toolSaid() (text string, said bool) {
	if n := len(q.Messages); n > 0 && q.Messages[n-1].Role == "tool" {
		text, said = q.Messages[n-1].Content.(string)
	}
	return text, said
}

func (e *engine) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.running.Add(1)
	defer e.running.Add(-1)
	var q question
	_ = json.NewDecoder(r.Body).Decode(&q)
	ollama := strings.HasPrefix(r.URL.Path, "/api/")
	w.Header().Set("Content-Type", "application/json")
	switch status := map[string]int{"none": 404, "busy": 429, "broken": 500}[q.Model]; {
	case status != 0 && ollama:
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":"model is %s"}`, q.Model)
		return
	case status != 0:
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":{"message":"model is %s","type":"of_the_engine","param":null,"code":"%s"}}`, q.Model, q.Model)
		return
	}
	time.Sleep(20 * time.Millisecond) // what costs
	switch r.URL.Path {
	case "/v1/models":
		_, _ = io.WriteString(w, `{"object":"list","data":[{"id":"test","object":"model","created":1,"owned_by":"us"},{"id":"slow","object":"model","created":1,"owned_by":"us"}]}`)
	case "/v1/chat/completions":
		e.chat(w, r, q)
	case "/v1/embeddings":
		vector := any([]float32{0.25, -0.5})
		if q.Encoding == "base64" {
			raw := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, math.Float32bits(0.25)), math.Float32bits(-0.5))
			vector = base64.StdEncoding.EncodeToString(raw)
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"object": "list", "model": q.Model, "data": []any{map[string]any{"object": "embedding", "index": 0, "embedding": vector}},
			"usage": map[string]int{"prompt_tokens": 1, "total_tokens": 1}})
	case "/api/tags":
		_, _ = io.WriteString(w, `{"models":[{"name":"test:latest","model":"test:latest","size":1,"digest":"1","details":{"family":"test"}}]}`)
	case "/api/chat", "/api/generate":
		e.ollama(w, r, q)
	case "/api/embed":
		_, _ = io.WriteString(w, `{"model":"test","embeddings":[[0.25,-0.5]],"prompt_eval_count":1}`)
	default:
		http.NotFound(w, r)
	}
}

func (e *engine) chat(w http.ResponseWriter, r *http.Request, q question) {
	const head, used = `{"id":"c1","created":1,"model":"test",`, `"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}`
	text, said := q.toolSaid()
	calls := len(q.Tools) > 0 && !said
	if q.Stream != nil && *q.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
		event := func(delta, finish string) {
			_, _ = fmt.Fprintf(w, "data: %s\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":%s,\"finish_reason\":%s}]}\n\n", head, delta, finish)
			w.(http.Flusher).Flush()
		}
		done := func() {
			if q.Options.Usage {
				_, _ = fmt.Fprintf(w, "data: %s\"object\":\"chat.completion.chunk\",\"choices\":[],%s\n\n", head, used)
			}
			_, _ = io.WriteString(w, "data: [DONE]\n\n")
		}
		event(`{"role":"assistant","content":"Hel"}`, "null")
		switch q.Model {
		case "cut":
			panic(http.ErrAbortHandler)
		case "quiet":
			<-r.Context().Done()
		}
		for q.Model == "slow" && r.Context().Err() == nil {
			event(`{"content":"."}`, "null")
			time.Sleep(20 * time.Millisecond)
		}
		if calls {
			event(`{"tool_calls":[{"index":0,"id":"t1","type":"function","function":{"name":"weather","arguments":"{\"city\":"}}]}`, "null")
			event(`{"tool_calls":[{"index":0,"function":{"arguments":"\"Oslo\"}"}}]}`, "null")
			event(`{}`, `"tool_calls"`)
			done()
			return
		}
		event(fmt.Sprintf(`{"content":%q}`, "lo"+text), "null")
		event(`{}`, `"stop"`)
		done()
		return
	}
	message, finish := fmt.Sprintf(`{"role":"assistant","content":%q,"refusal":null}`, "Hello"+text), "stop"
	if calls {
		message = `{"role":"assistant","content":null,"tool_calls":[{"id":"t1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}]}`
		finish = "tool_calls"
	}
	_, _ = fmt.Fprintf(w, `%s"object":"chat.completion","choices":[{"index":0,"message":%s,"finish_reason":"%s"}],%s`, head, message, finish, used)
}

func (e *engine) ollama(w http.ResponseWriter, r *http.Request, q question) {
	w.Header().Set("Content-Type", "application/x-ndjson")
	line := func(text string, done bool) {
		tools := ""
		if len(q.Tools) > 0 {
			tools = `,"tool_calls":[{"function":{"name":"weather","arguments":{"city":"Oslo"}}}]`
		}
		_, _ = fmt.Fprintf(w, `{"model":"test","created_at":"2026-01-01T00:00:00Z","message":{"role":"assistant","content":"%s"%s},"response":"%s","done":%t,"done_reason":"stop"}`+"\n", text, tools, text, done)
		w.(http.Flusher).Flush()
	}
	if q.Stream != nil && !*q.Stream {
		line("Hello", true)
		return
	}
	line("Hel", false)
	for q.Model == "slow" && r.Context().Err() == nil {
		line(".", false)
		time.Sleep(20 * time.Millisecond)
	}
	line("lo", false)
	line("", true)
}

// serve has an engine be served until the test ends.
func (e *engine) serve(t *testing.T) (url string) {
	t.Helper()
	server := httptest.NewServer(e)
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	return server.URL
}

// sell has a sidecar rent out an inference server, which has ollama's API too or not, by so many requests at once, on a chain on which it has a key of its own.
func sell(ctx context.Context, t *testing.T, stop func(), chain *devchain.Chain, key, slots int, upstream string, ollama bool) (*httptest.Server, *sidecar.Server) {
	t.Helper()
	server, err := sidecar.New(ctx, sidecar.Config{Upstream: upstream, OllamaAPI: ollama, Provider: provider.Config{
		RPC: chain.URL, Escrow: chain.Escrow, Token: chain.Token, Key: channel.NewKey(chain.Keys[key]), Database: filepath.Join(t.TempDir(), "provider.db"),
		PricePerGPUHour: "3.60", Share: provider.Share{Slots: slots}, Source: sim.New(1, sim.Options{}), Terms: provider.Terms{Credit: 30 * time.Second}, Deposits: provider.Deposits{Min: "0.10"},
		Metering: provider.Metering{Tick: 50 * time.Millisecond, RecordEvery: 200 * time.Millisecond},
		Chain:    provider.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}, Log: slog.New(slog.DiscardHandler),
	}})
	must(t, err)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(ctx) }()
	site := httptest.NewServer(server)
	t.Cleanup(func() { stop(); must(t, <-ended); must(t, server.Close()); site.CloseClientConnections(); site.Close() })
	return site, server
}

// slots is how many requests run at once.
const slots = 3

// newRig is a rental of a share of a GPU behind a sidecar, on a chain of its own, and the URL on this machine at which clients use it. The
// rental is paid and closed at the test's end.
func newRig(t *testing.T) (base string, e *engine) {
	t.Helper()
	t.Parallel()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context())) // the rental is closed when the test's is over
	chain, err := devchain.Start(ctx, devchain.Options{BlockTime: 100 * time.Millisecond})
	must(t, err)
	t.Cleanup(func() { _ = chain.Close() })
	e = new(engine)
	site, _ := sell(ctx, t, stop, chain, 0, slots, e.serve(t), true)

	private, err := crypto.GenerateKey()
	must(t, err)
	must(t, chain.Fund(ctx, crypto.PubkeyToAddress(private.PublicKey), big.NewInt(0), *uint256.NewInt(10_000_000)))
	client, err := renter.New(ctx, renter.Config{
		RPC: chain.URL, Token: chain.Token, Key: channel.NewKey(private), Database: filepath.Join(t.TempDir(), "renter.db"), Log: slog.New(slog.DiscardHandler),
		Caps: wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "10", PerPayee: "10"}, Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour},
	})
	must(t, err)
	t.Cleanup(func() { _ = client.Close() })
	rental, err := client.Rent(ctx, site.URL, renter.Options{Share: true})
	must(t, err)
	ran := make(chan error, 1)
	paying, enough := context.WithCancel(ctx)
	go func() { ran <- rental.Run(paying) }()
	at, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	forwarded := renting.Forward(at, rental)
	t.Cleanup(func() {
		forwarded()
		enough()
		if err := <-ran; err != nil && ctx.Err() == nil && paying.Err() == nil {
			t.Errorf("the renter stopped paying: %v", err)
		}
		if closing, err := rental.Close(ctx); err != nil || closing.Settled.IsZero() || closing.Settled != closing.Owed {
			t.Errorf("closed with %+v, %v", closing, err)
		}
	})
	return "http://" + at.Addr().String(), e
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var slotsText = fmt.Sprint(slots)
