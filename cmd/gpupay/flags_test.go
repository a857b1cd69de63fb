package main

import (
	"context"
	"testing"

	"github.com/gpupay/gpupay/internal/cli"
)

// reads runs a subcommand's command line as far as its configuration is read.
func reads(t *testing.T, app *cli.App, flags *cli.Flags, name string, read func() error, args []string) error {
	t.Helper()
	return app.Run(t.Context(), append([]string{"gpupay", name}, args...), "gpupay", "", "",
		flags.Command("", "", func(context.Context, []string) error { return read() }))
}

func parseServe(t *testing.T, args []string) (*serve, error) {
	app := new(cli.App)
	s := newServe(app)
	return s, reads(t, app, s.flags, "serve", s.read, args)
}

func parseRent(t *testing.T, args []string) (*rent, error) {
	app := new(cli.App)
	r := newRent(app)
	return r, reads(t, app, r.flags, "rent", r.read, args)
}

func parseNode(t *testing.T, args []string) (*node, error) {
	app := new(cli.App)
	n := newNode(app)
	return n, reads(t, app, n.flags, "node", n.read, args)
}
