package settle_test

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
	"github.com/gpupay/gpupay/sdk/settle"
)

// A payee that runs its own timer applies its policy: 300 of one channel are left where they are, and fetched with what comes after.
func ExampleSettler_Once() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	local, err := devchain.Start(ctx, devchain.Options{BlockTime: 50 * time.Millisecond})
	must(err)
	defer local.Close()
	db, err := store.Open(ctx, filepath.Join(dir, "payee.db"))
	must(err)
	defer db.Close()
	escrow, err := chain.NewEscrow(ctx, local.Backend, local.Escrow)
	must(err)
	outbox, err := chain.OpenStore(ctx, db)
	must(err)

	payer, key := channel.NewKey(local.Keys[1]), channel.NewKey(local.Keys[0])
	sender := &chain.Sender{Backend: local.Backend, Key: key, Store: outbox, Poll: 20 * time.Millisecond}
	payee := &channel.Payee{Store: db.Payee(), Domain: escrow.Domain()}
	settler := settle.Settler{Payee: payee, Contract: escrow, Sender: sender, Policy: settle.Policy{MinValue: *uint256.NewInt(500)}}
	terms := openExample(ctx, local, escrow, sender, payer, payee)
	for _, total := range []uint64{300, 700} {
		voucher, err := escrow.Domain().Sign(ctx, payer, terms.ID(), *uint256.NewInt(total)) // channel.Payer.Pay, where there are caps
		must(err)
		_, err = payee.Accept(ctx, voucher)
		must(err)
		must(settler.Once(ctx))
		seen, err := escrow.View(ctx, terms.ID(), nil)
		must(err)
		fmt.Println("vouchered", total, "settled", seen.Settled.Dec())
	}
	// Output:
	// vouchered 300 settled 0
	// vouchered 700 settled 700
}

// openExample deposits 1000 of a payer, who signs for it, in a channel that the payee knows from then on.
func openExample(ctx context.Context, local *devchain.Chain, escrow *chain.Escrow, sender *chain.Sender, payer *channel.Key, payee *channel.Payee) channel.Terms {
	deposit := *uint256.NewInt(1000)
	must(local.Fund(ctx, payer.Address(), nil, deposit))
	token, err := chain.NewToken(ctx, local.Backend, local.Token)
	must(err)
	separator, err := token.DomainSeparator(ctx)
	must(err)
	terms := channel.Terms{ChainID: escrow.ChainID(), Escrow: escrow.Address(), Payer: payer.Address(), Payee: sender.Address(), Token: token.Address}
	signed, err := chain.SignAuthorization(ctx, payer, separator, channel.Authorization{From: payer.Address(), To: escrow.Address(), Value: deposit,
		ValidBefore: 1 << 40, Nonce: channel.OpenNonce(payer.Address(), terms)})
	must(err)
	id, err := sender.Submit(ctx, escrow.OpenAuthorizedCall(terms, signed))
	must(err)
	_, err = sender.Wait(ctx, id, 1)
	must(err)
	view, err := escrow.View(ctx, terms.ID(), nil)
	must(err)
	_, err = payee.Register(ctx, terms, view)
	must(err)
	return terms
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
