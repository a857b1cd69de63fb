// Package boundlog bounds what strangers have a part in: the log of a program that deals with them, and the words of errors.
package boundlog

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/reach"
)

// Bounds of a renter's log, which its providers, their proxies and its endpoints have a part in: characters of a value, and lines
// in a minute that say one thing of one channel.
const (
	MaxValue = 2000
	MaxLines = 20
)

// New is a log whose room on disk no stranger chooses.
func New(log *slog.Logger, now func() time.Time) *slog.Logger {
	return slog.New(&logBound{Handler: log.Handler(), counts: &logCounts{now: now}})
}

type logBound struct {
	slog.Handler
	counts *logCounts
}

// Handle leaves out what was said too often in this minute, and the end of what is too long.
func (b *logBound) Handle(ctx context.Context, rec slog.Record) error {
	said := rec.Message
	short := slog.NewRecord(rec.Time, rec.Level, rec.Message, rec.PC)
	rec.Attrs(func(a slog.Attr) bool {
		if a.Key == "channel" {
			said += " " + a.Value.String()
		}
		short.AddAttrs(slog.Attr{Key: a.Key, Value: shortened(a.Value)})
		return true
	})
	switch n := b.counts.add(said); {
	case n > MaxLines:
		return nil
	case n == MaxLines:
		short.AddAttrs(slog.String("more", "left out until the minute is over"))
	}
	return b.Handler.Handle(ctx, short)
}

// shortened is a value whose words are no more than are logged.
func shortened(v slog.Value) slog.Value {
	v = v.Resolve()
	words := ""
	if err, ok := v.Any().(error); ok && err != nil {
		words = err.Error()
	} else if v.Kind() == slog.KindString {
		words = v.String()
	}
	if len(words) <= MaxValue {
		return v
	}
	return slog.StringValue(reach.Printable(words, MaxValue))
}

func (b *logBound) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logBound{b.Handler.WithAttrs(attrs), b.counts}
}

func (b *logBound) WithGroup(name string) slog.Handler {
	return &logBound{b.Handler.WithGroup(name), b.counts}
}

// logCounts counts lines by what they say, in the minute that runs.
type logCounts struct {
	now    func() time.Time
	mu     sync.Mutex
	minute int64
	lines  map[string]int
}

func (c *logCounts) add(said string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if minute := c.now().Unix() / 60; minute != c.minute || c.lines == nil {
		c.minute, c.lines = minute, make(map[string]int)
	}
	c.lines[said]++
	return c.lines[said]
}

// Plain is an error whose words, which a stranger has a part in, are fit to be shown and to be kept.
func Plain(err error) error { return &worded{err} }

type worded struct{ error }

func (w *worded) Error() string { return reach.Printable(w.error.Error(), MaxValue/2) }

func (w *worded) Unwrap() error { return w.error }

// Warn logs what failed of a channel, which most errors name too: it is said once.
func Warn(log *slog.Logger, text string, id common.Hash, err error, more ...any) {
	cause := strings.ReplaceAll(err.Error(), "channel "+id.Hex()+": ", "")
	log.Warn(text, append([]any{"channel", id, "error", cause}, more...)...)
}
