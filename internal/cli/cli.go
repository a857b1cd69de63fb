// Package cli is what the example programs have in common: where a key comes
// from, where GPU readings come from, and how a program that cannot go on says
// so.
package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/nvml"
	"github.com/gpupay/gpupay/metering/sim"
)

// Main runs a program until it is done or interrupted. An error is one line on
// stderr and exit status 1.
func Main(run func(ctx context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second interrupt ends the program at once
	err := run(ctx)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, lastWords(err))
	os.Exit(1)
}

// lastWords is the line of a program that cannot go on. What a server or a file had a part in steers no terminal.
func lastWords(err error) string { return "error: " + redact.Text(err.Error()) }

// About begins a program's help with what it is for, which may go over several lines and ends where another sentence can begin.
func About(flags *flag.FlagSet, about string) {
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), flags.Name()+" "+about+"Where a flag names an environment variable, the variable sets its default.")
		flags.PrintDefaults()
	}
}

// Parse parses a program's arguments, all of which are flags. Help goes to stdout; what is wrong is an error of one line.
func Parse(flags *flag.FlagSet, args []string) error {
	if err := ParseFlags(flags, args, os.Stdout); err != nil || flags.NArg() == 0 {
		return err
	}
	return fmt.Errorf("%q is not a flag (--help lists the flags)", redact.Database(flags.Arg(0)))
}

// ParseFlags parses the flags before the first argument that is none. Help goes to help, and what is wrong is an error of one line.
func ParseFlags(flags *flag.FlagSet, args []string, help io.Writer) error {
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		flags.SetOutput(help)
		flags.VisitAll(func(f *flag.Flag) { f.DefValue = redact.List(f.DefValue) }) // of the environment
		flags.Usage()
		return err
	}
	if err != nil {
		return fmt.Errorf("%w (--help lists the flags)", shaped(flags, err))
	}
	return nil
}

// unparsed is what package flag says of a value that has not the shape of its flag.
var unparsed = regexp.MustCompile(`^invalid value ("(?:[^"\\]|\\.)*") for flag -(\S+): parse error$`)

// shaped says which shape a flag's value has, where package flag says only that it does not parse.
func shaped(flags *flag.FlagSet, err error) error {
	said := unparsed.FindStringSubmatch(err.Error())
	if said == nil {
		return err
	}
	shape := "a number"
	if value, ok := flags.Lookup(said[2]).Value.(flag.Getter); ok {
		switch value.Get().(type) {
		case time.Duration:
			shape = "a time with its unit, such as 60s, 5m or 24h"
		case int, int64, uint64:
			shape = "a whole number"
		}
	}
	return fmt.Errorf("--%s %s is not %s", said[2], said[1], shape)
}

// Env returns the value of an environment variable, or otherwise: what a
// container sets without a command line.
func Env(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}

// KeyFlags are where a program finds its key. There is no flag for a raw key:
// command lines are public.
type KeyFlags struct {
	keystore, passphrase string
	env                  string
}

// Register adds the flags. env is the variable that may hold a raw key.
func (k *KeyFlags) Register(flags *flag.FlagSet, env string) {
	k.env = env
	flags.StringVar(&k.keystore, "keystore", Env(env+"STORE", ""), "keystore file of go-ethereum (`path`, $"+env+"STORE); without it $"+env+" holds the key as hex")
	flags.StringVar(&k.passphrase, "passphrase-file", Env("GPUPAY_PASSPHRASE_FILE", ""), "file with the keystore's passphrase (`path`, $GPUPAY_PASSPHRASE_FILE)")
}

// Load opens the key.
func (k *KeyFlags) Load() (*channel.Key, error) {
	if k.keystore == "" {
		key, err := channel.KeyFromEnv(k.env)
		if err != nil {
			return nil, fmt.Errorf("%w (or give --keystore)", err)
		}
		return key, nil
	}
	if k.passphrase == "" {
		return nil, errors.New("--keystore needs --passphrase-file: a file with the keystore's passphrase; there is no flag for the passphrase itself, because command lines are public")
	}
	passphrase, err := os.ReadFile(k.passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase file: %w", err)
	}
	key, err := channel.OpenKeystore(k.keystore, strings.TrimRight(string(passphrase), "\r\n"))
	if err != nil {
		return nil, fmt.Errorf("%w (--keystore %s, with the passphrase in --passphrase-file %s)", err, k.keystore, k.passphrase)
	}
	return key, nil
}

// Address is a flag that holds an address.
type Address struct{ common.Address }

// Set parses 0x and 40 hex digits; anything shorter would silently be another
// account.
func (a *Address) Set(text string) error {
	if text == "" {
		a.Address = common.Address{}
		return nil
	}
	if len(text) != 42 || !common.IsHexAddress(text) {
		return fmt.Errorf("%q is not 0x and 40 hex digits", text)
	}
	a.Address = common.HexToAddress(text)
	return nil
}

func (a *Address) String() string {
	if a == nil || a.Address == (common.Address{}) {
		return ""
	}
	return a.Hex()
}

// errNoGPU says that --gpu is right, and this host's GPUs cannot be opened.
var errNoGPU = errors.New("no NVIDIA GPU")

// Source opens where readings come from: "nvml" for this host's NVIDIA GPUs,
// "sim" or "sim:8" for simulated ones, "auto" for NVML where there is a GPU
// and two simulated GPUs where there is none.
func Source(name string) (metering.Source, error) {
	kind, count, counted := strings.Cut(name, ":")
	if counted && kind != "sim" {
		kind = ""
	}
	switch kind {
	case "sim":
		n := 1
		if counted {
			var err error
			if n, err = strconv.Atoi(count); err != nil || n < 1 || n > 1024 {
				return nil, fmt.Errorf("--gpu %s: the number of simulated GPUs must be 1 to 1024", name)
			}
		}
		return sim.New(n, sim.Options{}), nil
	case "nvml":
		source, err := nvml.Open(nvml.Options{})
		if err != nil {
			return nil, fmt.Errorf("%w: %w (to try things out without one, give --gpu sim)", errNoGPU, err)
		}
		return source, nil
	case "auto":
		source, err := nvml.Open(nvml.Options{})
		if err == nil {
			return source, nil
		}
		return sim.New(2, sim.Options{}), nil
	}
	return nil, fmt.Errorf("--gpu %q is not nvml, sim, sim:N or auto", name)
}

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
