package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/redact"
)

// App is a program of subcommands, which share a configuration file.
type App struct {
	Out  io.Writer // of help; stdout if nil
	file file
}

// Run runs the subcommand that the arguments name, the program's own name first. What is wrong with them is an error with
// StatusUsage.
func (a *App) Run(ctx context.Context, args []string, name, about, more string, commands ...*urfave.Command) error {
	root := &urfave.Command{
		Writer: a.Out, Name: name, Usage: about, Description: more, Commands: commands, HideVersion: true, HideHelpCommand: true,
		Flags: []urfave.Flag{&urfave.StringFlag{Name: "config", Usage: "configuration `file`, TOML; a table such as [serve] is for one command", Destination: &a.file.path,
			Sources: urfave.EnvVars("GPUPAY_CONFIG")}},
		OnUsageError:   func(_ context.Context, c *urfave.Command, err error, _ bool) error { return (&Flags{}).mistyped(err) },
		ExitErrHandler: func(context.Context, *urfave.Command, error) {}, // Main's
		Before: func(ctx context.Context, c *urfave.Command) (context.Context, error) {
			return ctx, Usage(a.file.check(c.Root()))
		},
		Action: func(_ context.Context, c *urfave.Command) error {
			if word := c.Args().First(); word != "" && word != "help" {
				return Usage(fmt.Errorf("%q is no command of %s (--help lists them)", redact.Database(word), name))
			}
			return urfave.ShowRootCommandHelp(c)
		},
	}
	err := root.Run(ctx, args)
	return unparsed(err)
}

var (
	// ofCommandLine and ofSource are what the library says of a value that does not parse.
	ofCommandLine = regexp.MustCompile(`(?s)^invalid value ("(?:[^"\\]|\\.)*") for flag -(\S+?): (.*)$`)
	ofSource      = regexp.MustCompile(`(?s)^could not parse ("(?:[^"\\]|\\.)*") as (\S+) value from (.+) for flag (\S+): (.*)$`)
)

// unparsed says of a value of the environment or of a file that does not parse where it stands, and which shape it has.
func unparsed(err error) error {
	if err == nil {
		return nil
	}
	if said := ofSource.FindStringSubmatch(err.Error()); said != nil {
		source := strings.ReplaceAll(strings.Replace(said[3], `environment variable "`, "$", 1), `"`, "")
		return Usage(fmt.Errorf("--%s %s (from %s) is not %s", said[4], said[1], source, shape(said[5])))
	}
	return err
}

// shape says of a value which one it should have, where the parser says only that it does not parse.
func shape(said string) string {
	switch {
	case strings.HasPrefix(said, "time: "):
		return "a time with its unit, such as 60s, 5m or 24h"
	case strings.Contains(said, "ParseFloat"):
		return "a number"
	case strings.Contains(said, "ParseInt"), strings.Contains(said, "ParseUint"):
		return "a whole number"
	case strings.Contains(said, "ParseBool"):
		return "true or false"
	}
	return said
}

// mistyped says what is wrong with a command line.
func (f *Flags) mistyped(err error) error {
	if said := ofCommandLine.FindStringSubmatch(err.Error()); said != nil {
		return Usage(fmt.Errorf("--%s %s is not %s (--help lists the flags)", said[2], said[1], shape(said[3])))
	}
	if name, unknown := strings.CutPrefix(err.Error(), "flag provided but not defined: "); unknown {
		return f.noFlag("--" + strings.TrimLeft(name, "-"))
	}
	if name, missing := strings.CutPrefix(err.Error(), "flag needs an argument: "); missing {
		err = fmt.Errorf("%s needs a value", name)
	}
	return Usage(fmt.Errorf("%w (--help lists the flags)", err))
}

func (f *Flags) noFlag(word string) error {
	word, _, _ = strings.Cut(word, "=") // a value may be a secret
	return Usage(fmt.Errorf("%q is not a flag of this command (--help lists the flags)", redact.Database(word)))
}

// errSecret says why a configuration file may not hold a key.
var errSecret = errors.New("a key or a passphrase does not stand in a configuration file, which is copied and committed: use $" + KeyVariable + ", or keystore and passphrase-file")
