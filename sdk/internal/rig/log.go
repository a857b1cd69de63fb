package rig

import (
	"bytes"
	"log/slog"
	"sync"
	"testing"
)

// Warnings is a logger that shows warnings and errors in the test's log.
func Warnings(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Helper()
	w.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

// Log keeps what is written to it, for a test that reads it back.
type Log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write is of io.Writer.
func (b *Log) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String is all that was written.
func (b *Log) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
