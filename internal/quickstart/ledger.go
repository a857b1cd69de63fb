package quickstart

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"os"
	"text/tabwriter"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/units"
)

const decimals = 6 // of the test token

func inTokens(amount uint256.Int) string { return units.Format(amount, decimals) }

// coin writes wei in units of the native coin.
func coin(wei *big.Int) string {
	amount, overflow := uint256.FromBig(wei)
	if overflow {
		return wei.String() + " wei"
	}
	return units.Format(*amount, 18) + " ether"
}

// ledger prints what everybody used, owed, signed, got and got back, checks
// every line against the chain, and fails if one of them is off by a base unit.
func (s *story) ledger(ctx context.Context) error {
	token, err := chain.NewToken(ctx, s.chain.Backend, s.chain.Token)
	if err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(out, "\nledger\tGPU-seconds\towed\tvouchered\tsettled\trefunded\tdeposited\t")
	var total renter.Closing
	var nanos uint64
	var wrong []error
	for _, p := range s.renters {
		c, v := p.closing, p.rental.Snapshot()
		row(out, p.name, v.Nanos, c)
		nanos += v.Nanos
		add(&total, c)
		wrong = append(wrong, s.checkRenter(ctx, token, p, v))
	}
	row(out, "together", nanos, total)
	if err := out.Flush(); err != nil {
		return err
	}
	wei, err := s.provider.GasSpent(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("gas: the provider paid %s, the renters nothing (they have no native coin)\n", coin(wei))
	wrong = append(wrong, balance(ctx, token, "the provider has", s.payee.Address(), total.Settled),
		balance(ctx, token, "the escrow holds", s.chain.Escrow, uint256.Int{}))
	if err := errors.Join(wrong...); err != nil {
		return fmt.Errorf("the ledger does not add up: %w", err)
	}
	fmt.Printf("every line adds up, to the base unit, with the token balances on the chain  (%.1f s)\n", time.Since(s.begun).Seconds())
	return nil
}

func row(out *tabwriter.Writer, name string, nanos uint64, c renter.Closing) {
	fmt.Fprintf(out, "%s\t%.3f\t%s\t%s\t%s\t%s\t%s\t\n", name, time.Duration(nanos).Seconds(),
		inTokens(c.Owed), inTokens(c.Signed), inTokens(c.Settled), inTokens(c.Refunded), inTokens(c.Deposit))
}

func add(total *renter.Closing, c renter.Closing) {
	total.Owed.Add(&total.Owed, &c.Owed)
	total.Signed.Add(&total.Signed, &c.Signed)
	total.Settled.Add(&total.Settled, &c.Settled)
	total.Refunded.Add(&total.Refunded, &c.Refunded)
	total.Deposit.Add(&total.Deposit, &c.Deposit)
}

// checkRenter holds one renter's line to arithmetic and to the chain.
func (s *story) checkRenter(ctx context.Context, token *chain.Token, p *party, v renter.State) error {
	c := p.closing
	charge, err := v.Price.Charge(v.Nanos)
	if err != nil {
		return err
	}
	var sum, left uint256.Int
	sum.Add(&c.Settled, &c.Refunded)
	left.Sub(uint256.NewInt(purse), &c.Settled)
	return errors.Join(
		equal(p.name+": the charge for its GPU time is what it owed", charge, c.Owed),
		equal(p.name+": owed is vouchered", c.Owed, c.Signed),
		equal(p.name+": vouchered is settled", c.Signed, c.Settled),
		equal(p.name+": settled and refunded are the deposit", sum, c.Deposit),
		balance(ctx, token, p.name+" has", p.key.Address(), left),
	)
}

func equal(what string, a, b uint256.Int) error {
	if a != b {
		return fmt.Errorf("%s: %s and %s base units", what, a.Dec(), b.Dec())
	}
	return nil
}

func balance(ctx context.Context, token *chain.Token, what string, of common.Address, want uint256.Int) error {
	got, err := token.Balance(ctx, of)
	if err != nil {
		return err
	}
	return equal(what, got, want)
}
