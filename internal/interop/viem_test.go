package interop

import (
	"crypto/ecdsa"
	"math/big"
	"strconv"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

const deposit = 500_000

// report is what viem.mjs prints: the rental as the renter saw it.
type report struct {
	ChannelID common.Hash    `json:"channelId"`
	Payer     common.Address `json:"payer"`
	Owed      string         `json:"owed"`
	Records   int            `json:"records"`
	Signature hexutil.Bytes  `json:"signature"` // viem's, of the voucher over Owed
	TxHash    common.Hash    `json:"txHash"`    // of the close
}

func (r *rig) rent(private *ecdsa.PrivateKey, mode string) (found report, owed uint64) {
	r.Helper()
	input := map[string]string{
		"url": r.url, "rpc": r.chain.URL, "key": hexutil.Encode(crypto.FromECDSA(private)), "deposit": strconv.Itoa(deposit),
	}
	node(r.T, &found, input, "viem.mjs", mode)
	owed, err := strconv.ParseUint(found.Owed, 10, 64)
	if err != nil || owed == 0 || owed > deposit || found.Records < 3 {
		r.Fatalf("viem's rental is %+v (%v)", found, err)
	}
	voucher := channel.Voucher{ChannelID: found.ChannelID, Cumulative: *uint256.NewInt(owed), Signature: found.Signature}
	if err := r.escrow.Domain().Verify(voucher, found.Payer); err != nil {
		r.Fatal(err)
	}
	return found, owed
}

// paid adds up the settlements so far: a lease that ends is settled at once, maybe before its last voucher has come.
func (r *rig) paid() (sum uint64, last common.Hash) {
	r.Helper()
	for len(r.settled) > 0 {
		s := <-r.settled
		if len(s.Skipped) > 0 {
			r.Errorf("settlement %s skipped %+v", s.Tx, s.Skipped)
		}
		sum, last = sum+s.Paid.Uint64(), s.Tx
	}
	return sum, last
}

// TestViemRentsWithoutGas: a renter with no native coin and none of our code opens, pays, releases and closes, and what
// viem signed is what moves the money.
func TestViemRentsWithoutGas(t *testing.T) {
	r := newRig(t)
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	payer := crypto.PubkeyToAddress(private.PublicKey)
	r.chain.Mint(t, payer, purse)
	found, owed := r.rent(private, "gasless")
	r.carries(found.TxHash, found.Signature)
	if view := r.view(found.ChannelID); !view.Finalized {
		t.Errorf("the channel is %+v after its close", view)
	}
	for who, want := range map[common.Address]uint64{payer: purse - owed, r.payee: owed, r.chain.Escrow: 0} {
		if got := r.chain.Tokens(t, who); got != want {
			t.Errorf("%s has %d, want %d", who, got, want)
		}
	}
	if nonce, err := r.chain.Backend.NonceAt(t.Context(), payer, nil); err != nil || nonce != 0 {
		t.Errorf("the payer sent %d transactions (%v)", nonce, err)
	}
	if coins, err := r.chain.Backend.BalanceAt(t.Context(), payer, nil); err != nil || coins.Cmp(new(big.Int)) != 0 {
		t.Errorf("the payer has %s wei (%v)", coins, err)
	}
}

// TestViemOpensByTransaction: a viem wallet sends approve and open itself; the provider settles the voucher that viem
// signed while the channel stays open.
func TestViemOpensByTransaction(t *testing.T) {
	r := newRig(t)
	private := r.chain.Keys[1]
	payer := crypto.PubkeyToAddress(private.PublicKey)
	r.chain.Mint(t, payer, purse)
	found, owed := r.rent(private, "hash")
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	paid, last := r.paid()
	if paid != owed {
		t.Errorf("settled %d, owed is %d", paid, owed)
	}
	r.carries(last, found.Signature)
	view := r.view(found.ChannelID)
	if view.Finalized || view.Deposit.Uint64() != deposit || view.Settled.Uint64() != owed {
		t.Errorf("the channel is %+v, owed is %d", view, owed)
	}
	for who, want := range map[common.Address]uint64{payer: purse - deposit, r.payee: owed, r.chain.Escrow: deposit - owed} {
		if got := r.chain.Tokens(t, who); got != want {
			t.Errorf("%s has %d, want %d", who, got, want)
		}
	}
}
