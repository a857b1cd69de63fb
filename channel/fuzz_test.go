package channel_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// FuzzVerify: whatever passes for a voucher is what the contract's ecrecover
// takes for the same signer, with the malleable forms shut out.
func FuzzVerify(f *testing.F) {
	id, amount := testTerms("0x01").ID(), units(600)
	good := sign(f, testDomain, payerKey, id, amount)
	f.Add(id[:], amount.Bytes(), good.Signature)
	f.Add(id[:], amount.Bytes(), highS(good.Signature))
	f.Add([]byte{}, bytes.Repeat([]byte{0xff}, 32), []byte{})
	f.Fuzz(func(t *testing.T, id, cumulative, sig []byte) {
		if len(cumulative) > 32 {
			return
		}
		v := channel.Voucher{ChannelID: common.BytesToHash(id), Cumulative: *new(uint256.Int).SetBytes(cumulative), Signature: sig}
		if testDomain.Verify(v, payerKey.Address()) != nil {
			return
		}
		digest := testDomain.Digest(v.ChannelID, &v.Cumulative)
		public, err := crypto.SigToPub(digest[:], withV(sig, sig[64]-27))
		if err != nil || crypto.PubkeyToAddress(*public) != payerKey.Address() || v.Cumulative.BitLen() > 96 {
			t.Fatalf("took %x for %s: %v", sig, v.Cumulative.Dec(), err)
		}
	})
}

// FuzzAccept feeds a channel what a renter may send, in any order, and holds the
// payee to its invariants: what is accepted never falls, never exceeds the
// deposit, and is settled by the signature that is kept.
func FuzzAccept(f *testing.F) {
	f.Add([]byte{1, 0, 5, 0, 3, 0, 5, 1, 9, 2, 7, 3})
	f.Add([]byte{255, 0, 200, 0, 201, 0, 0, 4, 0, 5, 220, 0})
	p, _ := newPayee(f)
	payers := 0
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 64 {
			return
		}
		payers++
		terms := testTerms(uint256.NewInt(uint64(1000 + payers)).Hex())
		state, err := p.Register(context.Background(), terms, channel.ChainView{Deposit: units(1000)})
		if err != nil {
			t.Fatal(err)
		}
		for ; len(script) >= 2; script = script[2:] {
			state = fuzzStep(t, p, state, script[0], script[1])
		}
	})
}

func fuzzStep(t *testing.T, p *channel.Payee, before channel.State, size, kind byte) channel.State {
	v := sign(t, testDomain, payerKey, before.ID, units(uint64(size)*5)) // up to 1275 of 1000
	forged := true
	switch kind % 6 {
	case 1:
		v.Signature = highS(v.Signature)
	case 2:
		v.Signature = withV(v.Signature, v.Signature[64]^27^28)
	case 3:
		v.Cumulative.AddUint64(&v.Cumulative, 1)
	case 4:
		v.Signature = v.Signature[:kind%65]
	case 5:
		v = sign(t, testDomain, strangerKey, before.ID, v.Cumulative)
	default:
		forged = false
	}
	r, err := p.Accept(context.Background(), v)
	if err == nil && forged {
		t.Fatalf("kind %d: took a forged voucher for %s: %s", kind, v.Cumulative.Dec(), r.Outcome)
	}
	after, err := p.State(context.Background(), before.ID)
	if err != nil {
		t.Fatal(err)
	}
	if after.Accepted.Lt(&before.Accepted) || after.Accepted.Gt(&after.Deposit) {
		t.Fatalf("accepted %s after %s, deposit %s", after.Accepted.Dec(), before.Accepted.Dec(), after.Deposit.Dec())
	}
	if !after.Accepted.IsZero() {
		checkSettles(t, after, after.Accepted.Uint64())
	}
	return after
}
