package channel_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

// A payer signs for a deposit of 1000, never above its cap. Its payee keeps the newest voucher, which is for all that came before it.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	payers, err := store.Open(ctx, filepath.Join(dir, "payer.db"))
	must(err)
	defer payers.Close()
	payees, err := store.Open(ctx, filepath.Join(dir, "payee.db"))
	must(err)
	defer payees.Close()

	key, escrow := exampleKey(1), common.Address{0xe5}
	terms := channel.Terms{ChainID: 31337, Escrow: escrow, Payer: key.Address(), Payee: exampleKey(2).Address(), Token: common.Address{0x70}}
	domain, cap := channel.EscrowDomain(terms.ChainID, escrow), channel.MaxAmount()
	payer := channel.Payer{Store: payers.Payer(), Signer: key, Domain: domain, Caps: channel.Caps{PerChannel: *uint256.NewInt(1000), PerPayee: cap, PerDay: cap}}
	must(payer.Open(ctx, terms, *uint256.NewInt(1000)))
	payee := channel.Payee{Store: payees.Payee(), Domain: domain}
	_, err = payee.Register(ctx, terms, channel.ChainView{Deposit: *uint256.NewInt(1000)}) // as the chain has it
	must(err)

	for _, total := range []uint64{300, 700} {
		voucher, err := payer.Pay(ctx, terms.ID(), *uint256.NewInt(total))
		must(err)
		receipt, err := payee.Accept(ctx, voucher)
		must(err)
		fmt.Println(receipt.Outcome, receipt.State.Accepted.Dec())
	}
	state, err := payer.State(ctx, terms.ID())
	must(err)
	left := state.Left()
	fmt.Println("left to sign for:", left.Dec())
	// Output:
	// accepted 300
	// accepted 700
	// left to sign for: 300
}

// A payee that the token refuses to pay has what the escrow keeps for it sent elsewhere, by somebody else's transaction.
func ExampleDomain_WithdrawCreditDigest() {
	payee, token, to := exampleKey(2), common.Address{0x70}, common.Address{0x42}
	domain := channel.EscrowDomain(31337, common.Address{0xe5})
	const withdrawals, deadline = 0, 1_900_000_000 // chain.Credit has the first
	signature, err := payee.Sign(context.Background(), domain.WithdrawCreditDigest(payee.Address(), token, to, withdrawals, deadline))
	must(err)
	fmt.Println(len(signature), "bytes for Escrow.WithdrawCreditAuthorizedCall")
	// Output: 65 bytes for Escrow.WithdrawCreditAuthorizedCall
}

func exampleKey(n byte) *channel.Key {
	key, err := channel.ParseKey(common.BytesToHash([]byte{n}).Hex())
	must(err)
	return key
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
