package chain_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A payer without native coin signs a deposit, and its payee's outbox sends it: the transaction is on disk before any node has it.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	local, err := devchain.Start(ctx, devchain.Options{BlockTime: 50 * time.Millisecond})
	must(err)
	defer local.Close()
	payer, payee := channel.NewKey(local.Keys[1]), channel.NewKey(local.Keys[0])
	must(local.Fund(ctx, payer.Address(), nil, *uint256.NewInt(1_000_000)))

	escrow, err := chain.NewEscrow(ctx, local.Backend, local.Escrow)
	must(err)
	token, err := chain.NewToken(ctx, local.Backend, local.Token)
	must(err)
	separator, err := token.DomainSeparator(ctx)
	must(err)
	terms := channel.Terms{ChainID: escrow.ChainID(), Escrow: escrow.Address(), Payer: payer.Address(), Payee: payee.Address(), Token: token.Address}
	deposit, err := chain.SignAuthorization(ctx, payer, separator, channel.Authorization{From: payer.Address(), To: escrow.Address(),
		Value: *uint256.NewInt(500_000), ValidBefore: 1 << 40, Nonce: channel.OpenNonce(payer.Address(), terms)})
	must(err)

	db, err := store.Open(ctx, filepath.Join(dir, "payee.db"))
	must(err)
	defer db.Close()
	outbox, err := chain.OpenStore(ctx, db)
	must(err)
	sender := chain.Sender{Backend: local.Backend, Key: payee, Store: outbox, Poll: 20 * time.Millisecond}
	id, err := sender.Submit(ctx, escrow.OpenAuthorizedCall(terms, deposit))
	must(err)
	_, err = sender.Wait(ctx, id, 1) // one confirmation
	must(err)
	seen, err := escrow.View(ctx, terms.ID(), nil)
	must(err)
	fmt.Println("deposit in the escrow:", seen.Deposit.Dec())
	// Output: deposit in the escrow: 500000
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
