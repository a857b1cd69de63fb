package sdk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/u256"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// x402Request is one request with a payment.
type x402Request struct {
	*http.Request
	route   x402Route
	hash    string // of what is asked for: see requestHash
	keyed   bool   // an idempotency key is part of that
	secret  bool   // and it is one that nobody guesses
	offer   x402.Requirements
	payment x402.PaymentPayload
	terms   channel.Terms
	id      common.Hash
	voucher channel.Voucher
	told    bool // its voucher is over what the request before it was told
	metered *meteredRoute
	body    []byte           // of a metered request
	seat    *reservation     // of its GPUs, while its deposit is on its way
	lease   common.Hash      // for which a metered request's devices are kept meanwhile; zero: none are
	turn    bool             // it has its turn at its metered route
	claim   *leasestore.Lock // it has its turn at its channel among the gateways; nil: there is one gateway
}

// maxIdempotencyKey bounds the key; bytes. One of secretIdempotencyKey, which 128
// random bits take in base64, is on no chain and is not guessed: with it an answer is
// had again though its voucher was claimed.
const (
	maxIdempotencyKey    = 255
	secretIdempotencyKey = 22
)

// identify names what a request asks for, so that requests with the same voucher
// are told apart.
func (r *x402Request) identify() {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%s\n%s\n", r.Method, r.URL.RequestURI())
	_, _ = h.Write(r.body)
	r.hash = hex.EncodeToString(h.Sum(nil))
	key := r.Header.Get(x402.HeaderIdempotencyKey)
	r.secret = len(key) >= secretIdempotencyKey
	if r.keyed = key != ""; r.keyed {
		sum := sha256.Sum256([]byte(key))
		r.hash += " " + hex.EncodeToString(sum[:])
	}
	if r.payment.Payload.Type == x402.TypeRefund { // by the same voucher a request may have been paid
		r.hash += " " + kindRefund
		if part := r.payment.Payload.Refund; part != nil {
			r.hash += " " + part.Dec()
		}
	}
}

// x402Answer is what a request with a payment gets.
type x402Answer struct {
	note    x402Note
	receipt x402.SettleResponse
	status  int
	header  http.Header
	body    []byte
	written bool // it was streamed: nothing is left to write
	lost    bool // the client was not there to take it
}

// errWithdrawing refuses to serve what might never be paid.
var errWithdrawing = errors.New("a withdrawal of the channel is pending: nothing is served from it until that is over; a refund is faster")

// errRefunding refuses to serve from a deposit that a refund is about to take.
var errRefunding = errors.New("a refund of the channel is on its way: nothing is served from it until that is mined; send the request again then")

// errScattered refuses to serve from yet another channel of one payer.
var errScattered = errors.New("too much was used on other channels of this payer, on each too little for a claim: refund those, which pays for it, or use one channel")

// corrective refuses a voucher over another amount than the next one must have.
// A stock client makes its state what it is told here and asks once more.
type corrective struct {
	tab    x402Tab
	expect uint256.Int // what the next voucher must be over
	got    uint256.Int
}

func (c *corrective) Error() string {
	return fmt.Sprintf("channel %s: the voucher is over %s, the next one must be over %s: %s was charged so far",
		c.tab.ID, c.got.Dec(), c.expect.Dec(), c.tab.charged.Dec())
}

// serve answers a request that is paid by x402. It waits for its turn on the
// channel; from then on it goes on to its end, whether or not the client is
// still there: who lost the connection gets a copy.
func (d *x402Desk) serve(w http.ResponseWriter, req *http.Request, r *x402Request) {
	r.Request = req
	if !d.leases.begin() {
		d.front.refuse(w, req, wire.Unavailable.With("this provider stops"))
		return
	}
	defer d.leases.done()
	if err := d.read(r); err != nil {
		d.refuse(w, r, err)
		return
	}
	answer, err := d.inTurn(w, r)
	if err != nil {
		d.refuse(w, r, err)
		return
	}
	if !answer.written {
		d.answer(w, r, answer)
	}
}

// read checks everything about a payment that needs no channel. Who gets past it
// can sign for the channel that the payment names, so that nobody else can hold
// up its line.
func (d *x402Desk) read(r *x402Request) error {
	r.offer = d.offered(r.route)
	var err error
	if r.payment, err = x402.ParsePaymentPayload(r.Header); err != nil {
		return err
	}
	if past, ok := d.pastOffer(r.offer, r.payment.Payload.Config.Receiver); ok && r.payment.Payload.Type == x402.TypeRefund {
		r.offer, r.payment.Accepted = past, past // it buys nothing: of what was offered only the channel counts
	}
	if r.terms, err = r.payment.Check(r.offer); err != nil {
		return err
	}
	if r.terms.AuthorizedSigner == (common.Address{}) {
		// A payer that signs for itself can become a contract account at any time,
		// and disown what it signed.
		return fmt.Errorf("%w: channel %s has no payerAuthorizer: name one, it may be the payer", x402.CodeVoucherSignature, r.terms.ID())
	}
	r.id, r.voucher = r.terms.ID(), r.payment.Payload.Voucher.Voucher()
	if key := r.Header.Get(x402.HeaderIdempotencyKey); len(key) > maxIdempotencyKey {
		return wire.MalformedCredential.With("%s has %d bytes, it may have %d", x402.HeaderIdempotencyKey, len(key), maxIdempotencyKey)
	}
	return d.book.Verify(r.Context(), r.terms, r.voucher)
}

// inTurn serves a request when it is its turn on the channel.
func (d *x402Desk) inTurn(w http.ResponseWriter, r *x402Request) (*x402Answer, error) {
	t, err := d.lines.enter(r.Context(), r.id, r.voucher.Cumulative)
	if err != nil {
		return nil, err
	}
	r.told = t.told
	var expect *uint256.Int
	defer func() { t.leave(expect) }()
	ctx := context.WithoutCancel(r.Context())
	if r.claim, err = d.alone(r.Context(), r.id); err != nil {
		return nil, err
	}
	defer func() { d.yield(ctx, r.id, r.claim, expect != nil) }()
	defer func() { r.seat.release() }()
	defer r.leave()
	defer func() { d.letGo(ctx, r) }()
	answer, err := d.pay(ctx, w, r)
	var wrong *corrective
	if errors.As(err, &wrong) {
		expect = &wrong.expect
	}
	if err != nil {
		return nil, err
	}
	answer.lost = answer.lost || r.Context().Err() != nil
	d.answered(ctx, d.notesOf(r), answer)
	return answer, nil
}

// answered remembers what became of an answer. It was charged by now, so that a
// disk that fails here is no reason to keep it back.
func (d *x402Desk) answered(ctx context.Context, notes x402Store, a *x402Answer) {
	if err := notes.answered(ctx, a.note, a.lost); err != nil {
		d.config.Log.Error("x402 answer was not noted: the client gets it again if it asks again", "channel", a.note.Channel, "error", err)
	}
}

// pay takes the payment and serves what it pays for.
func (d *x402Desk) pay(ctx context.Context, w http.ResponseWriter, r *x402Request) (*x402Answer, error) {
	tab, err := d.find(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := d.bounded(r, tab); err != nil {
		return nil, err
	}
	if tab.known {
		if err := d.load(w, r); err != nil {
			return nil, err
		}
		if answer, err := d.again(ctx, w, r, tab); answer != nil || err != nil {
			return answer, err
		}
	}
	if r.payment.Payload.Type != x402.TypeRefund {
		if tab, err = d.unrefunded(ctx, tab); err != nil {
			return nil, err
		}
	}
	if tab, err = d.match(ctx, r, tab); err != nil {
		return nil, err
	}
	if r.payment.Payload.Type == x402.TypeRefund {
		return d.refund(ctx, r, tab)
	}
	return d.buy(ctx, w, r, tab)
}

// buy serves what a payment is for, after its deposit, if it brings one, and its voucher.
func (d *x402Desk) buy(ctx context.Context, w http.ResponseWriter, r *x402Request, tab x402Tab) (_ *x402Answer, err error) {
	if tab.Status != channel.Open {
		return nil, fmt.Errorf("channel %s: %w", tab.ID, errWithdrawing)
	}
	deposits := r.payment.Payload.Type == x402.TypeDeposit
	if !tab.known && !deposits {
		return nil, fmt.Errorf("%w: the chain knows no channel %s", x402.CodeChannelNotFound, r.id)
	}
	var others uint64 // of the payer's channels whose use is not in the books yet
	if deposits {
		var end func()
		others, end = d.arrivals.begin(r.terms.Payer)
		defer end()
	} else if err := d.enter(r); err != nil {
		return nil, err
	}
	if err := errors.Join(d.capable(ctx, r), d.claimable(ctx, r.terms, others)); err != nil {
		return nil, err
	}
	note := x402Note{Channel: r.id.Hex(), MaxClaimable: r.voucher.Cumulative.Dec(), Kind: r.route.kind, Base: tab.charged.Dec(), Moved: "0"}
	if deposits {
		if tab, err = d.fund(ctx, r, tab, &note); err != nil {
			return nil, err
		}
	}
	if err := d.load(w, r); err != nil {
		return nil, err
	}
	if deposits { // the chain and its client take their time, and it is not the route's
		if err := d.enter(r); err != nil {
			return nil, err
		}
	}
	note.Hash = r.hash
	_, book, _ := d.booksOf(r)
	receipt, err := book.Accept(ctx, r.voucher)
	if err != nil {
		return nil, err
	}
	d.metrics.voucher(receipt.Outcome)
	tab.State = receipt.State
	switch r.route.kind {
	case kindStream:
		return d.stream(ctx, w, r, tab, note)
	case kindMetered:
		return d.metered(ctx, w, r, tab, note)
	}
	return d.tick(ctx, r, tab, note)
}

// claimable refuses a payer whose other channels hold the credit's worth of what
// was used there and no claim is worth: it could leave with all of that, and would with as
// much again of each further channel.
//
// Each of its channels whose deposit is on its way may come to a row.
func (d *x402Desk) claimable(ctx context.Context, t channel.Terms, arriving uint64) error {
	owing, err := d.debts.owingAt(ctx, d.contract, t.Payer)
	if err == nil {
		owing, err = d.debts.lapse(ctx, owing)
	}
	row := d.debts.leastRow(d.contract)
	others := debtsBut(owing, t.ID(), row)
	if row.Mul(&row, uint256.NewInt(arriving)); err != nil || others.Add(&others, &row).Lt(&d.credit) {
		return err
	}
	return fmt.Errorf("%w (%s)%s", errScattered, d.debts.debtors(owing, d.debts.leastRow(d.contract)), d.debts.lapses(owing))
}

// arrivals counts each payer's requests that bring a deposit, until they are served.
type arrivals struct {
	mu      sync.Mutex
	byPayer map[common.Address]uint64
}

// begin counts a request, until end, and returns how many of its payer there are beside it.
func (a *arrivals) begin(payer common.Address) (others uint64, end func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byPayer == nil {
		a.byPayer = make(map[common.Address]uint64)
	}
	others = a.byPayer[payer]
	a.byPayer[payer]++
	return others, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.byPayer[payer]--; a.byPayer[payer] == 0 {
			delete(a.byPayer, payer)
		}
	}
}

// find returns the channel that a payment is from, as we know it or, of one that
// we do not know, as the chain does.
func (d *x402Desk) find(ctx context.Context, r *x402Request) (x402Tab, error) {
	s, err := d.book.State(ctx, r.id)
	switch {
	case err == nil:
		if s, err = d.look(ctx, s); err != nil {
			return x402Tab{}, err
		}
		return d.tab(ctx, s)
	case !errors.Is(err, channel.ErrUnknown):
		return x402Tab{}, err
	case !d.limiter.Challenge(r.Request): // it costs a question to the chain
		return x402Tab{}, wire.TooMany.With("too many requests for channels that are not known here: wait a second")
	}
	views, _, err := d.contract.Confirmed(ctx, []common.Hash{r.id}, d.config.Confirmations)
	if err != nil {
		return x402Tab{}, err
	}
	if views[0].View.Deposit.IsZero() {
		return x402Tab{State: channel.State{ID: r.id, Terms: r.terms, Status: channel.Open}}, nil
	}
	if s, err = d.look(ctx, channel.State{ID: r.id, Terms: r.terms}); err != nil {
		return x402Tab{}, err
	}
	return d.tab(ctx, s)
}

// tab is a known channel with what x402 counts as charged. What the chain has
// claimed was charged once, whether or not we remember it.
func (d *x402Desk) tab(ctx context.Context, s channel.State) (x402Tab, error) {
	if s.Settled.Gt(&s.Spent) {
		var err error
		if s, err = d.book.Charge(ctx, s.ID, s.Settled); err != nil {
			return x402Tab{}, err
		}
	}
	note, err := d.notes.channel(ctx, s.ID)
	t := x402Tab{State: s, note: note, charged: u256.Min(s.Spent, note.Reserved), known: true}
	for _, more := range []uint256.Int{note.Prepaid, s.Settled} {
		if more.Gt(&t.charged) {
			t.charged = more
		}
	}
	return t, err
}

// match holds a voucher to the amount that comes next. A stock client is corrected
// once and then gives up: so what it is told is no public voucher's amount, and is
// taken though its lease went on meanwhile.
func (d *x402Desk) match(ctx context.Context, r *x402Request, tab x402Tab) (x402Tab, error) {
	tab, err := d.recalled(ctx, r, tab)
	if err != nil {
		return tab, err
	}
	if fits, err := d.stillFits(ctx, r, tab); err != nil {
		return tab, err
	} else if fits {
		tab.charged = r.based()
		return tab, nil
	}
	expect := tab.charged
	if r.payment.Payload.Type != x402.TypeRefund {
		expect.Add(&expect, &r.route.most)
	}
	if r.voucher.Cumulative != expect {
		if wrong, err := d.behind(ctx, r, tab); err != nil {
			return tab, err
		} else if wrong != nil {
			return tab, wrong
		}
	}
	public, err := d.public(ctx, tab, expect)
	if err != nil {
		return tab, err
	}
	if !public && r.voucher.Cumulative == expect {
		return tab, nil
	}
	if public {
		if tab, err = d.outdate(ctx, r, tab); err != nil {
			return tab, err
		}
		expect.AddUint64(&expect, 1)
	}
	return tab, &corrective{tab: tab, expect: expect, got: r.voucher.Cumulative}
}

// stillFits reports whether a voucher over what its client was told pays for a window
// of what is charged by now: a lease that used its slack up meanwhile is charged for
// that with this request, within its amount.
func (d *x402Desk) stillFits(ctx context.Context, r *x402Request, tab x402Tab) (bool, error) {
	base := r.based()
	if !r.told || r.metered != nil || !base.Lt(&tab.charged) || base.Lt(&tab.Settled) {
		return false, nil
	}
	if r.payment.Payload.Type != x402.TypeRefund {
		cost, err := d.price.Charge(uint64(r.route.gpus) * uint64(d.x.Window))
		if cost.Add(&cost, &tab.charged); err != nil || !cost.Lt(&r.voucher.Cumulative) {
			return false, err
		}
	}
	public, err := d.public(ctx, tab, r.voucher.Cumulative)
	return !public, err
}

// capable refuses what could not be served before anybody's money moves for it.
func (d *x402Desk) capable(ctx context.Context, r *x402Request) error {
	if err := d.leases.takesLeases(); err != nil {
		return err
	}
	gpus, current, err := d.runs(ctx, r.id)
	switch {
	case err != nil:
		return err
	case r.route.kind == kindMetered && gpus > 0:
		return errConflict.With("a lease runs on channel %s: take a refund, which ends it, or wait until it ends", r.id)
	case r.route.kind == kindMetered:
		return d.vacant(ctx, r.id, r.metered)
	case current && gpus != r.route.gpus:
		return misfit(r, gpus)
	case current:
		return nil
	}
	return d.gpus.room(ctx, r.id, r.route.gpus, gpus) // a lease of another price ends and gives its GPUs back
}

// runs is how many GPUs the lease has that runs on a channel, 0 if none does, and
// whether it is of today's price.
func (d *x402Desk) runs(ctx context.Context, id common.Hash) (gpus int, current bool, err error) {
	if l := d.leases.running(id); l != nil {
		return len(l.allocation.Devices), l.price == d.price, nil
	}
	if !d.shared {
		return 0, false, nil
	}
	row, ok, err := d.store.Leases.Newest(ctx, id)
	if err != nil || !ok || row.State == wire.StateEnded {
		return 0, false, err
	}
	offer, err := d.store.Offers.Get(ctx, common.HexToHash(row.Offer))
	if err != nil {
		return 0, false, err
	}
	price, err := offer.Price()
	return row.GPUs, price == d.price, err
}

// misfit refuses another number of GPUs than the channel's lease has.
func misfit(r *x402Request, gpus int) error {
	return errConflict.With("the lease that runs on channel %s has %d GPUs, the request wants %d: take a refund, which ends it, or wait until it ends", r.id, gpus, r.route.gpus)
}

// snapshot is a channel as receipts and corrective answers show it.
func (t x402Tab) snapshot() *x402.Snapshot {
	return &x402.Snapshot{
		ChannelID: x402.Hash(t.ID), Balance: wire.NewAmount(t.Deposit), TotalClaimed: wire.NewAmount(t.Settled),
		WithdrawRequestedAt: t.CloseRequestedAt, RefundNonce: wire.NewAmount(t.note.RefundNonce),
	}
}

// receipt is what a client reads of its payment: what it was charged for this
// request, and in all.
func (t x402Tab) receipt(n x402Note, base, charged uint256.Int) x402.SettleResponse {
	var cost uint256.Int
	if charged.Gt(&base) {
		cost.Sub(&charged, &base)
	}
	payer, amount, all := wire.Address(t.Terms.Payer), wire.NewAmount(cost), wire.NewAmount(charged)
	res := x402.SettleResponse{
		Success: true, Network: x402.Network(t.Terms.ChainID), Payer: &payer, ChargedAmount: &amount,
		ChannelState: &x402.ChannelState{Snapshot: t.snapshot(), ChargedCumulativeAmount: &all},
	}
	if n.Tx != "" {
		var moved wire.Amount
		if moved.SetFromDecimal(n.Moved) == nil {
			res.Amount = &moved
		}
		res.Transaction = x402.Transaction(common.HexToHash(n.Tx))
	}
	return res
}

// answer writes an answer with its receipt.
func (d *x402Desk) answer(w http.ResponseWriter, r *x402Request, a *x402Answer) {
	if err := a.receipt.Set(w.Header()); err != nil {
		d.config.Log.Error("x402 receipt", "channel", r.id, "error", err)
	}
	for name, values := range a.header {
		if !strings.HasPrefix(strings.ToUpper(name), "PAYMENT-") {
			w.Header()[name] = values
		}
	}
	if len(a.body) > 0 && w.Header().Get("Content-Length") == "" {
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)))
	}
	serve.Hurry(w)
	w.WriteHeader(a.status)
	_, err := w.Write(a.body)
	if err == nil { // what stays in a buffer here is not lost yet
		_ = http.NewResponseController(w).Flush()
		err = r.Context().Err()
	}
	if err != nil && !a.lost { // what was noted as lost may have been had again since
		a.lost = true
		d.answered(context.WithoutCancel(r.Context()), d.notes, a)
	}
}

// confirmed reads a channel from the chain and records what it says.
func (d *x402Desk) confirmed(ctx context.Context, terms channel.Terms) (s channel.State, pending bool, err error) {
	err = d.contract.Record(func() error {
		views, _, err := d.contract.Fresh(ctx, []common.Hash{terms.ID()}, d.config.Confirmations)
		if err != nil {
			return err
		}
		pending = views[0].Pending()
		s, err = d.book.Register(ctx, terms, views[0].View)
		return err
	})
	return s, pending, err
}

// pause waits between two looks at something.
func (d *x402Desk) pause(ctx context.Context) error { return chain.Pause(ctx, d.config.Poll) }

func jsonHeader() http.Header { return http.Header{"Content-Type": {"application/json"}} }
