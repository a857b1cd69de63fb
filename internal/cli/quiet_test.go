package cli

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// lines is a log that may be read meanwhile.
type lines struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.String()
}

// TestNoAnswerIsPrinted: what stands behind an answer whose Content-Length is too short, which net/http prints, is printed nowhere; that a
// server's handler panicked is.
func TestNoAnswerIsPrinted(t *testing.T) {
	const canary = "canary-7f3a"
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}%s", canary)
	}))
	defer server.Close()
	var all, printed lines
	hush(&printed)
	defer log.SetOutput(os.Stderr)
	log.SetOutput(io.MultiWriter(&all, log.Writer()))
	res, err := new(http.Client).Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(res.Body)
	_ = res.Body.Close()
	for end := time.Now().Add(10 * time.Second); !strings.Contains(all.text(), canary); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Skip("net/http says nothing of it any more")
		}
	}
	log.Print("http: panic serving 127.0.0.1:1: it is said")
	if text := printed.text(); strings.Contains(text, canary) || !strings.Contains(text, "it is said") {
		t.Errorf("printed: %s", text)
	}
}
