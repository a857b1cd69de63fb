package proxying

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
)

// logs opens the log of what happens behind the dollars, and that of requests. Both are files in Dir; the first is on standard error too where
// Verbose is set.
func (p *Proxying) logs(o *opened) (money, requests *slog.Logger, err error) {
	file := func(name string) *slog.Logger {
		f, failed := os.OpenFile(filepath.Join(p.Dir, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if failed != nil {
			err = errors.Join(err, failed)
			return slog.New(slog.DiscardHandler)
		}
		o.files = append(o.files, f)
		return slog.New(slog.NewJSONHandler(f, &slog.HandlerOptions{Level: slog.LevelInfo}))
	}
	money, requests = file("payments.log"), file("requests.log")
	if p.Verbose && p.Log != nil {
		money = p.Log
	}
	return money, requests, err
}

// own is the proxy's own log: what it says is for people, without the reasons behind it, unless Verbose is set.
func (p *Proxying) own(money *slog.Logger) *slog.Logger {
	if p.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	if p.Verbose {
		return p.Log
	}
	return slog.New(brief{p.Log.Handler(), money})
}

// brief leaves errors out of what is said, and writes them into another log.
type brief struct {
	slog.Handler
	whole *slog.Logger
}

func (b brief) Handle(ctx context.Context, r slog.Record) error {
	if b.whole != nil {
		_ = b.whole.Handler().Handle(ctx, r)
	}
	short := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		if a.Key != "err" {
			short.AddAttrs(a)
		}
		return true
	})
	return b.Handler.Handle(ctx, short)
}

// WithAttrs keeps it brief.
func (b brief) WithAttrs(attrs []slog.Attr) slog.Handler {
	return brief{b.Handler.WithAttrs(attrs), b.whole}
}

// WithGroup keeps it brief.
func (b brief) WithGroup(name string) slog.Handler { return brief{b.Handler.WithGroup(name), b.whole} }

// Hidden are words of chains, which people who pay dollars need not know.
var Hidden = regexp.MustCompile(`(?i)\b(gas|nonce|wei|gwei|allowance|approve\w*|voucher\w*|channel\w*|escrow\w*)\b`)

// plain is an error in words for people; with Verbose it is as it is.
func (p *Proxying) plain(err error) error {
	if err == nil || p.Verbose || !Hidden.MatchString(err.Error()) {
		return err
	}
	return errors.New("the proxy cannot pay providers: start it with --verbose, which says why; payments.log in its directory has the rest")
}
