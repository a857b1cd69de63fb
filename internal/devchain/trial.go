package devchain

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"
)

const purse = 1_000_000_000 // base units that the renter has: 1,000 tokens

// Trial is a chain for programs to be tried on: with a provider's and a renter's account, a directory for databases, and what the programs
// need to know of it in a file that a shell can source.
type Trial struct {
	*Chain
	Dir string // goes with the chain, with the databases in it
}

// NewTrial starts one, and writes the file.
func NewTrial(ctx context.Context, opts Options, file string) (*Trial, error) {
	c, err := Start(ctx, opts)
	if err != nil {
		return nil, err
	}
	t := &Trial{Chain: c}
	if err := t.write(ctx, file); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	return t, nil
}

func (t *Trial) write(ctx context.Context, file string) (err error) {
	provider, renter := t.Keys[0], t.Keys[1]
	if err := t.Fund(ctx, crypto.PubkeyToAddress(renter.PublicKey), nil, *uint256.NewInt(purse)); err != nil {
		return err
	}
	if t.Dir, err = os.MkdirTemp("", "gpupay-devchain-"); err != nil {
		return err
	}
	env := fmt.Sprintf("export DEVCHAIN_DIR=%s\nexport GPUPAY_RPC=%s\nexport GPUPAY_ESCROW=%s\nexport GPUPAY_TOKEN=%s\nexport PROVIDER_KEY=%x\nexport RENTER_KEY=%x\n",
		t.Dir, t.URL, t.Escrow, t.Token, crypto.FromECDSA(provider), crypto.FromECDSA(renter))
	return os.WriteFile(file, []byte(env), 0o600)
}

// Close stops the chain, and deletes the directory.
func (t *Trial) Close() error {
	err := t.Chain.Close()
	if t.Dir != "" {
		err = errors.Join(err, os.RemoveAll(t.Dir))
	}
	return err
}
