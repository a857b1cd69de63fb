package sessionscheme

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"net/http"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Challenges mints and checks challenges: a request is taken only with one that was minted here, and the offer of that one binds its lease.
type Challenges struct {
	core
	Minter *wire.Minter
}

// Request is one request for the lease, with its credential checked against
// the challenge it answers.
type Request struct {
	*http.Request
	Cred  wire.Credential
	Offer wire.SignedOffer // that the challenge was minted for
	GPUs  int
	over  *lease.Lease         // what the renter showed the end of: see Records.heed
	Seat  *reserve.Reservation // of its GPUs, while its deposit is on its way
}

// Mint makes a challenge, which asks for a payment under the current offer of a class.
func (d *Challenges) Mint(ctx context.Context, class string) (wire.Challenge, error) {
	offer, err := d.Leases.Challenged(ctx, class)
	if err != nil {
		return wire.Challenge{}, err
	}
	types := []string{wire.TypeHash}
	gasless := d.Gasless && d.Sponsor.Offers()
	if gasless {
		types = []string{wire.TypeAuthorization, wire.TypeHash}
	}
	delta := wire.NewAmount(d.Payee.MinDelta)
	suggested := offer.MinDeposit
	return d.Minter.Mint(wire.Request{
		Amount:           offer.Amount,
		UnitType:         offer.Unit,
		SuggestedDeposit: &suggested,
		Currency:         offer.Token,
		Recipient:        offer.Payee,
		Description:      "GPU time, metered by the second",
		ExternalID:       offer.Hash.Hex(),
		MethodDetails: wire.MethodDetails{
			ChainID: offer.ChainID, EscrowContract: offer.Escrow, MinVoucherDelta: &delta,
			FeePayer: gasless, CredentialTypes: types,
		},
	}, rand.Text())
}

// read parses and checks everything about a request that needs no channel.
func (d *Challenges) read(r *http.Request) (*Request, error) {
	gpus, err := scheme.GPUsOf(r)
	if err != nil {
		return nil, err
	}
	cred, err := wire.ParseCredential(r.Header)
	if err != nil {
		return nil, err
	}
	if err := d.Minter.Check(cred.Challenge); err != nil {
		return nil, err
	}
	asked, err := cred.Challenge.Decode()
	if err != nil {
		return nil, err
	}
	offer, err := d.Store.Offers.Get(r.Context(), common.HexToHash(asked.ExternalID))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("%w: %w", wire.ErrChallenge, err)
	}
	if err != nil { // a disk that fails is no fault of the renter's
		return nil, err
	}
	if class := scheme.ClassOf(r); class != "" && class != offer.ClassID() {
		return nil, wire.MalformedCredential.With("the request is for class %.64q, and its credential is for GPUs of class %q: ask again for the price", class, offer.ClassID())
	}
	return &Request{Request: r, Cred: cred, Offer: offer, GPUs: gpus}, nil
}

// classOf is the class that a request is for: where it does not say, that of the challenge which it answers.
func (d *Challenges) classOf(r *http.Request) string {
	if class := scheme.ClassOf(r); class != "" {
		return class
	}
	cred, err := wire.ParseCredential(r.Header)
	if err != nil {
		return ""
	}
	asked, err := cred.Challenge.Decode()
	if err != nil {
		return ""
	}
	offer, err := d.Store.Offers.Get(r.Context(), common.HexToHash(asked.ExternalID))
	if err != nil {
		return ""
	}
	return offer.ClassID()
}
