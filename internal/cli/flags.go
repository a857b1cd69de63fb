package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/units"
)

// Flags are a subcommand's flags. A value is that of the command line, or else of the environment variable GPUPAY_ and
// the flag's name, or else of the configuration file, or else the default.
type Flags struct {
	name    string // of the subcommand
	table   string // of the configuration file
	program string // as errors of what is configured begin
	file    *file
	list    []urfave.Flag
	others  []urfave.Flag // of another subcommand, which mean nothing here
	group   string
	action  bool            // what is added is a single action: of the command line alone
	said    map[string]bool // text flags by name: an error names their variable too
	args    string

	logs          bool
	level, format string
	key           *KeyFlags
}

// Flags begins the flags of a subcommand. Errors of what it configures begin with program, a colon and a space.
func (a *App) Flags(name, program string) *Flags {
	return &Flags{name: name, table: name, program: program, file: &a.file, said: map[string]bool{}}
}

// Table has what is added from here on be read from the table of another subcommand in the configuration file.
func (f *Flags) Table(of string) { f.table = of }

// Group has what is added from here on stand under a heading of the help.
func (f *Flags) Group(heading string) { f.group, f.action = heading, false }

// Actions is Group for what is done once, such as to end a rental: that neither an environment nor a file may say.
func (f *Flags) Actions(heading string) { f.group, f.action = heading, true }

// variable is the environment variable of a flag.
func variable(flag string) string {
	return "GPUPAY_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// sources are where a flag's value comes from where the command line has none.
func (f *Flags) sources(name string, kind kind) urfave.ValueSourceChain {
	if f.action {
		return urfave.ValueSourceChain{}
	}
	return urfave.NewValueSourceChain(urfave.EnvVar(variable(name)), &fromFile{file: f.file, table: f.table, key: name, kind: kind})
}

// Text adds a flag.
func (f *Flags) Text(into *string, name, otherwise, usage string) {
	f.said[name] = true
	f.add(&urfave.StringFlag{Name: name, Value: otherwise, Usage: usage, Destination: into, Category: f.group, Local: true, Sources: f.sources(name, text)})
}

// Path adds a flag for a file or a folder, or a database's URL. In a configuration file it is relative to that file.
func (f *Flags) Path(into *string, name, otherwise, usage string) {
	f.said[name] = true
	f.add(&urfave.StringFlag{Name: name, Value: otherwise, Usage: usage, Destination: into, Category: f.group, Local: true, Sources: f.sources(name, path)})
}

// Bool adds a flag.
func (f *Flags) Bool(into *bool, name, usage string) {
	f.add(&urfave.BoolFlag{Name: name, Usage: usage, Destination: into, Category: f.group, Local: true, Sources: f.sources(name, number)})
}

// Duration adds a flag; a default of zero is for the package to choose, and the usage says which it is.
func (f *Flags) Duration(into *time.Duration, name string, otherwise time.Duration, usage string) {
	f.add(&urfave.DurationFlag{Name: name, Value: otherwise, Usage: usage, Destination: into, Category: f.group, Local: true, HideDefault: otherwise == 0, Sources: f.sources(name, text)})
}

// Int adds a flag.
func (f *Flags) Int(into *int, name string, otherwise int, usage string) {
	f.add(&urfave.IntFlag{Name: name, Value: otherwise, Usage: usage, Destination: into, Category: f.group, Local: true, HideDefault: otherwise == 0, Sources: f.sources(name, number)})
}

// Int64 adds a flag.
func (f *Flags) Int64(into *int64, name string, otherwise int64, usage string) {
	f.add(&urfave.Int64Flag{Name: name, Value: otherwise, Usage: usage, Destination: into, Category: f.group, Local: true, HideDefault: true, Sources: f.sources(name, number)})
}

// Uint64 adds a flag.
func (f *Flags) Uint64(into *uint64, name string, otherwise uint64, usage string) {
	f.add(&urfave.Uint64Flag{Name: name, Value: otherwise, Usage: usage, Destination: into, Category: f.group, Local: true, HideDefault: otherwise == 0, Sources: f.sources(name, number)})
}

// Float adds a flag.
func (f *Flags) Float(into *float64, name string, usage string) {
	f.add(&urfave.FloatFlag{Name: name, Usage: usage, Destination: into, Category: f.group, Local: true, HideDefault: true, Sources: f.sources(name, number)})
}

// Address adds a flag for an address.
func (f *Flags) Address(into *common.Address, name, usage string) {
	f.parsed(name, usage+" (`address`)", "", func(s string) (err error) { *into, err = Address(s); return err })
}

// Hash adds a flag for an id of 32 bytes, such as a channel's. Of nothing it is zero.
func (f *Flags) Hash(into *common.Hash, name, usage string) {
	f.parsed(name, usage+" (`id`)", "", func(s string) error {
		if *into = common.HexToHash(s); s != "" && into.Hex() != strings.ToLower(s) {
			return errors.New("0x and 64 hex digits")
		}
		return nil
	})
}

// List adds a flag for texts with commas between them.
func (f *Flags) List(into *[]string, name, usage string) {
	f.parsed(name, usage, "", func(s string) error { *into = list(s); return nil })
}

// MaxFee adds the flag for the most that a transaction offers for a unit of
// gas; it stays nil where nobody says, which is the chain's default.
func (f *Flags) MaxFee(into **big.Int) {
	f.parsed("max-fee", "most to offer for a unit of gas, in `gwei`; 500 on most chains if not said", "", func(s string) error {
		if s == "" {
			return nil
		}
		fee, ok := new(big.Rat).SetString(s)
		if !ok || fee.Sign() <= 0 {
			return errors.New("an amount of gwei above 0, such as 40 or 0.5")
		}
		fee.Mul(fee, new(big.Rat).SetInt64(1_000_000_000))
		*into = new(big.Int).Quo(fee.Num(), fee.Denom())
		return nil
	})
}

// Coins adds a flag for two amounts of native coin, for one party and for all.
func (f *Flags) Coins(one, all **big.Int, name, otherwise, usage string) {
	f.parsed(name, usage, otherwise, func(s string) error {
		first, second, ok := strings.Cut(s, ",")
		a, err := units.Parse(strings.TrimSpace(first), 18)
		b, err2 := units.Parse(strings.TrimSpace(second), 18)
		if err != nil || err2 != nil || !ok {
			return fmt.Errorf("two amounts of native coin such as %s", otherwise)
		}
		*one, *all = a.ToBig(), b.ToBig()
		return nil
	})
}

// parsed adds a flag whose text is taken apart.
func (f *Flags) parsed(name, usage, otherwise string, parse func(string) error) {
	f.said[name] = true
	v := &value{text: otherwise, parse: parse}
	if err := parse(otherwise); otherwise != "" && err != nil {
		panic(err)
	}
	f.add(&urfave.GenericFlag{Name: name, Value: v, Usage: usage, DefaultText: otherwise, Category: f.group, Local: true, Sources: f.sources(name, text)})
}

func (f *Flags) add(flag urfave.Flag) { f.list = append(f.list, flag) }

// Others adds the flags of another subcommand that f has not, so that it takes the same command line and the same file; used are those of
// them that mean something to it.
func (f *Flags) Others(of *Flags, used ...string) {
	have := make(map[string]bool)
	for _, flag := range f.list {
		have[flag.Names()[0]] = true
	}
	for _, flag := range of.list {
		name := flag.Names()[0]
		if have[name] {
			continue
		}
		f.add(flag)
		if !slices.Contains(used, name) {
			f.others = append(f.others, flag)
		}
	}
}

// Ignored are those of Others that were given and mean nothing here, as they are written.
func (f *Flags) Ignored() (names []string) {
	for _, flag := range f.others {
		if flag.IsSet() {
			names = append(names, "--"+flag.Names()[0])
		}
	}
	return names
}

// value is a flag's text that is taken apart as it is set.
type value struct {
	text  string
	parse func(string) error
}

func (v *value) Set(s string) error { v.text = s; return v.parse(s) }
func (v *value) Get() any           { return v.text }
func (v *value) String() string     { return v.text }

// Address reads 0x and 40 hex digits; anything shorter would silently be another account. Of nothing it is zero.
func Address(text string) (common.Address, error) {
	if text == "" {
		return common.Address{}, nil
	}
	if len(text) != 42 || !common.IsHexAddress(text) {
		return common.Address{}, errors.New("0x and 40 hex digits")
	}
	return common.HexToAddress(text), nil
}

func list(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

// RPC adds the flag for the chain's endpoint; usage goes on after its name.
func (f *Flags) RPC(into *string, usage string) {
	f.Text(into, "rpc", "http://127.0.0.1:8545", "`URL` of the chain's JSON-RPC, or several with commas between them"+usage)
}

// TrustedProxies adds the flag.
func (f *Flags) TrustedProxies(into *[]string) {
	f.List(into, "trusted-proxies", "`ADDRESS,..` or networks such as 10.0.0.0/8 of the proxies in front, which say by X-Forwarded-For who a request is from. Without it clients behind a proxy share their limits")
}

// Key adds the flags that say where the key is.
func (f *Flags) Key() *KeyFlags {
	f.Group("Key")
	f.key = new(KeyFlags)
	f.key.register(f)
	return f.key
}

// Log adds the flags of what is logged.
func (f *Flags) Log(level string) {
	f.Group("Log")
	f.logs = true
	f.Text(&f.level, "log-level", level, "debug, info, warn or error")
	f.Text(&f.format, "log-format", "text", "text or json")
}

// Logger opens the log.
func (f *Flags) Logger() (*slog.Logger, error) {
	log, err := Logger(f.level, f.format)
	return log, Usage(err)
}

// KeyGiven reports whether the program was given a key, where it can do without.
func (f *Flags) KeyGiven() bool { return f.key.keystore != "" || os.Getenv(KeyVariable) != "" }

// LoadKey opens the program's key.
func (f *Flags) LoadKey() (*channel.Key, error) { return f.key.load() }

// Args has the subcommand take arguments, which the help calls so.
func (f *Flags) Args(usage string) { f.args = usage }

// Command is the subcommand: what it is for, in a line and at more length, and what it does with its arguments.
func (f *Flags) Command(usage, more string, run func(ctx context.Context, args []string) error, commands ...*urfave.Command) *urfave.Command {
	return &urfave.Command{
		Name: f.name, Usage: usage, Description: more, Flags: f.list, ArgsUsage: f.args, Commands: commands, HideHelpCommand: true,
		OnUsageError: func(_ context.Context, _ *urfave.Command, err error, _ bool) error { return f.mistyped(err) },
		Action: func(ctx context.Context, c *urfave.Command) error {
			if f.args == "" && c.Args().Present() {
				return f.noFlag(c.Args().First())
			}
			return run(ctx, c.Args().Slice())
		},
	}
}

// Listen opens the address that a flag names.
func Listen(name, address string) (net.Listener, error) {
	listener, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return nil, fmt.Errorf("--%s: %w: another program is there: end it, or listen elsewhere", name, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("--%s: %w: ports below 1024 are for root, or for who has CAP_NET_BIND_SERVICE (AmbientCapabilities= of a systemd unit)", name, err)
	case err != nil:
		return nil, fmt.Errorf("--%s: %w", name, err)
	}
	return listener, nil
}

// Listeners opens the addresses of --listen and of --admin, where an operator finds metrics and health; of that none if it is empty.
// A program says that it serves when it has both.
func Listeners(listen, admin string) (public, operator net.Listener, err error) {
	if public, err = Listen("listen", listen); err != nil || admin == "" {
		return public, nil, err
	}
	if operator, err = Listen("admin", admin); err != nil {
		return nil, nil, errors.Join(err, public.Close())
	}
	return public, operator, nil
}

// SayAdmin prints where the operator's listener is, if there is one.
func SayAdmin(operator net.Listener) {
	if operator != nil {
		fmt.Printf("admin at http://%s (/metrics, /healthz)\n", operator.Addr())
	}
}
