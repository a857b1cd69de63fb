// Package cli is what the subcommands of gpupay and the example programs have in common: flags over the
// environment over a configuration file, where a key and GPU readings come from, and how a program that
// cannot go on says so.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gpupay/gpupay/internal/redact"
)

// Exit statuses of the programs.
const (
	StatusFailed = 1
	StatusUsage  = 64 // of wrong usage, as in sysexits.h
)

// usageError is what a user typed wrong.
type usageError struct{ error }

func (u usageError) Unwrap() error { return u.error }
func (usageError) Status() int     { return StatusUsage }

// Usage marks an error as one of how the program was called: it ends with StatusUsage.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return usageError{err}
}

// forwarded is how long after a first interrupt others are taken for the same one: a shell, `go run` or a supervisor
// passes on what the terminal has sent already, and a person who means it presses again.
const forwarded = 2 * time.Second

// Main runs a program until it is done or interrupted; a terminal that hangs up interrupts it too, unless it was started to
// outlive that (nohup). An error is one line on stderr, and the exit status is 1, or what the error's Status says.
func Main(run func(ctx context.Context) error) {
	hush(os.Stderr)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		interrupted(signals, func() <-chan time.Time {
			signal.Ignore(syscall.SIGPIPE) // of who read the output, and got the same interrupt: what is owed is paid without a reader
			stop()
			return time.After(forwarded)
		}, os.Stderr)
		signal.Stop(signals) // the next interrupt ends the program at once
	}()
	err := run(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, lastWords(err))
	os.Exit(Status(err))
}

// interrupted waits for an interrupt, which begin stops the program for, and takes others for the same one until what begin
// returns is over. Of the first of those it says so: it may be a person's.
func interrupted(signals <-chan os.Signal, begin func() <-chan time.Time, say io.Writer) {
	<-signals
	said := false
	for over := begin(); ; {
		select {
		case <-signals:
			if !said {
				fmt.Fprintf(say, "stopping: this takes a moment (an interrupt %s after the first one ends it at once)\n", forwarded)
			}
			said = true
		case <-over:
			return
		}
	}
}

// Status is the exit status of a program that ends with an error.
func Status(err error) int {
	var own interface{ Status() int }
	switch {
	case err == nil:
		return 0
	case errors.As(err, &own):
		return own.Status()
	}
	return StatusFailed
}

// lastWords is the line of a program that cannot go on. What a server or a file had a part in steers no terminal.
func lastWords(err error) string { return "error: " + redact.Text(err.Error()) }

// Logger writes structured logs to stderr: text for people, JSON for machines.
func Logger(level, format string) (*slog.Logger, error) { return logger(os.Stderr, level, format) }

func logger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q is not debug, info, warn or error", level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(w, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(plainLines{w}, options)), nil
	}
	return nil, fmt.Errorf("--log-format %q is not text or json", format)
}

// plainLines takes out of each line what steers a terminal: JSON escapes less than that, and text quotes all of it.
type plainLines struct{ io.Writer }

func (w plainLines) Write(line []byte) (int, error) {
	_, err := io.WriteString(w.Writer, redact.Text(strings.TrimSuffix(string(line), "\n"))+"\n")
	return len(line), err
}
