package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
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
	var said bytes.Buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		interrupted(signals, func() <-chan time.Time { begun++; return over }, &said)
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
	if strings.Count(said.String(), "\n") != 1 || !strings.Contains(said.String(), "stopping") {
		t.Errorf("to those who pressed again it says %q", &said)
	}
}

// TestProgram is no test: it is the program that TestInterruptsOfATerminal starts. It ends well where it can still print at its end.
func TestProgram(t *testing.T) {
	if os.Getenv("GPUPAY_TEST_PROGRAM") == "" {
		t.Skip("it is not asked for")
	}
	Main(func(ctx context.Context) error {
		fmt.Fprintln(os.Stderr, "ready")
		<-ctx.Done()
		for range 3 {
			fmt.Println("closing")
		}
		return errors.New("the end") // by now it has paid
	})
}

// TestInterruptsOfATerminal: whichever way a terminal ends a program, and also whoever reads its output, it stops in its own order.
func TestInterruptsOfATerminal(t *testing.T) {
	for _, how := range []struct {
		name    string
		ignored bool
		signals []os.Signal
	}{
		{"Ctrl-C", false, []os.Signal{os.Interrupt}}, {"kill", false, []os.Signal{syscall.SIGTERM}}, {"a hangup", false, []os.Signal{syscall.SIGHUP}},
		{"Ctrl-C after a hangup that it outlives", true, []os.Signal{syscall.SIGHUP, os.Interrupt}},
	} {
		if !how.ignored && how.signals[0] == syscall.SIGHUP && signal.Ignored(syscall.SIGHUP) {
			continue // under nohup, which no program can undo for those that it starts
		}
		program := exec.CommandContext(t.Context(), "sh", "-c", `exec "$0" -test.run '^TestProgram$'`, os.Args[0])
		if how.ignored {
			program.Args[2] = "trap '' HUP; " + program.Args[2]
		}
		program.Env = append(os.Environ(), "GPUPAY_TEST_PROGRAM=1")
		reader, stdout, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		reader.Close() // as `tee` that the same interrupt ended
		program.Stdout = stdout
		stderr, err := program.StderrPipe()
		if err == nil {
			err = program.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		stdout.Close()
		lines := bufio.NewScanner(stderr)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("%s: it begins with %q", how.name, lines.Text())
		}
		for _, s := range how.signals {
			if err := program.Process.Signal(s); err != nil {
				t.Error(err)
			}
		}
		last := ""
		for lines.Scan() {
			last = lines.Text()
		}
		if err := program.Wait(); last != "error: the end" || program.ProcessState.ExitCode() != StatusFailed {
			t.Errorf("%s: it ends with %v, and says %q", how.name, err, last)
		}
	}
}
