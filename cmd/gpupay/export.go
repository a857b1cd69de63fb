package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/ethereum/go-ethereum/common"
	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// export writes a bundle from a provider's or a renter's database.
type export struct {
	flags                    *cli.Flags
	db, channel, lease, path string
	out                      io.Writer
}

func (e *export) register(app *cli.App) {
	e.flags, e.out = app.Flags("export", "export"), os.Stdout
	f := e.flags
	f.Actions("")
	f.Text(&e.db, "db", "", "a provider's or a renter's database (`path`)")
	f.Text(&e.channel, "channel", "", "the channel's `id`; without it the newest of a renter, or the only one of a provider")
	f.Text(&e.lease, "lease", "", "a lease's `id`, instead of the channel's")
	f.Text(&e.path, "out", "", "where to write the bundle (`path`); stdout if empty")
}

func (e *export) command() *urfave.Command {
	return e.flags.Command("write the bundle of one channel from the database of its provider or its renter, which may run meanwhile", "",
		func(ctx context.Context, _ []string) error { return e.run(ctx, e.out) })
}

func (e *export) run(ctx context.Context, out io.Writer) error {
	named := e.channel + e.lease
	id := common.HexToHash(named)
	switch {
	case e.db == "":
		return cli.Usage(errors.New("export: --db is empty: give the path of a provider's or a renter's database"))
	case e.channel != "" && e.lease != "", named != "" && id.Hex() != named:
		return cli.Usage(errors.New("export: give --channel or --lease, with an id of 0x and 64 hex digits"))
	}
	b, err := exportFile(ctx, e.db, id)
	switch {
	case err != nil && named == "":
		return fmt.Errorf("%w (--channel or --lease names one)", err)
	case err != nil:
		return err
	case named == "": // beside the bundle, which may go to stdout
		fmt.Fprintf(os.Stderr, "exporting channel %s of %s, the newest that is there: --channel names another one\n", b.Channel, redact.Database(e.db))
	}
	return write(e.path, b, out)
}

// exportFile is what a database kept about a channel, whoever wrote it: a provider, or a payer of either scheme.
func exportFile(ctx context.Context, path string, id common.Hash) (*audit.Bundle, error) {
	b, err := provider.ExportFile(ctx, path, id)
	if errors.Is(err, provider.ErrOtherDatabase) {
		b, err = renter.ExportFile(ctx, path, id)
		if errors.Is(err, channel.ErrUnknown) {
			b, err = x402client.ExportFile(ctx, path, id)
		}
	}
	return b, err
}
