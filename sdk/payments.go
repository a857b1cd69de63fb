package sdk

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/internal/cors"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/scheme"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// routes are the provider's resources. The lease is the paid one; vouchers go
// to the same URI as what they pay for.
func (p *Provider) routes() {
	p.behind()
	p.mux = http.NewServeMux()
	p.mux.HandleFunc("GET /offer", p.serveOffer)
	p.mux.HandleFunc("GET /offer/{hash}", p.serveOffer)
	for _, s := range p.schemes {
		p.mux.HandleFunc(s.Path(), p.servePaid)
	}
}

// ServeHTTP serves offers and leases.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if cors.Origins(p.config.AllowedOrigins).Answer(w, r) {
		return
	}
	if err := admit.DrainBody(w, r); err != nil {
		frontDesk{p}.Refuse(w, r, err)
		return
	}
	p.mux.ServeHTTP(w, r)
}

func (p *Provider) serveOffer(w http.ResponseWriter, r *http.Request) {
	offer := p.Offer()
	if text := r.PathValue("hash"); text != "" && common.HexToHash(text) != offer.Hash {
		if !p.limiter.Challenge(r) {
			frontDesk{p}.Refuse(w, r, wire.TooMany.With("too many requests from your address"))
			return
		}
		past, err := p.store.Offers.Get(r.Context(), common.HexToHash(text))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		offer = past
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", strconv.Quote(offer.Hash.Hex()))
	serve.Hurry(w)
	_, _ = w.Write(offer.Document)
}

// request is one request for the lease, with its credential checked against
// the challenge it answers.
type request struct {
	*http.Request
	cred  wire.Credential
	offer wire.SignedOffer // that the challenge was minted for
	gpus  int
	over  *lease.Lease         // what the renter showed the end of: see heedShown
	seat  *reserve.Reservation // of its GPUs, while its deposit is on its way
}

// ServePaid is the paid resource, to a request that no other scheme pays.
func (d *session) ServePaid(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	req, err := d.read(r)
	if err == nil {
		err = d.act(w, req)
	}
	if err != nil && r.Context().Err() == nil {
		d.front.Refuse(w, r, err)
	}
}

// read parses and checks everything about a request that needs no channel.
func (d *session) read(r *http.Request) (*request, error) {
	gpus, err := scheme.GPUsOf(r)
	if err != nil {
		return nil, err
	}
	cred, err := wire.ParseCredential(r.Header)
	if err != nil {
		return nil, err
	}
	if err := d.minter.Check(cred.Challenge); err != nil {
		return nil, err
	}
	asked, err := cred.Challenge.Decode()
	if err != nil {
		return nil, err
	}
	offer, err := d.store.Offers.Get(r.Context(), common.HexToHash(asked.ExternalID))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", wire.ErrChallenge, err)
	}
	return &request{Request: r, cred: cred, offer: offer, gpus: gpus}, nil
}

func (d *session) act(w http.ResponseWriter, r *request) error {
	defer func() { r.seat.Release() }()
	payload := &r.cred.Payload
	switch payload.Action {
	case wire.ActionOpen:
		return d.actOpen(w, r)
	case wire.ActionTopUp:
		return d.actTopUp(w, r)
	case wire.ActionVoucher:
		return d.actVoucher(w, r)
	case wire.ActionRelease:
		return d.actRelease(w, r)
	default: // Validate let nothing else through
		return d.actClose(w, r)
	}
}

// actOpen opens a channel; a GET also begins a lease on it.
func (d *session) actOpen(w http.ResponseWriter, r *request) error {
	if err := d.worthFunding(r, &r.cred.Payload); err != nil {
		return err
	}
	s, fresh, err := d.open(r, &r.cred.Payload)
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return d.acknowledge(w, r, s, nil)
	}
	if !fresh {
		// Whoever saw the first open, or its transaction, could send it again.
		if _, err := d.authorize(r, s, "attach"); err != nil {
			return err
		}
	}
	return d.attach(w, r, s)
}

// actVoucher takes a voucher, with a deposit merged or not. A GET wants the
// lease's stream, which a voucher alone does not give.
func (d *session) actVoucher(w http.ResponseWriter, r *request) error {
	payload := &r.cred.Payload
	fresh := false
	if payload.Deposit != nil {
		err := d.worthFunding(r, payload.Deposit)
		if err == nil {
			_, fresh, err = d.deposit(r, payload.Deposit)
		}
		if err != nil {
			return err // nothing of a merged credential counts if its deposit failed
		}
	}
	s, err := d.recall(r)
	if err != nil {
		return err
	}
	wantsStream := r.Method == http.MethodGet
	if wantsStream && !fresh {
		if _, err := d.authorize(r, s, "attach"); err != nil {
			return err
		}
	}
	voucher := channel.Voucher{ChannelID: payload.ChannelID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Signature}
	if taken, err := d.accept(r.Context(), d.payee, voucher); err == nil {
		s = taken
	} else if !wantsStream || !errors.Is(err, channel.ErrDelta) { // else it is the newest that was signed: not counted, and the stream says so
		return err
	}
	if !wantsStream {
		return d.acknowledge(w, r, s, nil)
	}
	return d.attach(w, r, s)
}

// accept counts a voucher, durably, and tells the lease that waits for it. The
// draft's voucher over nothing is checked and changes nothing.
func (d *session) accept(ctx context.Context, payee *channel.Payee, v channel.Voucher) (channel.State, error) {
	if v.Cumulative.IsZero() {
		return payee.Check(ctx, v)
	}
	receipt, err := d.take(ctx, payee, []channel.Voucher{v})
	return receipt.State, err
}

// take counts the newest of vouchers that one renter sent together, and so all.
func (d *session) take(ctx context.Context, payee *channel.Payee, waiting []channel.Voucher) (channel.Receipt, error) {
	receipt, err := payee.AcceptNewest(ctx, waiting)
	if receipt.Outcome == 0 {
		return receipt, err
	}
	d.metrics.Voucher(receipt.Outcome)
	d.leases.Paid(receipt.State)
	return receipt, err
}

func (d *session) actTopUp(w http.ResponseWriter, r *request) error {
	s, _, err := d.deposit(r, &r.cred.Payload)
	if err != nil {
		return err
	}
	return d.acknowledge(w, r, s, nil)
}

// actRelease ends the lease and answers with its final record. The channel
// stays open, so that what the record states can be paid exactly.
func (d *session) actRelease(w http.ResponseWriter, r *request) error {
	s, err := d.recall(r)
	if err != nil {
		return err
	}
	row, err := d.authorize(r, s, wire.ActionRelease)
	if err != nil {
		return err
	}
	if err := d.leases.EndLease(r.Context(), s.ID, row, "released by the renter"); err != nil {
		return err
	}
	answer := wire.Released{Record: json.RawMessage("null"), Voucher: heldVoucher(s)}
	if row != nil && r.over == nil {
		last, err := d.store.Records.Last(r.Context(), common.HexToHash(row.ID))
		if err != nil {
			return err
		}
		if last != nil {
			if answer.Record, err = json.Marshal(last); err != nil {
				return err
			}
		}
	}
	return d.acknowledge(w, r, s, answer)
}

// actClose ends a lease that still runs, settles the newest voucher and
// refunds the rest, all in one transaction.
func (d *session) actClose(w http.ResponseWriter, r *request) error {
	payload := &r.cred.Payload
	s, err := d.recall(r)
	if err != nil {
		return err
	}
	if s.Status == channel.Finalized {
		return fmt.Errorf("channel %s: %w", s.ID, channel.ErrFinalized)
	}
	voucher := channel.Voucher{ChannelID: s.ID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Signature}
	if _, err := d.payee.Check(r.Context(), voucher); err != nil {
		return err
	}
	row, err := d.authorize(r, s, wire.ActionClose)
	if err != nil {
		return err
	}
	defer d.starts.Lock(s.ID)() // no lease begins meanwhile
	if err := d.leases.EndLease(r.Context(), s.ID, row, "closed by the renter"); err != nil {
		return err
	}
	if s.Status == channel.Open {
		if s, err = d.accept(r.Context(), d.payee.Last(), voucher); err != nil {
			return err
		}
	}
	hash, s, err := d.closeChannel(r.Context(), s)
	if err != nil {
		return err
	}
	return d.acknowledge(w, r, s, nil, hash)
}

// authorize makes sure that the request comes from the renter and not from
// somebody who read its vouchers off the chain: by the secret of the channel's
// newest lease, or a fresh proof over this challenge, which is then used up.
// It returns that lease, nil if there was none yet. The record that the renter
// shows of its lease is heeded here.
func (d *session) authorize(r *request, s channel.State, action string) (*leasestore.Row, error) {
	newest, proved, err := d.shown(r, s, action)
	if err == nil && proved {
		err = d.store.Secrets.UseChallenge(r.Context(), r.cred.Challenge, time.Now())
	}
	if err == nil {
		r.over, err = d.shownTo.heedShown(r, s)
	}
	return newest, err
}

// shown is authorize without using up the challenge: proved says that it is a
// proof that the request shows, and not the secret.
func (d *session) shown(r *request, s channel.State, action string) (newest *leasestore.Row, proved bool, err error) {
	row, ok, err := d.store.Leases.Newest(r.Context(), s.ID)
	if err != nil {
		return nil, false, err
	}
	payload := r.cred.Payload
	if ok {
		newest = &row
	}
	if ok && sameSecret(payload.LeaseSecret, row.SecretHash) {
		return newest, false, nil
	}
	if !wire.CheckProof(s.Terms, r.cred.Challenge.ID, action, payload.Proof) {
		return nil, false, wire.VerificationFailed.With("%s of channel %s takes the lease's secret or a proof by the payer over this challenge: a voucher alone may be public", action, s.ID)
	}
	return newest, true, nil
}

// attach joins the channel's running lease, or begins one, and streams it.
func (d *session) attach(w http.ResponseWriter, r *request, s channel.State) error {
	l, secret, err := d.join(r, s)
	if err != nil {
		return err
	}
	defer d.leases.Detach(l)
	st := &stream{outlet: newServerSent(w), lease: l, receipt: func(v lease.View) wire.Receipt { return d.streamReceipt(r, l, v) }}
	if wantsDuplex(w, r.Request) {
		st.paid = d.duplex(w, r, s.ID)
		st.outlet = st.paid
		defer func() { st.paid.close(err) }()
	} else {
		defer serve.Hurry(w)
	}
	if st.number, err = d.leases.NextStream(r.Context(), l); err != nil {
		return err
	}
	d.metrics.streams.Inc()
	defer d.metrics.streams.Dec()
	v, _ := l.Status.Snapshot()
	if err := d.streamReceipt(r, l, v).Set(w.Header()); err != nil {
		return err
	}
	err = st.serve(r.Context(), wire.Lease{
		LeaseID: l.ID, ChannelID: s.ID, Secret: secret, OfferHash: l.Offer.Hash, Devices: l.Allocation.Devices,
		OwedBefore: wire.NewAmount(l.OwedBefore), State: string(v.State), Access: l.Allocation.Access, Voucher: heldVoucher(s), Binding: l.Binding,
	}, lastEventID(r.Request))
	if err != nil {
		d.config.Log.Debug("stream ended; the lease goes on", "lease", l.ID, "error", err)
	}
	return nil // the answer has begun: it cannot become a problem document
}

// heldVoucher is the newest voucher, for a renter that may have forgotten it. It is shown to who the lease belongs to only.
func heldVoucher(s channel.State) *wire.HeldVoucher {
	if s.Accepted.IsZero() {
		return nil
	}
	return &wire.HeldVoucher{CumulativeAmount: wire.NewAmount(s.Accepted), Signature: s.Signature}
}

// join finds the lease that runs on the channel or begins one. Who comes with
// a proof instead of the secret gets a new secret; who comes with the secret of
// a lease that is over gets the end of that one, and not another lease.
func (d *session) join(r *request, s channel.State) (*lease.Lease, string, error) {
	defer d.starts.Lock(s.ID)()
	defer func() { r.seat.Release() }()
	if r.over != nil {
		return r.over, "", nil
	}
	l, err := d.leases.Serving(r.Context(), s)
	if err != nil {
		return nil, "", err
	}
	if l == nil {
		over, err := d.remembered(r, s)
		if over != nil || err != nil {
			return over, "", err
		}
		if s, err = d.payee.State(r.Context(), s.ID); err != nil { // it may have closed, or paid for a lease, while we waited
			return nil, "", err
		}
		if err := d.safeToServe(r.Context(), s); err != nil { // another gateway may close it, or this one for a renter that hung up
			return nil, "", err
		}
		return d.start(r, s)
	}
	if r.cred.Payload.LeaseSecret != "" {
		return l, "", nil
	}
	secret, err := d.renewSecret(r.Context(), l)
	if err != nil {
		d.leases.Detach(l)
	}
	return l, secret, err
}

// renewSecret gives a renter that proved itself, but lost the secret, a new
// one. The old one no longer works.
func (d *session) renewSecret(ctx context.Context, l *lease.Lease) (string, error) {
	secret := randomHash().Hex()[2:]
	return secret, d.store.Leases.SetSecret(ctx, l.ID, hashSecret(secret))
}

// find is a channel of this protocol: those of another one are not ours to
// act on here, though the store has them, too.
func (d *session) find(ctx context.Context, id common.Hash) (channel.State, error) {
	s, err := d.payee.State(ctx, id)
	if err == nil && d.payee.Domain.Holds(s.Terms) != nil {
		return channel.State{}, fmt.Errorf("channel %s: %w: it is one of another protocol", id, channel.ErrUnknown)
	}
	return s, err
}

// acknowledge answers with a receipt, and with body as JSON if there is one.
func (d *session) acknowledge(w http.ResponseWriter, r *request, s channel.State, body any, tx ...common.Hash) error {
	receipt := wire.NewReceipt(time.Now(), r.cred.Challenge.ID, d.escrow.ChainID(), s.ID, wire.NewAmount(s.Accepted), wire.NewAmount(s.Spent))
	if len(tx) > 0 {
		receipt.TxHash = &tx[0]
	}
	if err := receipt.Set(w.Header()); err != nil {
		return err
	}
	if body == nil {
		body = receipt
	}
	w.Header().Set("Content-Type", "application/json")
	serve.Hurry(w)
	return json.NewEncoder(w).Encode(body)
}

func (d *session) streamReceipt(r *request, l *lease.Lease, v lease.View) wire.Receipt {
	receipt := wire.NewReceipt(time.Now(), r.cred.Challenge.ID, d.escrow.ChainID(), l.Terms.ID(), wire.NewAmount(v.Accepted), wire.NewAmount(v.Owed))
	receipt.Units = strconv.FormatUint(v.Nanos, 10)
	return receipt
}

// challenge asks for a payment under the current offer.
func (d *session) challenge() (wire.Challenge, error) {
	offer := d.leases.Offer()
	types := []string{wire.TypeHash}
	gasless := d.gasless && d.sponsor.Offers()
	if gasless {
		types = []string{wire.TypeAuthorization, wire.TypeHash}
	}
	delta := wire.NewAmount(d.payee.MinDelta)
	suggested := offer.MinDeposit
	return d.minter.Mint(wire.Request{
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
