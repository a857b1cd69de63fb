package audit

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// ErrBundle says that a bundle does not hold together.
var ErrBundle = errors.New("bundle does not hold together")

// Check is one thing that was verified of a bundle. Err is nil if it holds.
type Check struct {
	Name   string
	Detail string // what was found
	Err    error
	Look   string // it holds together, and only the payer knows whether it agreed to it; empty: nothing of that kind
}

// String is a line for a person. Its words are the bundle's, which comes from a stranger: they are one line and steer no terminal.
func (c Check) String() string {
	switch {
	case c.Err != nil:
		return redact.Text(fmt.Sprintf("FAILED  %s: %v", c.Name, c.Err))
	case c.Look != "":
		return redact.Text(fmt.Sprintf("LOOK    %s: %s: %s", c.Name, c.Detail, c.Look))
	}
	return redact.Text(fmt.Sprintf("ok      %s: %s", c.Name, c.Detail))
}

// Failures joins what did not hold, nil if everything did.
func Failures(checks []Check) error {
	var failed []error
	for _, c := range checks {
		if c.Err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", c.Name, c.Err))
		}
	}
	return errors.Join(failed...)
}

// verifier collects the checks of one bundle.
type verifier struct {
	*Bundle
	terms  channel.Terms
	checks []Check

	// carried is what rounding left of the leases so far, in metering.Fractions: it is
	// charged as soon as it makes a base unit.
	carried uint64
}

func (v *verifier) note(name, detail string, err error) {
	v.checks = append(v.checks, Check{Name: name, Detail: detail, Err: err})
}

// Verify checks everything that a bundle says: the offer's signature, each
// record's signature, the chain of their hashes, their arithmetic, the hash and
// the sums of their evidence, sample proofs, and the voucher against them. That
// needs nobody's help. With a backend, amounts and transactions are compared
// with the chain as well; without one (nil) they are the keeper's word.
//
// What it cannot check is whether a GPU was really used, and who stands behind
// an address: compare payer and payee with those you know.
func Verify(ctx context.Context, b *Bundle, backend chain.Backend) []Check {
	v := &verifier{Bundle: b, terms: b.terms()}
	v.channel()
	v.prepaid()
	owed, known := uint256.Int{}, len(b.Leases) > 0
	for i := range b.Leases {
		var ok bool
		owed, ok = v.lease(&b.Leases[i], owed)
		known = known && ok
	}
	v.apart()
	v.offers()
	newest := v.vouchers()
	if b.X402 != nil {
		v.claimed(newest, owed, known)
	} else {
		v.vouchered(newest, owed, known)
		v.settled(newest)
	}
	v.debt(newest, owed)
	v.evidence()
	if backend != nil {
		v.chain(ctx, chain.Agreed(backend))
	}
	return v.checks
}

func (v *verifier) channel() {
	err := v.terms.Validate()
	if id := v.terms.ID(); err == nil && id != v.Channel {
		err = fmt.Errorf("%w: the terms are of channel %s, it says %s", ErrBundle, id, v.Channel)
	}
	if v.Keeper != KeptByPayee && v.Keeper != KeptByPayer {
		err = errors.Join(err, fmt.Errorf("%w: it was kept by %.20q, neither payee nor payer", ErrBundle, v.Keeper))
	}
	v.note("channel", fmt.Sprintf("%s, payer %s, payee %s, kept by the %s", v.Channel, v.Terms.Payer, v.Terms.Payee, v.Keeper), err)
}

// lease checks one lease and returns what the channel owed at its end.
func (v *verifier) lease(l *Lease, before uint256.Int) (owed uint256.Int, ok bool) {
	name := "lease " + l.ID.TerminalString() + " "
	offer, err := v.offer(l)
	v.note(name+"offer", fmt.Sprintf("%s, signed by the payee: %s base units per %s", offer.Hash, offer.Amount.Dec(), offer.Unit), err)
	if err != nil {
		return l.OwedBefore.Int, false
	}
	if !v.follows(before, l.OwedBefore.Int) {
		err = fmt.Errorf("%w: it begins with %s owed, the lease before ended with %s", ErrBundle, l.OwedBefore.Dec(), before.Dec())
	}
	v.note(name+"start", fmt.Sprintf("%s owed before it", before.Dec()), err)
	if err := v.meter(name, l, offer); err != nil {
		return l.OwedBefore.Int, false
	}
	if len(l.Records) == 0 {
		v.note(name+"records", "none: nothing is owed for it", nil)
		return l.OwedBefore.Int, err == nil
	}
	failed := v.records(name, l, offer)
	v.proofs(name, l)
	if failed == nil {
		failed = v.carry(offer, l.Records[len(l.Records)-1])
	}
	return l.Records[len(l.Records)-1].Owed, err == nil && failed == nil
}

func (v *verifier) offer(l *Lease) (wire.SignedOffer, error) {
	offer, err := wire.ParseOffer(l.Offer)
	if err != nil {
		return offer, err
	}
	for _, same := range []struct{ name, offered, used string }{
		{"chain", fmt.Sprint(offer.ChainID), fmt.Sprint(v.terms.ChainID)},
		{"escrow", offer.Escrow.String(), v.offeredEscrow(offer).String()},
		{"token", offer.Token.String(), v.Terms.Token.String()},
		{"payee", offer.Payee.String(), v.Terms.Payee.String()},
	} {
		if same.offered != same.used {
			return offer, fmt.Errorf("%w: the offer's %s is %s, the channel's is %s", ErrBundle, same.name, same.offered, same.used)
		}
	}
	return offer, nil
}

// meter checks that the payee bound the key that signs the records, where its offer names none. A lease that never began
// has no records and none.
func (v *verifier) meter(name string, l *Lease, offer wire.SignedOffer) error {
	if l.Binding == nil && (offer.NamesMeter() || len(l.Records) == 0) {
		return nil
	}
	meter, err := offer.MeterOf(l.ID, v.Channel, l.Binding)
	v.note(name+"meter", fmt.Sprintf("%s, bound to it by the payee", meter), err)
	return err
}

// The checks of records, in the order in which a checker makes them, and the
// errors that each is refused with.
var recordChecks = []struct {
	name string
	errs []error
}{
	{"record signatures", []error{verify.ErrSignature}},
	{"record terms", []error{verify.ErrLease}},
	{"hash chain", []error{verify.ErrSequence, verify.ErrForked, verify.ErrBackwards, verify.ErrReplayed}},
	{"arithmetic", []error{metering.ErrPrice}},
	{"evidence", []error{metering.ErrEvidence, verify.ErrDevices, metering.ErrKind}},
}

// records runs every record through the checker that a payer uses, whose clock
// allows everything: how much time passed nobody can tell afterwards.
func (v *verifier) records(name string, l *Lease, offer wire.SignedOffer) error {
	at, err := v.check(l, offer)
	reached := false
	for _, c := range recordChecks {
		var failed error
		for _, kind := range c.errs {
			if errors.Is(err, kind) && !reached {
				failed = err
			}
		}
		reached = reached || failed != nil
		v.note(name+c.name, fmt.Sprintf("%d records", at), failed)
	}
	if err != nil && !reached { // none of the above: the lease itself cannot be checked
		v.note(name+"records", "", err)
	}
	return err
}

func (v *verifier) check(l *Lease, offer wire.SignedOffer) (int, error) {
	price, err := offer.Price()
	if err != nil {
		return 0, err
	}
	meter, err := offer.MeterOf(l.ID, v.Channel, l.Binding)
	if err != nil {
		return 0, err
	}
	config := verify.Config{
		Key: meter, Tolerance: math.MaxInt64, Clock: noClock{},
		Lease: offer.Meters(metering.Lease{
			ID: l.ID, ChannelID: v.Channel, OfferHash: offer.Hash, ChainID: v.terms.ChainID, Escrow: v.terms.Escrow,
			Price: price, OwedBefore: l.OwedBefore.Int, Devices: l.Devices,
		}),
	}
	checker, err := verify.New(config)
	if err != nil {
		return 0, err
	}
	for i, record := range l.Records {
		if v.holed() {
			checker, err = overHole(config, checker.State(), record)
		}
		if err == nil {
			err = checker.Check(record)
		}
		if err != nil {
			return i, err
		}
	}
	return len(l.Records), nil
}

// overHole is a checker that goes on behind records that its keeper was not shown.
func overHole(config verify.Config, s verify.State, next metering.SignedRecord) (*verify.Checker, error) {
	s, err := s.Skip(next)
	if err != nil {
		return nil, err
	}
	return verify.Resume(config, s)
}

// noClock is the clock of somebody who was not there.
type noClock struct{}

func (noClock) Now() metering.Instant                { return metering.Instant{} }
func (noClock) After(time.Duration) <-chan time.Time { return nil }
func (noClock) BootID() string                       { return "" }

func (v *verifier) proofs(name string, l *Lease) {
	if len(l.Proofs) == 0 {
		return
	}
	var failed findings
	for _, p := range l.Proofs {
		if p.Sequence < 1 || p.Sequence > uint64(len(l.Records)) {
			failed.add(fmt.Errorf("%w: a sample of record %d, there are %d", merkle.ErrProof, p.Sequence, len(l.Records)))
			continue
		}
		e := l.Records[p.Sequence-1].Evidence
		if err := p.Proof.Verify(e.Root, e.Samples); err != nil {
			failed.add(fmt.Errorf("record %d: %w", p.Sequence, err))
		}
	}
	v.note(name+"sample proofs", fmt.Sprintf("%d samples are under the roots that the records commit to", len(l.Proofs)), failed.err())
}

// vouchers checks every signature, and that they grow, and returns the newest
// amount.
func (v *verifier) vouchers() (newest uint256.Int) {
	var failed findings
	domain := v.terms.Scheme.Domain(v.terms.ChainID, v.terms.Escrow)
	for i, voucher := range v.Vouchers {
		err := domain.Verify(channel.Voucher{ChannelID: v.Channel, Cumulative: voucher.Cumulative.Int, Signature: voucher.Signature}, v.terms.Signer())
		if i > 0 && !newest.Lt(&voucher.Cumulative.Int) {
			err = errors.Join(err, fmt.Errorf("%w: a voucher for %s after one for %s", ErrBundle, voucher.Cumulative.Dec(), newest.Dec()))
		}
		failed.add(err)
		newest = voucher.Cumulative.Int
	}
	v.note("vouchers", fmt.Sprintf("%d, signed by %s, the newest for %s", len(v.Vouchers), v.terms.Signer(), newest.Dec()), failed.err())
	return newest
}

// prepaid is known to the payer alone: what a payee writes there would explain
// away records that it left out.
func (v *verifier) prepaid() {
	var err error
	if v.Keeper == KeptByPayee && !v.Prepaid.IsZero() {
		err = fmt.Errorf("%w: the payee says that %s was prepaid, which only the payer can", ErrBundle, v.Prepaid.Dec())
	}
	v.note("prepaid", fmt.Sprintf("%s base units", v.Prepaid.Dec()), err)
}

// apart looks for leases that are there twice, and for a GPU that is billed twice
// for one time.
func (v *verifier) apart() {
	var failed findings
	seen := make(map[common.Hash]bool, len(v.Leases))
	for _, l := range v.Leases {
		if seen[l.ID] {
			failed.add(fmt.Errorf("%w: lease %s is there twice", ErrBundle, l.ID))
		}
		seen[l.ID] = true
	}
	failed.add(billedTwice(v.spans(func(rec metering.SignedRecord) metering.SignedRecord { return rec })))
	v.note("leases", fmt.Sprintf("%d, no GPU billed twice for one time", len(v.Leases)), failed.err())
}

// underWay is what a lease may owe beyond the newest voucher: the offer's credit,
// and one reading of each device that comes late, by MaxGap at most and by no more
// than an offer is taken with. A lease whose offer does not parse has none.
func (l *Lease) underWay() uint256.Int {
	offer, err := wire.ParseOffer(l.Offer)
	if err != nil {
		return uint256.Int{}
	}
	price, err := offer.Price()
	if err != nil {
		return uint256.Int{}
	}
	most, err := price.Charge(offer.Credit * uint64(time.Second))
	if err != nil || offer.Credit > uint64(math.MaxInt64)/uint64(time.Second) {
		return channel.MaxAmount()
	}
	late, err := price.Charge(uint64(min(max(0, offer.MaxGap), wire.MaxGap.Milliseconds())) * uint64(time.Millisecond) * uint64(max(1, len(l.Devices))))
	if err != nil {
		return channel.MaxAmount()
	}
	return *most.Add(&most, &late)
}

// vouchered holds the newest voucher against the records. Owing more than was
// vouchered is a debt; the other way round somebody paid for nothing, or records
// are missing.
func (v *verifier) vouchered(newest, owed uint256.Int, known bool) {
	var most uint256.Int
	most.Add(&owed, &v.Prepaid.Int)
	var err error
	if len(v.Leases) > 0 && !known {
		err = fmt.Errorf("%w: what is owed is not known: see above", ErrBundle)
	} else if newest.Gt(&most) {
		err = fmt.Errorf("%w: %s is vouchered, the records say %s and %s was prepaid: records are missing, or it was paid for nothing",
			ErrBundle, newest.Dec(), owed.Dec(), v.Prepaid.Dec())
	}
	detail := fmt.Sprintf("%s owed, %s vouchered", owed.Dec(), newest.Dec())
	if newest.Lt(&owed) {
		var debt uint256.Int
		debt.Sub(&owed, &newest)
		detail += fmt.Sprintf(": %s is not paid", debt.Dec())
	}
	v.note("records and voucher", detail, err)
}

func (v *verifier) settled(newest uint256.Int) {
	var err error
	if v.Settled.Gt(&newest) {
		err = fmt.Errorf("%w: %s is settled, the newest voucher is for %s", ErrBundle, v.Settled.Dec(), newest.Dec())
	} else if newest.Gt(&v.Deposit.Int) {
		err = fmt.Errorf("%w: %s is vouchered, the deposit is %s", ErrBundle, newest.Dec(), v.Deposit.Dec())
	}
	v.note("settlement", fmt.Sprintf("%s of %s vouchered, deposit %s", v.Settled.Dec(), newest.Dec(), v.Deposit.Dec()), err)
}

// evidence looks for proofs that the payee contradicted itself. A bundle with
// one holds together: it is the payee that does not.
func (v *verifier) evidence() {
	if len(v.Evidence) == 0 {
		return
	}
	detail := fmt.Sprintf("%d things were refused", len(v.Evidence))
	for _, p := range v.Equivocations() {
		detail += "; the payee signed two " + p.Subject()
	}
	v.note("refused by the payer", detail, nil)
}
