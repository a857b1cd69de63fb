package proxying

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/fund"
	"github.com/gpupay/gpupay/sdk/units"
)

// KeysFile is where the local keys of a proxy are.
func KeysFile(dir string) string { return filepath.Join(dir, "keys.json") }

func keysIn(dir string) bool {
	_, err := os.Stat(KeysFile(dir))
	return err == nil
}

// Wallet is the key in a proxy's directory: a keystore of go-ethereum's, whose passphrase lies beside it. It is made if there is none, the
// passphrase first, so that no wallet is ever without its own.
func Wallet(dir string, out io.Writer) (*channel.Key, error) {
	store, secret := filepath.Join(dir, "wallet.json"), filepath.Join(dir, "wallet.passphrase")
	passphrase, err := os.ReadFile(secret)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(store); err == nil {
			return nil, fmt.Errorf("the wallet %s is there, and its passphrase %s is not: put it back from your copy", store, secret)
		}
		passphrase = []byte(rand.Text())
		err = writeSynced(secret, passphrase)
	}
	if err != nil {
		return nil, fmt.Errorf("the wallet's passphrase: %w", err)
	}
	text := strings.TrimSpace(string(passphrase))
	if _, err := os.Stat(store); err == nil {
		return channel.OpenKeystore(store, text)
	}
	key, err := channel.NewKeystore(store, text)
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "A wallet was made: %s\nIt is in %s, with its passphrase beside it. Keep a copy of both elsewhere: who loses them loses what is in it.\n", key.Address(), dir)
	return key, nil
}

// writeSynced writes a new file that only its owner reads, on disk when it returns.
func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// gift is what a wallet on a chain for tests gets, in base units: 20 dollars of no worth.
const gift = 20_000_000

// walletPage is where the operator's listener has the page on which a person fills the wallet.
const walletPage = "/wallet/"

// purse is the wallet as a person fills it.
func (p *Proxying) purse(ctx context.Context, o *opened) (fund.Wallet, error) {
	token := o.client.Token()
	id, err := o.client.Wallet().Backend.ChainID(ctx)
	return fund.Wallet{
		Address: p.Key.Address(), ChainID: id, Token: token.Address, Symbol: token.Symbol, Decimals: token.Decimals,
		Balance: func(ctx context.Context) (uint256.Int, error) { return token.Balance(ctx, p.Key.Address()) },
	}, err
}

// greet says what a person needs to know.
func (p *Proxying) greet(ctx context.Context, o *opened, purse fund.Wallet, public, admin net.Listener) {
	token := o.client.Token()
	has, err := purse.Balance(ctx)
	if err == nil && has.IsZero() && devchain.Gives(ctx, p.Client.RPC, token.Address, p.Key.Address(), *uint256.NewInt(gift)) == nil {
		fmt.Fprintln(p.Out, "This is a chain for tests: the wallet was given dollars that are worth nothing.")
		has, err = purse.Balance(ctx)
	}
	switch {
	case err != nil:
		fmt.Fprintln(p.Out, "What is in the wallet is not known now.")
	case has.IsZero():
		fmt.Fprintf(p.Out, "The wallet is empty: send %s to %s. Send the token %s on chain %s and nothing else, and on no other chain: it could not be got back. Requests are answered some seconds after it is there.\n",
			token.Symbol, p.Key.Address(), token.Address, purse.ChainID)
		_ = purse.WriteCode(p.Out)
		if admin != nil {
			fmt.Fprintf(p.Out, "From a wallet in your browser you can send it at http://%s%s\n", admin.Addr(), walletPage)
		}
	default:
		fmt.Fprintf(p.Out, "In the wallet: $%s\n", units.Format(has, token.Decimals))
	}
	fmt.Fprintf(p.Out, "At most $%s is spent a day (UTC).\n\n  export OPENAI_BASE_URL=http://%s/v1\n", p.daily(), public.Addr())
	if o.keys.Needed() {
		fmt.Fprint(p.Out, "  export OPENAI_API_KEY=...   # a key of: gpupay proxy key add NAME\n\n")
		return
	}
	fmt.Fprint(p.Out, "  export OPENAI_API_KEY=none  # any: programs on this machine need none until you make one, with: gpupay proxy key add NAME\n\n")
}
