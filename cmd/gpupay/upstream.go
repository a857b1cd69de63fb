package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/sidecar"
)

// upstreamKey is the variable that holds what the inference server knows its operator by, if it asks for that.
const upstreamKey = "GPUPAY_UPSTREAM_KEY"

// upstream is the inference server that is sold, if one is.
type upstream struct {
	url, health string
	slots       int
	rate        int
	most        time.Duration
	ollama      bool
}

func (u *upstream) register(f *cli.Flags) {
	f.Group("An inference server that is sold by the request")
	f.Text(&u.url, "upstream", "", "its `URL`, such as http://127.0.0.1:8000: renters share all GPUs by --slots, and send requests as its own clients do. $GPUPAY_UPSTREAM_KEY is what it knows you by, if it asks")
	f.Int(&u.slots, "slots", 0, "with --upstream: how many requests it runs at once; each pays for its part of the GPUs' time")
	f.Int(&u.rate, "requests-per-second", 20, "with --upstream: how many requests of one lease may begin in a second")
	f.Duration(&u.most, "max-request", provider.MaxRequestTime, "with --upstream: how long a request runs at most; what is answered for longer ends there, and is paid up to there")
	f.Bool(&u.ollama, "upstream-ollama", "with --upstream: serve ollama's own API beside OpenAI's")
	f.Text(&u.health, "upstream-health", "", "with --upstream: `path` that answers 200 while it works, such as /health; its list of models if empty")
}

// opened is a provider, and what is served of it: with an inference server that is behind it, or alone.
type opened struct {
	*provider.Server
	handler http.Handler
	run     func(context.Context) error
	close   func() error
	ask     func(context.Context) ([]string, error) // which models the inference server serves; nil: there is none
}

// open starts a provider: before the inference server, where there is one.
func (u upstream) open(ctx context.Context, c provider.Config) (opened, error) {
	if u.url == "" && u.slots == 0 {
		p, err := provider.New(ctx, c)
		if err != nil {
			return opened{}, err
		}
		return opened{Server: p, handler: p, run: p.Run, close: p.Close}, nil
	}
	if u.url == "" || u.slots == 0 {
		return opened{}, errors.New("--upstream and --slots go together: the URL of the inference server, and how many requests it runs at once")
	}
	if len(c.Classes) > 0 {
		return opened{}, errors.New("--upstream: the GPUs behind it have one price: give --price without names")
	}
	config := sidecar.Config{Provider: c, Upstream: u.url, OllamaAPI: u.ollama, HealthPath: u.health}
	config.Provider.Share = provider.Share{Slots: u.slots, MaxTime: u.most, RequestsPerSecond: u.rate}
	if key := os.Getenv(upstreamKey); key != "" {
		config.Credential = http.Header{"Authorization": {"Bearer " + key}}
	}
	s, err := sidecar.New(ctx, config)
	if err != nil {
		return opened{}, err
	}
	return opened{s.Server, s, s.Run, s.Close, s.Ask}, nil
}

// mostNamed is how many models are named when a provider starts.
const mostNamed = 8

// say prints what is sold, if an inference server is: that it sells by the request, and whether there is anything to sell now.
func (u upstream) say(ctx context.Context, out io.Writer, ask func(context.Context) ([]string, error)) {
	if ask == nil {
		return
	}
	fmt.Fprintf(out, "selling %s by the request: %d at once, each pays 1/%d of the GPUs' price for its time\n", redact.URL(u.url), u.slots, u.slots)
	models, err := ask(ctx)
	switch more := len(models) - mostNamed; {
	case err != nil:
		fmt.Fprintf(out, "IT DOES NOT ANSWER, so that nothing is rented out until it does: %v\n", err)
	case len(models) == 0:
		fmt.Fprintln(out, "it answers, and lists no models")
	case more > 0:
		fmt.Fprintf(out, "its models: %s and %d more\n", strings.Join(models[:mostNamed], ", "), more)
	default:
		fmt.Fprintf(out, "its models: %s\n", strings.Join(models, ", "))
	}
}
