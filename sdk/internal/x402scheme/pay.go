package x402scheme

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/payercredit"
	"github.com/gpupay/gpupay/sdk/internal/reserve"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/internal/x402server"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// Request is one request with a payment.
type Request struct {
	x402server.PaidRequest
	metered *meteredRoute
	seat    *reserve.Reservation // of its GPUs, while its deposit is on its way
	lease   common.Hash          // for which a metered request's devices are kept meanwhile; zero: none are
	turn    bool                 // it has its turn at its metered route
	broken  bool                 // its answer was begun and has no end, which its client must see
}

// serve answers a request that is paid by x402. It waits for its turn on the channel; from then on it goes on to its
// end, whether or not the client is still there: who lost the connection gets a copy.
func (d *Scheme) serve(w http.ResponseWriter, req *http.Request, r *Request) {
	r.Request = req
	if !d.Leases.Begin() {
		d.Front.Refuse(w, req, wire.Unavailable.With("this provider stops"))
		return
	}
	defer d.Leases.Done()
	if err := d.read(r); err != nil {
		d.refuse(w, r, err)
		return
	}
	answer, err := d.inTurn(w, r)
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	if r.broken {
		panic(http.ErrAbortHandler)
	}
	if !answer.Written {
		d.answer(w, r, answer)
	}
}

// read checks everything about a payment that needs no channel. Who gets past it can sign for the channel that the
// payment names, so that nobody else can hold up its line.
func (d *Scheme) read(r *Request) error {
	r.Offer = d.Offered(r.Route)
	var err error
	if r.Paid, err = x402.ParsePaymentPayload(r.Header); err != nil {
		return err
	}
	if past, ok := d.PastOffer(r.Offer, r.Paid.Payload.Config.Receiver); ok && r.Paid.Payload.Type == x402.TypeRefund {
		r.Offer, r.Paid.Accepted = past, past // it buys nothing: of what was offered only the channel counts
	}
	if r.Terms, err = r.Paid.Check(r.Offer); err != nil {
		return err
	}
	if r.Terms.AuthorizedSigner == (common.Address{}) {
		// A payer that signs for itself can become a contract account at any time, and disown what it signed.
		return fmt.Errorf("%w: channel %s has no payerAuthorizer: name one, it may be the payer", x402.CodeVoucherSignature, r.Terms.ID())
	}
	r.ID, r.Voucher = r.Terms.ID(), r.Paid.Payload.Voucher.Voucher()
	if key := r.Header.Get(x402.HeaderIdempotencyKey); len(key) > x402server.MaxIdempotencyKey {
		return wire.MalformedCredential.With("%s has %d bytes, it may have %d", x402.HeaderIdempotencyKey, len(key), x402server.MaxIdempotencyKey)
	}
	return d.Book.Verify(r.Context(), r.Terms, r.Voucher)
}

// inTurn serves a request when it is its turn on the channel.
func (d *Scheme) inTurn(w http.ResponseWriter, r *Request) (*x402server.Answer, error) {
	t, err := d.Queue.Enter(r.Context(), r.ID, r.Voucher.Cumulative)
	if err != nil {
		return nil, err
	}
	r.Told = t.Told
	var expect *uint256.Int
	defer func() { t.Leave(expect) }()
	ctx := context.WithoutCancel(r.Context())
	if r.Claim, err = d.Claims.Take(r.Context(), r.ID); err != nil {
		return nil, err
	}
	defer func() {
		if expect != nil {
			d.Claims.Hold(r.ID, r.Claim, d.Queue.Hold)
			return
		}
		r.Claim.Release(ctx)
	}()
	defer func() { r.seat.Release() }()
	defer r.leave()
	defer func() { d.metered.letGo(ctx, r) }()
	answer, err := d.pay(ctx, w, r)
	var wrong *x402server.Resync
	if errors.As(err, &wrong) {
		expect = &wrong.Expect
	}
	if err != nil {
		return nil, err
	}
	answer.Lost = answer.Lost || r.Context().Err() != nil
	d.answered(ctx, d.JournalOf(&r.PaidRequest), answer)
	return answer, nil
}

// answered remembers what became of an answer. It was charged by now, so that a
// disk that fails here is no reason to keep it back.
func (d *Scheme) answered(ctx context.Context, notes x402server.Journal, a *x402server.Answer) {
	if err := notes.Answered(ctx, a.Entry, a.Lost); err != nil {
		d.Log.Error("x402 answer was not noted: the client gets it again if it asks again", "channel", a.Entry.Channel, "error", err)
	}
}

// pay takes the payment and serves what it pays for.
func (d *Scheme) pay(ctx context.Context, w http.ResponseWriter, r *Request) (*x402server.Answer, error) {
	tab, err := d.Find(ctx, &r.PaidRequest)
	if err != nil {
		return nil, err
	}
	if err := d.metered.bounded(r, tab); err != nil {
		return nil, err
	}
	if tab.Known {
		if err := d.metered.load(w, r); err != nil {
			return nil, err
		}
		if answer, err := d.again(ctx, w, r, tab); answer != nil || err != nil {
			return answer, err
		}
	}
	if r.Paid.Payload.Type != x402.TypeRefund {
		if tab, err = d.Unrefunded(ctx, tab); err != nil {
			return nil, err
		}
	}
	if tab, err = d.match(ctx, r, tab); err != nil {
		return nil, err
	}
	if r.Paid.Payload.Type == x402.TypeRefund {
		return d.Refunds.refund(ctx, r, tab)
	}
	return d.buy(ctx, w, r, tab)
}

// buy serves what a payment is for, after its deposit, if it brings one, and its voucher.
func (d *Scheme) buy(ctx context.Context, w http.ResponseWriter, r *Request, tab x402server.Account) (_ *x402server.Answer, err error) {
	if tab.Status != channel.Open {
		return nil, fmt.Errorf("channel %s: %w", tab.ID, x402server.ErrWithdrawing)
	}
	deposits := r.Paid.Payload.Type == x402.TypeDeposit
	if !tab.Known && !deposits {
		return nil, fmt.Errorf("%w: the chain knows no channel %s", x402.CodeChannelNotFound, r.ID)
	}
	var others uint64 // of the payer's channels whose use is not in the books yet
	if deposits {
		var end func()
		others, end = d.arrivals.Begin(r.Terms.Payer)
		defer end()
	} else if err := d.metered.enter(r); err != nil {
		return nil, err
	}
	if err := errors.Join(d.capable(ctx, r), d.claimable(ctx, r.Terms, others)); err != nil {
		return nil, err
	}
	note := x402server.Entry{Channel: r.ID.Hex(), MaxClaimable: r.Voucher.Cumulative.Dec(), Kind: r.Route.Kind, Base: tab.Charged.Dec(), Moved: "0"}
	if deposits {
		if tab, err = d.deposits.fund(ctx, r, tab, &note); err != nil {
			return nil, err
		}
	}
	if err := d.metered.load(w, r); err != nil {
		return nil, err
	}
	if deposits { // the chain and its client take their time, and it is not the route's
		if err := d.metered.enter(r); err != nil {
			return nil, err
		}
	}
	note.Hash = r.Hash
	_, book, _ := d.BooksOf(&r.PaidRequest)
	receipt, err := book.Accept(ctx, r.Voucher)
	if err != nil {
		return nil, err
	}
	d.Metrics.Voucher(receipt.Outcome)
	tab.State = receipt.State
	switch r.Route.Kind {
	case x402server.KindStream:
		return d.ticks.stream(ctx, w, r, tab, note)
	case x402server.KindMetered:
		return d.metered.serve(ctx, w, r, tab, note)
	}
	return d.ticks.tick(ctx, r, tab, note)
}

// claimable refuses a payer whose other channels hold the credit's worth of what was used there and no claim is worth:
// it could leave with all of that, and would with as much again of each further channel.
//
// Each of its channels whose deposit is on its way may come to a row.
func (d *Scheme) claimable(ctx context.Context, t channel.Terms, arriving uint64) error {
	owing, err := d.Debts.OwingAt(ctx, d.Contract, t.Payer)
	if err == nil {
		owing, err = d.Debts.Lapse(ctx, owing)
	}
	row := d.Debts.LeastRow(d.Contract)
	others := payercredit.OwedBut(owing, t.ID(), row)
	if row.Mul(&row, uint256.NewInt(arriving)); err != nil || others.Add(&others, &row).Lt(&d.Credit) {
		return err
	}
	return fmt.Errorf("%w (%s)%s", x402server.ErrScattered, d.Debts.Debtors(owing, d.Debts.LeastRow(d.Contract)), d.Debts.Lapses(owing))
}

// match holds a voucher to the amount that comes next. A stock client is corrected once and then gives up: so what it
// is told is no public voucher's amount, and is taken though its lease went on meanwhile.
func (d *Scheme) match(ctx context.Context, r *Request, tab x402server.Account) (x402server.Account, error) {
	tab, err := d.Recalled(ctx, r, tab)
	if err != nil {
		return tab, err
	}
	if fits, err := d.StillFits(ctx, &r.PaidRequest, tab); err != nil {
		return tab, err
	} else if fits {
		tab.Charged = r.Based()
		return tab, nil
	}
	expect := tab.Charged
	if r.Paid.Payload.Type != x402.TypeRefund {
		expect.Add(&expect, &r.Route.Most)
	}
	if r.Voucher.Cumulative != expect {
		if wrong, err := d.Behind(ctx, &r.PaidRequest, tab); err != nil {
			return tab, err
		} else if wrong != nil {
			return tab, wrong
		}
	}
	public, err := d.Disclosed(ctx, tab, expect)
	if err != nil {
		return tab, err
	}
	if !public && r.Voucher.Cumulative == expect {
		return tab, nil
	}
	if public {
		if tab, err = d.Supersede(ctx, &r.PaidRequest, tab); err != nil {
			return tab, err
		}
		expect.AddUint64(&expect, 1)
	}
	return tab, &x402server.Resync{Account: tab, Expect: expect, Got: r.Voucher.Cumulative}
}

// capable refuses what could not be served before anybody's money moves for it.
func (d *Scheme) capable(ctx context.Context, r *Request) error {
	if err := d.Leases.TakesLeases(); err != nil {
		return err
	}
	now, err := d.runs(ctx, r)
	switch {
	case err != nil:
		return err
	case r.Route.Kind == x402server.KindMetered && now.gpus > 0:
		return errConflict.With("a lease runs on channel %s: take a refund, which ends it, or wait until it ends", r.ID)
	case r.Route.Kind == x402server.KindMetered && r.metered.Service != nil:
		return r.metered.Service.Vacant()
	case r.Route.Kind == x402server.KindMetered:
		return d.metered.vacant(ctx, r.ID, r.metered)
	}
	if goesOn, err := d.fits(r, now); goesOn || err != nil {
		return err
	}
	return d.GPUs.Room(ctx, r.Route.Class, r.ID, r.Route.GPUs, now.back(r)) // a lease of another price ends and gives its GPUs back
}

// misfit refuses another number of GPUs than the channel's lease has.
func misfit(r *Request, gpus int) error {
	return errConflict.With("the lease that runs on channel %s has %d GPUs, the request wants %d: take a refund, which ends it, or wait until it ends", r.ID, gpus, r.Route.GPUs)
}

// answer writes an answer with its receipt.
func (d *Scheme) answer(w http.ResponseWriter, r *Request, a *x402server.Answer) {
	if err := a.Receipt.Set(w.Header()); err != nil {
		d.Log.Error("x402 receipt", "channel", r.ID, "error", err)
	}
	if err := a.Send(w, r.Request); err != nil && !a.Lost { // what was noted as lost may have been had again since
		a.Lost = true
		d.answered(context.WithoutCancel(r.Context()), d.Journal, a)
	}
}

// refuse answers a payment that is not taken: with x402's own 402 where x402 has
// a word for what is wrong, else as everywhere.
func (d *Scheme) refuse(w http.ResponseWriter, r *Request, err error) {
	if r.Context().Err() != nil {
		return
	}
	if r.Hash == "" && r.ContentLength != 0 {
		w.Header().Set("Connection", "close") // its body was not read, and is not waited for
	}
	reason, ok := x402server.Reason(err)
	if !ok {
		d.Front.Refuse(w, r.Request, err)
		return
	}
	var wrong *x402server.Resync
	if !errors.As(err, &wrong) && !d.Limiter.Challenge(r.Request) {
		d.Front.Refuse(w, r.Request, wire.TooMany.With("too many requests with a wrong payment from your address: wait a second"))
		return
	}
	d.Log.Debug("payment refused", "channel", r.ID, "error", err)
	d.Metrics.Refused(wire.PaymentRequired.With("%s", reason))
	offer := r.Offer
	if wrong != nil {
		wrong.Show(&offer)
	}
	if err := d.required(r.Request, reason, offer).Set(w.Header()); err != nil {
		d.Front.Refuse(w, r.Request, err)
		return
	}
	serve.JSON(w, http.StatusPaymentRequired, map[string]string{"error": reason, "detail": err.Error()})
}

// again answers a request that was served before: nil if it was not, or if it is another one with the same voucher.
func (d *Scheme) again(ctx context.Context, w http.ResponseWriter, r *Request, tab x402server.Account) (*x402server.Answer, error) {
	note, ok, err := d.Journal.Find(ctx, r.ID, r.Voucher.Cumulative, r.Hash)
	if err != nil || !ok {
		return nil, err
	}
	if !r.Repeats(note) && note.Kind != x402server.KindRefund {
		return nil, nil
	}
	if public, err := d.Disclosed(ctx, tab, r.Voucher.Cumulative); err != nil || public && !r.Secret {
		return nil, err // whoever sends it may have read it from the chain
	}
	switch note.Kind {
	case x402server.KindTick:
		return d.ticks.tickAgain(ctx, tab, note)
	case x402server.KindStream:
		return d.ticks.play(ctx, w, r, tab, note)
	case x402server.KindRefund:
		return d.Refunds.Again(ctx, r, tab, note)
	default:
		return d.metered.copied(ctx, tab, note)
	}
}

// Recalled charges what these books forgot, if a request brings the voucher that its payer was asked for. The lease of
// the old books ends, and the next one begins on the new ones.
func (d *Scheme) Recalled(ctx context.Context, r *Request, tab x402server.Account) (x402server.Account, error) {
	base := r.Based()
	if base.IsZero() || base != tab.Balance.Asserted || !base.Gt(&tab.Charged) || base.Gt(&tab.Deposit) {
		return tab, nil
	}
	if err := d.EndNewest(ctx, r, "its books are older than its payer's voucher"); err != nil {
		return tab, err
	}
	db, book, notes := d.BooksOf(&r.PaidRequest)
	err := db.Update(ctx, func(tx *sqlx.Tx) error {
		if err := db.Charge(ctx, tx, r.ID, base); err != nil {
			return err
		}
		return notes.Set(tx, r.ID, "reserved", base)
	})
	if err != nil {
		return tab, err
	}
	s, err := d.Book.State(ctx, r.ID)
	if err == nil && !r.Voucher.Cumulative.Gt(&s.Deposit) { // else its deposit comes first
		var receipt channel.Receipt
		receipt, err = book.Accept(ctx, r.Voucher)
		s = receipt.State
	}
	if err != nil {
		return tab, err
	}
	return d.Account(ctx, s)
}
