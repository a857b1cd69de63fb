package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"
)

// TestProgramsSteerNoTerminal: what a stranger's words do in an error or in a log of either format is to be read.
func TestProgramsSteerNoTerminal(t *testing.T) {
	words := "\x1b]0;owned\x07\r\x7f\u009b2K\u202e"
	err := errors.Join(fmt.Errorf("provider: %s", words), errors.New("error: all is well"))
	said := map[string]string{"an error": lastWords(err)}
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		log, failed := logger(&out, "info", format)
		if failed != nil {
			t.Fatal(failed)
		}
		log.Info("once", "error", err, words, words, "any", []string{words})
		log.Info("twice")
		said[format] = strings.TrimSuffix(out.String(), "\n")
		if n := strings.Count(out.String(), "\n"); n != 2 {
			t.Errorf("%s: two lines are %d", format, n)
		}
	}
	for name, text := range said {
		text = strings.Replace(text, "\n", "", 1) // between the two
		if name == "an error" {
			text = said[name]
		}
		if strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) || !strings.Contains(text, "all is well") {
			t.Errorf("%s: %q", name, text)
		}
	}
}

// TestForwardedInterrupt: what a shell or a supervisor passes on of an interrupt is the same one; a later one ends the program.
func TestForwardedInterrupt(t *testing.T) {
	signals, over, begun := make(chan os.Signal), make(chan time.Time), 0
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		interrupted(signals, func() <-chan time.Time { begun++; return over })
	}()
	for n := range 3 {
		select {
		case signals <- os.Interrupt:
		case <-ended:
			t.Fatalf("interrupt %d would end the program at once", n+1)
		}
	}
	over <- time.Time{}
	if <-ended; begun != 1 {
		t.Errorf("it began to stop %d times", begun)
	}
}
