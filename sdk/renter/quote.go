package renter

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	"github.com/gpupay/gpupay/sdk/internal/paystream"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/units"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Quote is a provider's price, checked: the payee signed it, the challenge
// asks for the same, it is within the renter's cap, and the escrow is one to
// put money into.
type Quote struct {
	URL              string
	GPUs             int
	Offer            wire.SignedOffer
	Price            metering.Price // of one GPU
	PerGPUHour       string         // the same in units of the token
	Symbol           string         // of the token
	Decimals         uint8
	MinDeposit       uint256.Int // base units
	SuggestedDeposit uint256.Int // base units
	Grace            time.Duration
	Gasless          bool // the provider sends deposits that the renter only signs
	Free             *int // GPUs that a new lease could have now; nil: the provider does not say

	class     string // that was asked for
	challenge wire.Challenge
	request   wire.Request
	escrow    *chain.Escrow
}

// Quote asks a provider for its price of one GPU and checks everything about
// it that can be checked before money moves. What was refused is kept as
// evidence.
func (r *Client) Quote(ctx context.Context, url string) (Quote, error) {
	return r.quote(ctx, url, 1, "")
}

// QuoteClass is Quote of a GPU of a class, by the provider's name of it.
func (r *Client) QuoteClass(ctx context.Context, url, class string) (Quote, error) {
	return r.quote(ctx, url, 1, class)
}

func (r *Client) quote(ctx context.Context, url string, gpus int, class string) (Quote, error) {
	p, err := peer.New(r.w.HTTP, url)
	if err != nil {
		return Quote{}, err
	}
	p.Class = class
	challenge, free, err := p.Challenge(ctx, gpus)
	if err != nil {
		return Quote{}, err
	}
	document, err := p.OfferOf(ctx, challenge)
	if err != nil {
		return Quote{}, err
	}
	q, err := r.checkQuote(ctx, challenge, document)
	if err == nil {
		err = p.Sells(q.Offer.Offer)
	}
	if err != nil {
		err = fmt.Errorf("provider %s: %w", p.Base, err)
		return Quote{}, errors.Join(err, r.refuse(ctx, p.Base, challenge, document, err))
	}
	q.URL, q.GPUs, q.Free, q.class = p.Base, gpus, free, class
	return q, nil
}

// shared refuses an offer of GPUs that are shared by slots to who wants its own, and the other way round. It returns how many GPUs a
// lease under it has.
func (q Quote) shared(share bool, gpus int) (int, error) {
	switch {
	case share && q.Offer.Share == nil:
		return 0, fmt.Errorf("%w: provider %s shares no GPUs of this class: rent without Options.Share", peer.ErrOffer, q.URL)
	case !share && q.Offer.Share != nil:
		return 0, fmt.Errorf("%w: provider %s shares its GPUs by %d slots: rent with Options.Share, and send requests through Rental.Transport", peer.ErrOffer, q.URL, q.Offer.Share.Slots)
	case share:
		return int(q.Offer.Share.GPUs), nil
	}
	return gpus, nil
}

// pays refuses an offer of another payee than a channel's, or of another escrow.
func (q Quote) pays(terms channel.Terms) error {
	if common.Address(q.Offer.Payee) == terms.Payee && common.Address(q.Offer.Escrow) == terms.Escrow {
		return nil
	}
	return fmt.Errorf("%w: the channel pays %s through %s, the new offer wants %s through %s: leave it", peer.ErrOffer, terms.Payee, terms.Escrow, q.Offer.Payee, q.Offer.Escrow)
}

// available refuses to put money into a lease that cannot begin.
func (q Quote) available() error {
	if q.Free != nil && *q.Free < q.GPUs {
		return fmt.Errorf("provider %s: %w: %d wanted, %d free; nothing was deposited", q.URL, gpu.ErrNoCapacity, q.GPUs, *q.Free)
	}
	credit := time.Duration(q.Offer.Credit) * time.Second // plausible
	if need := wire.MinCredit(q.GPUs, time.Duration(q.Offer.Tick)*time.Millisecond); credit < need {
		return fmt.Errorf("provider %s: %w: %d GPUs need a credit of %s, it gives %s; nothing was deposited: rent fewer at once", q.URL, gpu.ErrNoCapacity, q.GPUs, need, credit)
	}
	return nil
}

// refuse keeps what made the renter turn a provider down, unless it was the
// renter's own cap or surroundings.
func (r *Client) refuse(ctx context.Context, url string, challenge wire.Challenge, document []byte, reason error) error {
	if errors.Is(reason, wallet.ErrPrice) || errors.Is(reason, chain.ErrUnreachable) || ctx.Err() != nil {
		return nil
	}
	both, err := json.Marshal(struct {
		Challenge wire.Challenge `json:"challenge"`
		Offer     string         `json:"offer"` // as it came, JSON or not
	}{challenge, string(document)})
	if err != nil {
		return err
	}
	return r.w.Keep(ctx, wallet.Evidence{URL: url, Reason: boundlog.Plain(reason).Error(), At: time.Now(), Document: both})
}

func (r *Client) checkQuote(ctx context.Context, challenge wire.Challenge, document []byte) (Quote, error) {
	offer, err := wire.ParseOffer(document)
	if err != nil {
		return Quote{}, fmt.Errorf("%w: %w", peer.ErrOffer, err)
	}
	request, err := challenge.Decode()
	if err != nil {
		return Quote{}, fmt.Errorf("%w: %w", peer.ErrOffer, err)
	}
	if err := sameTerms(request, offer); err != nil {
		return Quote{}, err
	}
	if offer.ExpiredAt(r.w.Now()) {
		return Quote{}, fmt.Errorf("%w: it expired at %s", peer.ErrOffer, time.Unix(offer.Expires, 0).UTC().Format(time.RFC3339))
	}
	if err := paystream.Plausible(offer.Offer, r.config.MaxCredit, r.w.Patience); err != nil {
		return Quote{}, err
	}
	price, err := r.w.CheckPrice(offer.Offer)
	if err != nil {
		return Quote{}, err
	}
	escrow, err := r.escrowOf(ctx, offer.Offer)
	if err != nil {
		return Quote{}, err
	}
	q := Quote{
		Offer: offer, Price: price,
		PerGPUHour: units.PricePerGPUHour(price, r.w.Token.Decimals),
		Symbol:     r.w.Token.Symbol,
		Decimals:   r.w.Token.Decimals,
		MinDeposit: offer.MinDeposit.Int,
		Grace:      escrow.Grace(),
		Gasless:    request.MethodDetails.FeePayer,
		challenge:  challenge, request: request, escrow: escrow,
	}
	if request.SuggestedDeposit != nil {
		q.SuggestedDeposit = request.SuggestedDeposit.Int
	}
	return q, nil
}

// sameTerms holds the challenge, which nobody signed, to the offer, which the
// payee did: else the price asked for and the price promised could differ.
func sameTerms(request wire.Request, offer wire.SignedOffer) error {
	details := request.MethodDetails
	for _, term := range []struct{ name, asked, signed string }{
		{"offer", request.ExternalID, offer.Hash.Hex()},
		{"amount", request.Amount.Dec(), offer.Amount.Dec()},
		{"unit", request.UnitType, offer.Unit},
		{"token", request.Currency.String(), offer.Token.String()},
		{"payee", request.Recipient.String(), offer.Payee.String()},
		{"escrow", details.EscrowContract.String(), offer.Escrow.String()},
		{"chain", strconv.FormatUint(details.ChainID, 10), strconv.FormatUint(offer.ChainID, 10)},
	} {
		if term.asked != term.signed {
			return fmt.Errorf("%w: the challenge asks for %s %.80q, the signed offer says %.80q", peer.ErrOffer, term.name, term.asked, term.signed)
		}
	}
	return nil
}

// escrowOf reaches the escrow that an offer names and checks that it is one to
// trust, on our chain, with a way out in bearable time.
func (r *Client) escrowOf(ctx context.Context, offer wire.Offer) (*chain.Escrow, error) {
	if err := r.w.OnChain(ctx, offer.ChainID); err != nil {
		return nil, err
	}
	address := common.Address(offer.Escrow)
	escrow, err := chain.NewEscrow(ctx, r.w.Backend, address)
	if err != nil {
		if errors.Is(err, chain.ErrUnreachable) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", wallet.ErrEscrow, err)
	}
	if err := r.checkEscrow(ctx, escrow); err != nil {
		return nil, err
	}
	if escrow.Grace() > r.w.MaxGrace {
		return nil, fmt.Errorf("%w: leaving %s takes %s, this renter waits at most %s", wallet.ErrEscrow, address, escrow.Grace(), r.w.MaxGrace)
	}
	return escrow, nil
}

// checkEscrow says whether a renter may put money into an escrow that a
// provider named. A contract of the provider's own could answer every question
// like ours and still pay the whole deposit to the provider: so it is either
// the one that the renter's configuration names, or its code is ours to the
// byte, and only our constructor can have run at its address.
func (r *Client) checkEscrow(ctx context.Context, escrow *chain.Escrow) error {
	if r.config.Escrow != (common.Address{}) {
		if escrow.Address() == r.config.Escrow {
			return nil
		}
		return fmt.Errorf("%w: the provider names %s, this renter trusts %s", wallet.ErrEscrow, escrow.Address(), r.config.Escrow)
	}
	if r.config.AllowUnknownEscrow {
		return nil
	}
	err := escrow.VerifyOrigin(ctx)
	if errors.Is(err, chain.ErrNotEscrow) {
		return fmt.Errorf("%w: %w: name it in the configuration if you trust it", wallet.ErrEscrow, err)
	}
	return err
}
