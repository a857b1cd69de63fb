package provider

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/wire"
)

func from(address string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "/lease", nil)
	r.RemoteAddr = address
	return r
}

func TestNegativeLimitsAreRefused(t *testing.T) {
	if err := (Limits{Pending: -1}).withDefaults().check(); err == nil {
		t.Error("a negative Pending is no error")
	}
}

// errorsSaid counts what an operator is woken by.
type errorsSaid struct {
	slog.Handler
	count *int
}

func (e errorsSaid) Enabled(context.Context, slog.Level) bool { return true }

func (e errorsSaid) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		*e.count++
	}
	return nil
}

// TestRefusalsWakeNobody: strangers write nothing into the log that an operator has to read, and what is our own failure
// does stand there.
func TestRefusalsWakeNobody(t *testing.T) {
	said := 0
	d := frontDesk{&Server{config: Config{Log: slog.New(errorsSaid{count: &said})}}}
	for range 100 {
		d.Problem(wire.TooMany.With("wait"))
		d.Problem(channel.ErrSignature)
	}
	if said != 0 {
		t.Errorf("%d lines for refusals", said)
	}
	if d.Problem(errors.New("disk on fire")); said != 1 {
		t.Errorf("%d lines for a failure of our own, want one", said)
	}
}
