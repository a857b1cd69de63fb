package tower_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/settle"
	"github.com/gpupay/gpupay/sdk/tower"
	"github.com/gpupay/gpupay/sdk/wire"
)

// A payee tells a watchtower of a voucher for 700 and is gone. Its payer wants the deposit back, and the tower settles before that
// is paid out.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	local, err := devchain.Start(ctx, devchain.Options{BlockTime: 50 * time.Millisecond})
	must(err)
	defer local.Close()
	settled := make(chan settle.Settlement, 1)
	watch, err := tower.New(ctx, tower.Config{
		RPC: local.URL, Escrow: local.Escrow, Key: channel.NewKey(local.Keys[2]), Database: filepath.Join(dir, "tower.db"),
		Tokens: map[common.Address]string{local.Token: "0.0001"}, // what a channel must be worth
		Chain:  tower.Chain{Poll: 50 * time.Millisecond}, Patience: time.Second, Log: slog.New(slog.DiscardHandler),
		OnSettled: func(s settle.Settlement) { settled <- s },
	})
	must(err)
	stop := running(watch.Run)
	server := httptest.NewServer(watch)
	payer := channel.NewKey(local.Keys[1])
	terms := tell(ctx, local, dir, payer, watch, server.URL)

	request := wire.LeaveRequest{Terms: wire.NewTerms(terms), Deadline: 1 << 40}
	request.Signature, err = payer.Sign(ctx, channel.EscrowDomain(terms.ChainID, terms.Escrow).RequestCloseDigest(terms.ID(), 0, request.Deadline))
	must(err)
	must((&tower.Client{URL: server.URL}).RequestClose(ctx, request)) // a payer without coin for gas
	paid := <-settled
	fmt.Println("paid to the payee:", paid.Paid.Dec())
	server.Close()
	stop()
	must(watch.Close())
	// Output: paid to the payee: 700
}

// tell opens a channel, whose payee takes a voucher for 700 of 1000 and runs until the tower has it too.
func tell(ctx context.Context, local *devchain.Chain, dir string, payer *channel.Key, watch *tower.Tower, url string) channel.Terms {
	db, err := store.Open(ctx, filepath.Join(dir, "payee.db"))
	must(err)
	defer db.Close()
	outbox, err := chain.OpenStore(ctx, db)
	must(err)
	escrow, err := chain.NewEscrow(ctx, local.Backend, local.Escrow)
	must(err)
	token, err := chain.NewToken(ctx, local.Backend, local.Token)
	must(err)
	separator, err := token.DomainSeparator(ctx)
	must(err)
	deposit, key := *uint256.NewInt(1000), channel.NewKey(local.Keys[0])
	must(local.Fund(ctx, payer.Address(), nil, deposit))
	terms := channel.Terms{ChainID: escrow.ChainID(), Escrow: escrow.Address(), Payer: payer.Address(), Payee: key.Address(), Token: token.Address}
	signed, err := chain.SignAuthorization(ctx, payer, separator, channel.Authorization{From: payer.Address(), To: escrow.Address(), Value: deposit,
		ValidBefore: 1 << 40, Nonce: channel.OpenNonce(payer.Address(), terms)})
	must(err)
	sender := &chain.Sender{Backend: local.Backend, Key: key, Store: outbox, Poll: 20 * time.Millisecond}
	id, err := sender.Submit(ctx, escrow.OpenAuthorizedCall(terms, signed))
	must(err)
	_, err = sender.Wait(ctx, id, 1)
	must(err)
	view, err := escrow.View(ctx, terms.ID(), nil)
	must(err)
	payee := &channel.Payee{Store: db.Payee(), Domain: escrow.Domain()}
	_, err = payee.Register(ctx, terms, view)
	must(err)
	voucher, err := escrow.Domain().Sign(ctx, payer, terms.ID(), *uint256.NewInt(700))
	must(err)
	_, err = payee.Accept(ctx, voucher)
	must(err)
	defer running(tower.NewFeed(payee, []string{url}, 0, slog.New(slog.DiscardHandler)).Run)()
	for {
		known, err := watch.Channels(ctx) // what is there is on its disk
		must(err)
		if len(known) == 1 && known[0].Accepted == voucher.Cumulative {
			return terms
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// running runs a part until what it returns is called.
func running(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	return func() {
		cancel()
		<-ended
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
