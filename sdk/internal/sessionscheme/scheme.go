// Package sessionscheme is the provider's own scheme, sessions: a renter opens a channel, and its vouchers go through a lease's stream.
// Of its provider it knows what package scheme says.
package sessionscheme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/lease"
	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Scheme takes every request that no other scheme does, also those without a payment. Its parts call only those above them here.
type Scheme struct {
	core
	Challenges Challenges
	vouchers   vouchers
	Records    Records
	access     access
	Deposits   Deposits
	Channels   Channels
	Admission  Admission
	Leasing    Leasing
	streams    streams
	Closing    Closing
}

// New has leases paid by vouchers, under challenges of the minter.
func New(deps Deps, minter *wire.Minter) *Scheme {
	c := core{&deps}
	d := &Scheme{core: c, Challenges: Challenges{c, minter}, Records: Records{c}, Deposits: Deposits{c}, Closing: Closing{c}, vouchers: vouchers{c}}
	d.access = access{c, &d.Records}
	d.Channels = Channels{core: c, deposits: &d.Deposits, vouchers: &d.vouchers, records: &d.Records}
	d.Admission = Admission{c, &d.access, &d.Channels}
	d.Leasing = Leasing{c, &d.Admission}
	d.streams = streams{c, &d.vouchers, &d.Leasing}
	return d
}

// Path is the lease: vouchers go to the same URI as what they pay for.
func (d *Scheme) Path() string { return "/lease" }

// Pays has the scheme take what no other one does.
func (d *Scheme) Pays(*http.Request) bool { return true }

// Takes leaves leases on the escrow's channels to their payers' credit: what vouchers follow is what records state.
func (d *Scheme) Takes(l *lease.Lease) (bool, error) { return l.Terms.Scheme == channel.Session, nil }

// Notice has nothing to tell: the state of the channel says all.
func (d *Scheme) Notice(context.Context, *lease.Lease) error { return nil }

// Offer adds a fresh challenge to a 402.
func (d *Scheme) Offer(h http.Header, r *http.Request) error {
	challenge, err := d.Challenges.Mint(r.Context(), d.Challenges.classOf(r))
	if err == nil {
		h.Set("WWW-Authenticate", challenge.Header())
	}
	return err
}

// ServePaid is the paid resource, to a request that no other scheme pays.
func (d *Scheme) ServePaid(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	req, err := d.Challenges.read(r)
	if err == nil {
		err = d.act(w, req)
	}
	if err != nil && r.Context().Err() == nil {
		d.Front.Refuse(w, r, err)
	}
}

// act does what the credential is for. What was reserved for the request is free again after it, unless a lease has it.
func (d *Scheme) act(w http.ResponseWriter, r *Request) error {
	defer func() { r.Seat.Release() }()
	payload := &r.Cred.Payload
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
func (d *Scheme) actOpen(w http.ResponseWriter, r *Request) error {
	if err := d.Admission.worthFunding(r, &r.Cred.Payload); err != nil {
		return err
	}
	s, fresh, err := d.Channels.open(r, &r.Cred.Payload)
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return d.acknowledge(w, r, s, nil)
	}
	if !fresh {
		// Whoever saw the first open, or its transaction, could send it again.
		if _, err := d.access.authorize(r, s, "attach"); err != nil {
			return err
		}
	}
	return d.streams.attach(w, r, s)
}

// actVoucher takes a voucher, with a deposit merged or not. A GET wants the
// lease's stream, which a voucher alone does not give.
func (d *Scheme) actVoucher(w http.ResponseWriter, r *Request) error {
	payload := &r.Cred.Payload
	fresh := false
	if payload.Deposit != nil {
		err := d.Admission.worthFunding(r, payload.Deposit)
		if err == nil {
			_, fresh, err = d.Channels.deposit(r, payload.Deposit)
		}
		if err != nil {
			return err // nothing of a merged credential counts if its deposit failed
		}
	}
	s, err := d.Channels.recall(r)
	if err != nil {
		return err
	}
	wantsStream := r.Method == http.MethodGet
	if wantsStream && !fresh {
		if _, err := d.access.authorize(r, s, "attach"); err != nil {
			return err
		}
	}
	voucher := channel.Voucher{ChannelID: payload.ChannelID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Signature}
	if taken, err := d.vouchers.accept(r.Context(), d.Payee, voucher); err == nil {
		s = taken
	} else if !wantsStream || !errors.Is(err, channel.ErrDelta) { // else it is the newest that was signed: not counted, and the stream says so
		return err
	}
	if !wantsStream {
		return d.acknowledge(w, r, s, nil)
	}
	return d.streams.attach(w, r, s)
}

// actTopUp adds to the deposit of a channel.
func (d *Scheme) actTopUp(w http.ResponseWriter, r *Request) error {
	s, _, err := d.Channels.deposit(r, &r.Cred.Payload)
	if err != nil {
		return err
	}
	return d.acknowledge(w, r, s, nil)
}

// actRelease ends the lease and answers with its final record. The channel
// stays open, so that what the record states can be paid exactly.
func (d *Scheme) actRelease(w http.ResponseWriter, r *Request) error {
	s, err := d.Channels.recall(r)
	if err != nil {
		return err
	}
	row, err := d.access.authorize(r, s, wire.ActionRelease)
	if err != nil {
		return err
	}
	if err := d.Leases.EndLease(r.Context(), s.ID, row, "released by the renter"); err != nil {
		return err
	}
	answer := wire.Released{Record: json.RawMessage("null"), Voucher: heldVoucher(s)}
	if row != nil && r.over == nil {
		last, err := d.Store.Records.Last(r.Context(), common.HexToHash(row.ID))
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
func (d *Scheme) actClose(w http.ResponseWriter, r *Request) error {
	payload := &r.Cred.Payload
	s, err := d.Channels.recall(r)
	if err != nil {
		return err
	}
	if s.Status == channel.Finalized {
		return fmt.Errorf("channel %s: %w", s.ID, channel.ErrFinalized)
	}
	voucher := channel.Voucher{ChannelID: s.ID, Cumulative: payload.CumulativeAmount.Int, Signature: payload.Signature}
	if _, err := d.Payee.Check(r.Context(), voucher); err != nil {
		return err
	}
	row, err := d.access.authorize(r, s, wire.ActionClose)
	if err != nil {
		return err
	}
	defer d.Starts.Lock(s.ID)() // no lease begins meanwhile
	if err := d.Leases.EndLease(r.Context(), s.ID, row, "closed by the renter"); err != nil {
		return err
	}
	if s.Status == channel.Open {
		if s, err = d.vouchers.accept(r.Context(), d.Payee.Last(), voucher); err != nil {
			return err
		}
	}
	hash, s, err := d.Closing.Close(r.Context(), s)
	if err != nil {
		return err
	}
	return d.acknowledge(w, r, s, nil, hash)
}

// acknowledge answers with a receipt, and with body as JSON if there is one.
func (d *Scheme) acknowledge(w http.ResponseWriter, r *Request, s channel.State, body any, tx ...common.Hash) error {
	receipt := wire.NewReceipt(time.Now(), r.Cred.Challenge.ID, d.Escrow.ChainID(), s.ID, wire.NewAmount(s.Accepted), wire.NewAmount(s.Spent))
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
