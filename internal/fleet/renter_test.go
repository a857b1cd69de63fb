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

const deposit = 1_000_000 // base units: 1,000 GPU-seconds

// renter speaks the wire by hand, and believes what is acknowledged and nothing
// else.
type renter struct {
	fleet  *fleet
	http   *http.Client
	key    *channel.Key
	terms  channel.Terms
	domain common.Hash // the token's

	challenge wire.Challenge
	secret    string
	opened    time.Time
	amount    uint64 // of the newest voucher
	acked     uint64 // the newest that a gateway acknowledged
	final     metering.SignedRecord
	ended     time.Time

	vouchers, tries *atomic.Int64
}

func newRenter(t *testing.T, c *chaintest.Chain, f *fleet, client *http.Client, token *chain.Token, n int) *renter {
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
	c.Mint(t, key.Address(), deposit)
	return &renter{fleet: f, http: client, key: key, domain: domain, terms: channel.Terms{
		ChainID: 31337, Escrow: c.Escrow, Payer: key.Address(), Payee: crypto.PubkeyToAddress(c.Keys[0].PublicKey), Token: c.Token,
		Salt: common.Hash{30: byte(n >> 8), 31: byte(n)}}}
}

func (r *renter) escrow() channel.Domain {
	return channel.EscrowDomain(r.terms.ChainID, r.terms.Escrow)
}

// ask gets a fresh challenge from any gateway.
func (r *renter) ask(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.fleet.next().url+"/lease", nil)
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

// send tries one gateway after the other until one answers with success.
func (r *renter) send(ctx context.Context, method string, payload func() (wire.Payload, error), answered func(*http.Response) error) error {
	var last error
	for ctx.Err() == nil {
		if last = r.once(ctx, method, payload, answered); last == nil {
			return nil
		}
		var problem *wire.Problem
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

func (r *renter) once(ctx context.Context, method string, payload func() (wire.Payload, error), answered func(*http.Response) error) error {
	if r.challenge.ID == "" {
		if err := r.ask(ctx); err != nil {
			return err
		}
	}
	p, err := payload()
	if err != nil {
		return err
	}
	header, err := wire.Credential{Challenge: r.challenge, Source: wire.Source(r.terms.ChainID, r.terms.Payer), Payload: p}.Header()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, r.fleet.next().url+"/lease", nil)
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

// open opens the channel, without gas, and begins a lease; then it hangs up: the
// lease goes on.
func (r *renter) open(ctx context.Context) error {
	auth, err := chain.SignAuthorization(ctx, r.key, r.domain, channel.Authorization{From: r.terms.Payer, To: r.terms.Escrow,
		Value: *uint256.NewInt(deposit), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()), Nonce: channel.OpenNonce(r.terms.Payer, r.terms)})
	if err != nil {
		return err
	}
	first, err := r.voucher(ctx, 0)
	if err != nil {
		return err
	}
	payload := func() (wire.Payload, error) {
		proof, err := wire.Prove(ctx, r.key, r.terms, r.challenge.ID, "attach")
		return wire.Payload{Action: wire.ActionOpen, Type: wire.TypeAuthorization, ChannelID: r.terms.ID(), Salt: &r.terms.Salt,
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
		r.secret, r.opened, r.challenge = lease.Secret, time.Now(), wire.Challenge{}
		return nil
	})
}

func amountOf(n uint64) wire.Amount { return wire.NewAmount(*uint256.NewInt(n)) }

func ptr[T any](v T) *T { return &v }

func (r *renter) voucher(ctx context.Context, amount uint64) (channel.Voucher, error) {
	return r.escrow().Sign(ctx, r.key, r.terms.ID(), *uint256.NewInt(amount))
}

// pay sends a voucher until a gateway acknowledges it.
func (r *renter) pay(ctx context.Context, amount uint64) error {
	r.amount = amount
	v, err := r.voucher(ctx, amount)
	if err != nil {
		return err
	}
	payload := func() (wire.Payload, error) {
		r.tries.Add(1)
		return wire.Payload{Action: wire.ActionVoucher, ChannelID: r.terms.ID(), CumulativeAmount: ptr(amountOf(amount)), Signature: v.Signature}, nil
	}
	return r.send(ctx, http.MethodPost, payload, func(resp *http.Response) error {
		receipt, err := wire.ParseReceipt(resp.Header)
		if err != nil {
			return err
		}
		if receipt.AcceptedCumulative.Uint64() != amount {
			return fmt.Errorf("acknowledged %s for a voucher over %d", receipt.AcceptedCumulative.Dec(), amount)
		}
		r.acked = amount
		r.vouchers.Add(1)
		return nil
	})
}

// payUntil pays a little more again and again.
func (r *renter) payUntil(ctx context.Context, over <-chan struct{}) error {
	for {
		select {
		case <-over:
			return nil
		case <-time.After(time.Duration(100+rand.IntN(200)) * time.Millisecond):
		}
		if err := r.pay(ctx, r.amount+uint64(100+rand.IntN(500))); err != nil {
			return err
		}
	}
}

// finish ends the lease at any gateway and pays what its final record states.
func (r *renter) finish(ctx context.Context) error {
	r.challenge = wire.Challenge{}
	payload := func() (wire.Payload, error) {
		return wire.Payload{Action: wire.ActionRelease, ChannelID: r.terms.ID(), LeaseSecret: r.secret}, nil
	}
	err := r.send(ctx, http.MethodPost, payload, func(resp *http.Response) error {
		var answer struct{ Record metering.SignedRecord }
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		r.final, r.ended = answer.Record, time.Now()
		return nil
	})
	if err != nil {
		return err
	}
	if owed := r.final.Owed.Uint64(); owed > r.amount {
		return r.pay(ctx, owed)
	}
	return nil
}
