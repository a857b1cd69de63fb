package renter_test

import (
	"bytes"
	"errors"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestEscrowWithAPast: code that is ours to the byte stands on storage that its deployer's own constructor wrote: a credit of
// his, which is paid from what others deposit. Nothing is deposited there.
func TestEscrowWithAPast(t *testing.T) {
	m := testrig.NewMarket(t)
	const deposit = 5_000_000
	evil := deployWithACredit(t, m, deposit)
	escrow, err := chain.NewEscrow(t.Context(), m.Backend, evil)
	if err != nil {
		t.Fatal(err)
	}
	if err := escrow.VerifyCode(t.Context()); err != nil {
		t.Fatalf("its code is not ours, so this test shows nothing: %v", err)
	}
	if _, due, err := escrow.PayoutCall(t.Context(), m.PayeeAddress(), m.Token); err != nil || due.Uint64() != deposit {
		t.Fatalf("its deployer has a credit of %s, %v", due.Dec(), err)
	}
	before := m.Tokens(t, m.PayerAddress())
	v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Escrow = wire.Address(evil) })
	v.Script = func(*testrig.Stream) {}
	r := renterrig.Open(t, renterrig.Config(t, m, m.Payer))
	if _, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "5"}); !errors.Is(err, wallet.ErrEscrow) || !errors.Is(err, chain.ErrNotEscrow) {
		t.Errorf("%v, want ErrEscrow", err)
	}
	if after := m.Tokens(t, m.PayerAddress()); after != before {
		t.Errorf("%d base units went into it", before-after)
	}
}

// TestEscrowOfAnotherInstance: an escrow of ours under another salt is trusted if it is named.
func TestEscrowOfAnotherInstance(t *testing.T) {
	m := testrig.NewMarket(t)
	other, err := chain.DeploySalted(t.Context(), m.Backend, channel.NewKey(m.Keys[3]), chaintest.Grace, common.Hash{1})
	if err != nil {
		t.Fatal(err)
	}
	v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.Escrow = wire.Address(other) })
	v.Script = func(*testrig.Stream) {}
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	if _, err := r.Quote(t.Context(), v.Server.URL); !errors.Is(err, wallet.ErrEscrow) {
		t.Errorf("not named: %v", err)
	}
	config = renterrig.Config(t, m, m.Payer)
	config.Escrow = other
	if _, err := renterrig.Open(t, config).Quote(t.Context(), v.Server.URL); err != nil {
		t.Errorf("named: %v", err)
	}
}

// deployWithACredit deploys the escrow's runtime, with each of the constructor's words in its place, by a constructor that first
// writes the payee a credit in the token.
func deployWithACredit(t *testing.T, m *testrig.Market, amount uint64) common.Address {
	t.Helper()
	payee := m.PayeeAddress()
	nonce, err := m.Backend.PendingNonceAt(t.Context(), payee)
	if err != nil {
		t.Fatal(err)
	}
	address := crypto.CreateAddress(payee, nonce)
	code, err := m.Backend.CodeAt(t.Context(), m.Escrow, nil)
	if err != nil {
		t.Fatal(err)
	}
	code = bytes.Clone(code)
	for name, word := range map[string]common.Hash{
		"_cachedThis":            common.BytesToHash(address[:]),
		"_cachedDomainSeparator": channel.EscrowDomain(31337, address).Separator(),
	} {
		for _, at := range bindings.ChannelEscrowImmutables()[name] {
			copy(code[at:], word[:])
		}
	}
	pad := func(a common.Address) []byte { return common.LeftPadBytes(a[:], 32) }
	slot := crypto.Keccak256(pad(m.Token), crypto.Keccak256(pad(payee), make([]byte, 32))) // _credits is in slot 0
	value := uint256.NewInt(amount).Bytes32()
	write := bytes.Join([][]byte{{0x7f}, value[:], {0x7f}, slot, {0x55}}, nil) // PUSH32, PUSH32, SSTORE
	from, size := len(write)+14, len(code)
	leave := []byte{0x61, byte(size >> 8), byte(size), 0x61, byte(from >> 8), byte(from), 0x60, 0, 0x39, // CODECOPY(0, from, size)
		0x61, byte(size >> 8), byte(size), 0x5f, 0xf3} // RETURN(0, size)
	opts := bind.NewKeyedTransactor(m.Payee, big.NewInt(31337))
	opts.Context = t.Context()
	got, tx, err := bind.DeployContract(opts, bytes.Join([][]byte{write, leave, code}, nil), m.Backend, nil)
	if err != nil {
		t.Fatal(err)
	}
	if receipt, err := bind.WaitMined(t.Context(), m.Backend, tx.Hash()); err != nil || receipt.Status != 1 || got != address {
		t.Fatalf("%s, not %s: %+v, %v", got, address, receipt, err)
	}
	return address
}
