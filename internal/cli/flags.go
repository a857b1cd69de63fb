package cli

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/gpupay/gpupay/channel"
)

// Flags are a program's flags, with those that every program here has: where
// its key is, and what it logs.
type Flags struct {
	*flag.FlagSet
	key           KeyFlags
	level, format string
	proxies       string
}

// NewFlags begins a program's flags. Its help starts with about, which ends
// where another sentence can begin; level is what is logged where nobody says
// more.
func NewFlags(program, about, level string) *Flags {
	f := &Flags{FlagSet: flag.NewFlagSet(program, flag.ContinueOnError)}
	About(f.FlagSet, about)
	f.Text(&f.level, "log-level", "GPUPAY_LOG", level, "debug, info, warn or error")
	f.StringVar(&f.format, "log-format", "text", "text or json")
	f.key.Register(f.FlagSet, "GPUPAY_KEY")
	return f
}

// Text adds a flag whose default is an environment variable's value, or
// otherwise.
func (f *Flags) Text(into *string, name, env, otherwise, usage string) {
	f.StringVar(into, name, Env(env, otherwise), usage+" ($"+env+")")
}

// RPC adds the flag for the chain's endpoint; usage goes on after its name.
func (f *Flags) RPC(into *string, usage string) {
	f.Text(into, "rpc", "GPUPAY_RPC", "http://127.0.0.1:8545", "`URL` of the chain's JSON-RPC, or several with commas between them"+usage)
}

// MaxFee adds the flag for the most that a transaction offers for a unit of
// gas; it stays nil where nobody says, which is the chain's default.
func (f *Flags) MaxFee(into **big.Int) {
	f.Func("max-fee", "most to offer for a unit of gas, in `gwei`; 500 on most chains if not said", func(text string) error {
		fee, ok := new(big.Rat).SetString(text)
		if !ok || fee.Sign() <= 0 {
			return errors.New("want an amount of gwei above 0, such as 40 or 0.5")
		}
		fee.Mul(fee, new(big.Rat).SetInt64(1_000_000_000))
		*into = new(big.Int).Quo(fee.Num(), fee.Denom())
		return nil
	})
}

// Address adds a flag for an address, with its environment variable.
func (f *Flags) Address(name, env, usage string) *Address {
	a := &Address{}
	f.Var(a, name, usage+" (`address`, $"+env+")")
	if value := os.Getenv(env); value != "" {
		if err := f.Set(name, value); err != nil {
			fmt.Fprintf(os.Stderr, "error: $%s: %v\n", env, err)
			os.Exit(1)
		}
	}
	return a
}

// TrustedProxies adds the flag that Proxies reads.
func (f *Flags) TrustedProxies() {
	f.Text(&f.proxies, "trusted-proxies", "GPUPAY_TRUSTED_PROXIES", "", "`ADDRESS,..` or networks such as 10.0.0.0/8 of the proxies in front, which say by X-Forwarded-For who a request is from. Without it clients behind a proxy share their limits")
}

// Proxies are the proxies that are trusted.
func (f *Flags) Proxies() []string { return list(f.proxies) }

func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

// Load parses the arguments and opens the log.
func (f *Flags) Load(args []string) (*slog.Logger, error) {
	if err := Parse(f.FlagSet, args); err != nil {
		return nil, err
	}
	return Logger(f.level, f.format)
}

// KeyGiven reports whether the program was given a key, where it can do without.
func (f *Flags) KeyGiven() bool { return f.key.keystore != "" || os.Getenv(f.key.env) != "" }

// Key opens the program's key.
func (f *Flags) Key() (*channel.Key, error) { return f.key.Load() }

// Listen opens the address that a flag names.
func Listen(name, address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s: %w: another program is there: end it, or listen elsewhere", name, err)
	case err != nil:
		return nil, fmt.Errorf("--%s: %w", name, err)
	}
	return listener, nil
}

// Admin serves what only the operator should see, metrics and health, on an
// address; on none if that is empty. What ends it goes to failed. The server is
// there to be shut down even beside an error.
func Admin(address string, metrics, health http.Handler, failed chan<- error) (*http.Server, error) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.Handle("GET /healthz", health)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	if address == "" {
		return server, nil
	}
	listener, err := Listen("admin", address)
	if err != nil {
		return server, err
	}
	fmt.Printf("admin at http://%s (/metrics, /healthz)\n", listener.Addr())
	go func() { failed <- server.Serve(listener) }()
	return server, nil
}
