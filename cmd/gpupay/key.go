package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
)

// keys makes keystores, and says whose they are.
type keys struct {
	flags, create, take, show *cli.Flags
	from                      string
	in                        io.Reader
	out                       io.Writer
}

const keysMore = `A keystore is a file of go-ethereum's (Web3 Secret Storage, scrypt) that its passphrase opens. The passphrase is read from
--passphrase-file or, under systemd, from the credential 'passphrase' (LoadCredential=passphrase:FILE): no command line has it.
Keep a copy of both, apart, off this host: who has neither loses what is on the address, for good.`

func newKeys(app *cli.App) *keys {
	k := &keys{flags: app.Flags("key", "key"), create: app.Flags("new", "key new"), take: app.Flags("import", "key import"), show: app.Flags("address", "key address"), in: os.Stdin, out: os.Stdout}
	k.create.Key()
	k.take.Actions("")
	k.take.Text(&k.from, "from", "", "file with the private key, 64 hex digits (`path`); - is standard input")
	k.take.Key()
	k.show.Key()
	return k
}

func (k *keys) command() *urfave.Command {
	return k.flags.Command("make a key, import one, or say its address", keysMore, func(context.Context, []string) error {
		return cli.Usage(errors.New("key: say new, import or address (--help says more)"))
	},
		k.create.Command("make a key and write it into a new keystore", "", func(context.Context, []string) error { return k.new() }),
		k.take.Command("write a private key from a file into a new keystore", "", func(context.Context, []string) error { return k.imports() }),
		k.show.Command("say the address of the key in a keystore, or in $"+cli.KeyVariable, "", func(context.Context, []string) error { return k.address() }))
}

func (k *keys) new() error {
	path, passphrase, err := k.create.Keystore()
	if err != nil {
		return err
	}
	key, err := channel.NewKeystore(path, passphrase)
	return k.made(key, path, err)
}

func (k *keys) imports() error {
	if k.from == "" {
		return cli.Usage(errors.New("key import: --from names no file with the private key: - is standard input"))
	}
	path, passphrase, err := k.take.Keystore()
	if err != nil {
		return err
	}
	in := k.in
	if k.from != "-" {
		file, err := os.Open(k.from)
		if err != nil {
			return fmt.Errorf("--from: %w", err)
		}
		defer file.Close()
		in = file
	}
	text, err := io.ReadAll(io.LimitReader(in, 1<<10))
	if err != nil {
		return fmt.Errorf("--from: %w", err)
	}
	key, err := channel.ImportKeystore(path, passphrase, strings.TrimSpace(string(text)))
	return k.made(key, path, err)
}

// made prints the address alone, for a script, and what to do about the file beside it.
func (k *keys) made(key *channel.Key, path string, err error) error {
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "the key is in %s: keep a copy of it, and one of its passphrase apart from it, off this host\n", path)
	fmt.Fprintln(k.out, key.Address())
	return nil
}

func (k *keys) address() error {
	key, err := k.show.LoadKey()
	if err == nil {
		fmt.Fprintln(k.out, key.Address())
	}
	return err
}
