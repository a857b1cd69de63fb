package renter_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestForgottenOffer: an offer that a provider names for a lease counts if the channel's payee signed it and it is within the
// caps; it may have ended meanwhile.
func TestForgottenOffer(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(*testrig.Stream) {}
	config := renterrig.Config(t, m, m.Payer)
	config.Caps.PricePerGPUHour = "20"
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var document []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(document) }))
	t.Cleanup(server.Close)
	if l.Lease().Peer, err = peer.New(r.Wallet().HTTP, server.URL); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*wire.Offer)
		want   error
	}{
		"ended":           {func(o *wire.Offer) { o.Expires = 1 }, nil},
		"of a new price":  {func(o *wire.Offer) { o.Amount = wire.NewAmount(*uint256.NewInt(2 * testrig.HostilePrice)) }, nil},
		"too dear":        {func(o *wire.Offer) { o.Amount = wire.NewAmount(*uint256.NewInt(1e12)) }, wallet.ErrPrice},
		"another token":   {func(o *wire.Offer) { o.Token[0]++ }, wallet.ErrToken},
		"another escrow":  {func(o *wire.Offer) { o.Escrow[0]++ }, peer.ErrOffer},
		"another chain":   {func(o *wire.Offer) { o.ChainID++ }, peer.ErrOffer},
		"a longer credit": {func(o *wire.Offer) { o.Credit++ }, peer.ErrOffer},
		"a huge credit":   {func(o *wire.Offer) { o.Credit = 1e9 }, peer.ErrOffer},
		"seldom a record": {func(o *wire.Offer) { o.RecordEvery = time.Hour.Milliseconds() }, peer.ErrOffer},
	} {
		t.Run(name, func(t *testing.T) {
			changed := v.Offer.Offer
			test.change(&changed)
			signed, err := wire.SignOffer(t.Context(), v.Key, changed)
			if err != nil {
				t.Fatal(err)
			}
			document = signed.Document
			offer, err := l.Lease().ForgottenOffer(t.Context(), signed.Hash)
			if !errors.Is(err, test.want) || err == nil && offer.Hash != signed.Hash {
				t.Errorf("%v, want %v", err, test.want)
			}
			if _, err := l.Lease().ForgottenOffer(t.Context(), common.Hash{1}); !errors.Is(err, peer.ErrOffer) {
				t.Errorf("under another hash: %v", err)
			}
		})
	}
	stranger := v.Offer.Offer
	stranger.Payee = wire.Address(m.PayerAddress())
	signed, err := wire.SignOffer(t.Context(), r.Wallet().Key, stranger)
	if err != nil {
		t.Fatal(err)
	}
	document = signed.Document
	if _, err := l.Lease().ForgottenOffer(t.Context(), signed.Hash); !errors.Is(err, peer.ErrOffer) {
		t.Errorf("of another payee: %v", err)
	}
}
