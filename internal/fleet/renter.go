package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Deposit is what each renter puts into its channel.
const Deposit = 1_000_000 // base units: 1,000 GPU-seconds

// Renter speaks the wire by hand, and believes what is acknowledged and nothing
// else.
type Renter struct {
	Terms    channel.Terms
	Patience time.Duration // for an answer
	next     func() string // URL of the gateway that it turns to next
	http     *http.Client
	key      *channel.Key
	domain   common.Hash // the token's

	challenge wire.Challenge
	secret    string
	Opened    time.Time
	Amount    uint64 // of the newest voucher
	Acked     uint64 // the newest that a gateway acknowledged
	Final     metering.SignedRecord
	Ended     time.Time

	vouchers, tries *atomic.Int64
}

// NewRenter makes a renter with a purse of one deposit. Its salt is n.
func NewRenter(t *testing.T, c *chaintest.Chain, next func() string, client *http.Client, token *chain.Token, n int) *Renter {
	t.Helper()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	domain, err := token.DomainSeparator(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	key := channel.NewKey(private)
	c.Mint(t, key.Address(), Deposit)
	return &Renter{next: next, http: client, key: key, domain: domain, Patience: 60 * time.Second, vouchers: new(atomic.Int64), tries: new(atomic.Int64), Terms: channel.Terms{
		ChainID: 31337, Escrow: c.Escrow, Payer: key.Address(), Payee: crypto.PubkeyToAddress(c.Keys[0].PublicKey), Token: c.Token,
		Salt: common.Hash{30: byte(n >> 8), 31: byte(n)}}}
}

func (r *Renter) escrow() channel.Domain {
	return channel.EscrowDomain(r.Terms.ChainID, r.Terms.Escrow)
}

// ask gets a fresh challenge from any gateway.
func (r *Renter) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.next()+"/lease", nil)
	if err != nil {
		return err
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	all, err := wire.ParseChallenges(resp.Header)
	if err != nil || len(all) == 0 {
		return fmt.Errorf("no challenge: %s, %w", resp.Status, err)
	}
	r.challenge = all[0]
	return nil
}

// send tries one gateway after the other until one answers with success, or that
// the channel is over.
func (r *Renter) send(ctx context.Context, method string, payload func() (wire.Payload, error), answered func(*http.Response) error) error {
	var last error
	for ctx.Err() == nil {
		if last = r.once(ctx, method, payload, answered); last == nil {
			return nil
		}
		var problem *wire.Problem
		if errors.Is(last, &wire.ChannelFinalized) {
			return last
		}
		if errors.As(last, &problem) && problem.Status == http.StatusPaymentRequired {
			r.challenge = wire.Challenge{} // used, or expired: another one
		}
		pause(ctx, time.Duration(50+rand.IntN(200))*time.Millisecond)
	}
	return fmt.Errorf("renter %s: %w: %w", r.key.Address(), ctx.Err(), last)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (r *Renter) once(ctx context.Context, method string, payload func() (wire.Payload, error), answered func(*http.Response) error) error {
	ctx, cancel := context.WithTimeout(ctx, r.Patience)
	defer cancel()
	if r.challenge.ID == "" {
		if err := r.ask(ctx); err != nil {
			return err
		}
	}
	p, err := payload()
	if err != nil {
		return err
	}
	header, err := wire.Credential{Challenge: r.challenge, Source: wire.Source(r.Terms.ChainID, r.Terms.Payer), Payload: p}.Header()
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, method, r.next()+"/lease", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", header)
	resp, err := r.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return wire.ParseProblem(resp)
	}
	return answered(resp)
}

// Open opens the channel, without gas, and begins a lease; then it hangs up: the
// lease goes on.
func (r *Renter) Open(ctx context.Context) error {
	auth, err := chain.SignAuthorization(ctx, r.key, r.domain, channel.Authorization{From: r.Terms.Payer, To: r.Terms.Escrow,
		Value: *uint256.NewInt(Deposit), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()), Nonce: channel.OpenNonce(r.Terms.Payer, r.Terms)})
	if err != nil {
		return err
	}
	first, err := r.voucher(ctx, 0)
	if err != nil {
		return err
	}
	payload := func() (wire.Payload, error) {
		proof, err := wire.Prove(ctx, r.key, r.Terms, r.challenge.ID, "attach")
		return wire.Payload{Action: wire.ActionOpen, Type: wire.TypeAuthorization, ChannelID: r.Terms.ID(), Salt: &r.Terms.Salt,
			Authorization: &wire.Authorization{From: wire.Address(auth.From), To: wire.Address(auth.To), Value: wire.NewAmount(auth.Value),
				ValidAfter: amountOf(auth.ValidAfter), ValidBefore: amountOf(auth.ValidBefore), Nonce: auth.Nonce},
			Signature: auth.Signature, VoucherSignature: first.Signature, CumulativeAmount: ptr(amountOf(0)), Proof: proof}, err
	}
	return r.send(ctx, http.MethodGet, payload, func(resp *http.Response) error {
		event, err := wire.NewEvents(resp.Body).Next()
		if err != nil {
			return err
		}
		var lease wire.Lease
		if err := json.Unmarshal(event.Data, &lease); err != nil {
			return err
		}
		r.secret, r.Opened, r.challenge = lease.Secret, time.Now(), wire.Challenge{}
		return nil
	})
}

func amountOf(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

func ptr[T any](v T) *T { return &v }

func (r *Renter) voucher(ctx context.Context, amount uint64) (channel.Voucher, error) {
	return r.escrow().Sign(ctx, r.key, r.Terms.ID(), *uint256.NewInt(amount))
}

// Pay sends a voucher until a gateway acknowledges it.
func (r *Renter) Pay(ctx context.Context, amount uint64) error {
	r.Amount = amount
	v, err := r.voucher(ctx, amount)
	if err != nil {
		return err
	}
	payload := func() (wire.Payload, error) {
		r.tries.Add(1)
		return wire.Payload{Action: wire.ActionVoucher, ChannelID: r.Terms.ID(), CumulativeAmount: ptr(amountOf(amount)), Signature: v.Signature}, nil
	}
	return r.send(ctx, http.MethodPost, payload, func(resp *http.Response) error {
		receipt, err := wire.ParseReceipt(resp.Header)
		if err != nil {
			return err
		}
		if receipt.AcceptedCumulative.Uint64() != amount {
			return fmt.Errorf("acknowledged %s for a voucher over %d", receipt.AcceptedCumulative.Dec(), amount)
		}
		r.Acked = amount
		r.vouchers.Add(1)
		return nil
	})
}

// Release ends the lease at any gateway, which gives it the final record.
func (r *Renter) Release(ctx context.Context) error {
	r.challenge = wire.Challenge{}
	payload := func() (wire.Payload, error) {
		return wire.Payload{Action: wire.ActionRelease, ChannelID: r.Terms.ID(), LeaseSecret: r.secret}, nil
	}
	return r.send(ctx, http.MethodPost, payload, func(resp *http.Response) error {
		var answer struct{ Record metering.SignedRecord }
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		r.Final, r.Ended = answer.Record, time.Now()
		return nil
	})
}

// Finish ends the lease and pays what its final record states.
func (r *Renter) Finish(ctx context.Context) error {
	if err := r.Release(ctx); err != nil {
		return err
	}
	if owed := r.Final.Owed.Uint64(); owed > r.Amount {
		return r.Pay(ctx, owed)
	}
	return nil
}

// Close has the channel closed at the newest voucher.
func (r *Renter) Close(ctx context.Context) error {
	r.challenge = wire.Challenge{}
	v, err := r.voucher(ctx, r.Amount)
	if err != nil {
		return err
	}
	amount := amountOf(r.Amount)
	payload := func() (wire.Payload, error) {
		return wire.Payload{Action: wire.ActionClose, ChannelID: r.Terms.ID(), CumulativeAmount: &amount, Signature: v.Signature, LeaseSecret: r.secret}, nil
	}
	err = r.send(ctx, http.MethodPost, payload, func(*http.Response) error { return nil })
	if errors.Is(err, &wire.ChannelFinalized) {
		return nil // by an earlier request, whose answer got lost
	}
	return err
}

// Twin is the same renter on another line, to gateways of its own: it may pay while
// the first does something else.
func (r *Renter) Twin(next func() string) *Renter {
	twin := *r
	twin.next, twin.challenge = next, wire.Challenge{}
	return &twin
}

// Records reads a lease's records, in their order, and makes sure that each follows
// the one before.
func Records(domain common.Hash, rows []string) ([]metering.SignedRecord, error) {
	all := make([]metering.SignedRecord, len(rows))
	var last metering.SignedRecord
	for i, row := range rows {
		rec := &all[i]
		if err := json.Unmarshal([]byte(row), rec); err != nil {
			return nil, err
		}
		if rec.Sequence != uint64(i+1) || rec.Owed.Lt(&last.Owed) || rec.Nanos < last.Nanos || (i > 0 && rec.Previous != last.Digest(domain)) {
			return nil, fmt.Errorf("lease %s: record %d does not follow record %d", rec.LeaseID, rec.Sequence, last.Sequence)
		}
		last = *rec
	}
	return all, nil
}
