package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

// What a payer signed is on disk before anybody has it: a process that begins anew on its file finds every channel and what it may cost.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	file, key := filepath.Join(dir, "payer.db"), channel.NewKey(crypto.ToECDSAUnsafe(common.LeftPadBytes([]byte{7}, 32)))
	terms := channel.Terms{ChainID: 31337, Escrow: common.Address{1}, Payer: key.Address(), Payee: common.Address{2}, Token: common.Address{3}}
	open := func() (*store.DB, channel.Payer) {
		db, err := store.OpenAlone(ctx, file) // no second process signs from it
		must(err)
		most := channel.MaxAmount()
		return db, channel.Payer{Store: db.Payer(), Signer: key, Domain: channel.EscrowDomain(terms.ChainID, terms.Escrow),
			Caps: channel.Caps{PerChannel: most, PerPayee: most, PerDay: most}}
	}

	db, payer := open()
	must(payer.Open(ctx, terms, *uint256.NewInt(1000)))
	_, err = payer.Pay(ctx, terms.ID(), *uint256.NewInt(600))
	must(err)
	must(db.Close())

	db, payer = open()
	defer db.Close()
	known, err := payer.Channels(ctx)
	must(err)
	for _, s := range known {
		fmt.Println(s.Status, "deposit", s.Deposit.Dec(), "signed for", s.Signed.Dec())
	}
	// Output:
	// pending deposit 1000 signed for 600
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
