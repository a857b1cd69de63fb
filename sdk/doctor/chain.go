package doctor

import (
	"cmp"
	"context"
	"math/big"
	"strings"
	"unicode"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
	"github.com/gpupay/gpupay/sdk/sweep"
	"github.com/gpupay/gpupay/sdk/units"
)

// endpoints looks at each endpoint by itself: whether it answers, for which chain, and how far it is behind the others.
func (c *Config) endpoints(ctx context.Context) (all []Finding) {
	type endpoint struct {
		name     string
		id, head uint64
	}
	var up []endpoint
	urls := strings.FieldsFunc(c.RPC, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	if len(urls) == 0 {
		return mend("endpoint", "no URL of a JSON-RPC endpoint is given: name one with --rpc")
	}
	var newest uint64
	for _, url := range urls {
		e := endpoint{name: redact.URL(url)}
		backend, err := chain.Connect(ctx, url, nil)
		if err == nil {
			e.head, err = backend.BlockNumber(ctx)
		}
		var id *big.Int
		if err == nil {
			id, err = backend.ChainID(ctx)
		}
		if err != nil {
			all = append(all, mend("endpoint", "%s: %s", e.name, err)...)
			continue
		}
		e.id = id.Uint64()
		newest = max(newest, e.head)
		up = append(up, e)
	}
	for _, e := range up {
		want := cmp.Or(c.ChainID, up[0].id)
		switch behind := newest - e.head; {
		case e.id != want:
			all = append(all, mend("endpoint", "%s serves chain %d, not %d: take it out of --rpc, or name another --chain-id", e.name, e.id, want)...)
		case behind >= chain.FarBehind:
			all = append(all, mend("endpoint", "%s is at block %d, %d behind the others: take it out of --rpc until it has caught up", e.name, e.head, behind)...)
		default:
			all = append(all, ok("endpoint", "%s: chain %d, block %d, %d behind", e.name, e.id, e.head, behind)...)
		}
	}
	return all
}

// escrow looks at the contract's code, its grace period, and this host's clock by the chain's.
func (c *Config) escrow(ctx context.Context, backend chain.Backend) []Finding {
	if c.Escrow == (common.Address{}) {
		return mend("escrow", "no address is given: --escrow, or put one onto the chain with `gpupay deploy`")
	}
	e, err := chain.NewEscrow(ctx, backend, c.Escrow)
	if err != nil {
		return mend("escrow", "%s", err)
	}
	found := ok("clock", "within %s of the chain's", c.ClockTolerance)
	if err := e.CheckClock(ctx, c.ClockTolerance); err != nil {
		found = mend("clock", "%s", err)
	}
	if err := e.VerifyCode(ctx); err != nil {
		return append(found, mend("escrow", "%s: name another --escrow, or deploy one with `gpupay deploy`", err)...)
	}
	if err := e.CheckGrace(cmp.Or(c.MinGrace, chain.GraceFloor(e.ChainID()))); err != nil {
		return append(found, mend("escrow", "%s", err)...)
	}
	return append(found, ok("escrow", "%s has our code, byte for byte, and %s of grace", c.Escrow, e.Grace())...)
}

// token looks at the token, and at what deposits that need no coin of the renter's take: ERC-3009.
func (c *Config) token(ctx context.Context, backend chain.Backend) []Finding {
	if c.Token == (common.Address{}) {
		return mend("token", "no address is given: --token names what you are paid in")
	}
	t, err := chain.NewToken(ctx, backend, c.Token)
	if err != nil {
		return mend("token", "%s", err)
	}
	c.decimals, c.decimal = t.Decimals, true
	for class, hourly := range c.Prices {
		if _, err := units.PerHour(hourly, t.Decimals); err != nil {
			return mend("price", "%s%s: %s: say it in units of the token, which has %d decimals", hourly, of(class), err, t.Decimals)
		}
	}
	takes, err := t.SupportsAuthorization(ctx)
	if err == nil && !takes {
		return mend("token", "%s (%s) takes no ERC-3009 authorizations: renters need coin of their own for each deposit; be paid in one that does, as USDC, or live with it", t.Symbol, c.Token)
	}
	name, version := "", ""
	if err == nil && c.X402 {
		name, version, err = t.Domain(ctx)
	}
	if err != nil {
		return mend("token", "%s", err)
	}
	domain := "takes ERC-3009 authorizations"
	if c.X402 {
		domain += " under the domain " + name + " " + version
	}
	return ok("token", "%s (%s), %d decimals, %s", t.Symbol, c.Token, t.Decimals, domain)
}

// of names a class, where there are several.
func of(class string) string {
	if class == "" {
		return ""
	}
	return " for class " + class
}

// coin looks whether the key can pay for settlements: what is vouchered and cannot be settled when its payer leaves, is lost.
func (c *Config) coin(ctx context.Context, backend chain.Backend) []Finding {
	if c.Payee == (common.Address{}) || c.Escrow == (common.Address{}) {
		return nil
	}
	has, err := backend.BalanceAt(ctx, c.Payee, nil)
	if err != nil {
		return mend("coin", "the balance of %s: %s", c.Payee, err)
	}
	price, err := (&chain.Sender{Backend: backend}).GasPrice(ctx)
	if err != nil {
		return mend("coin", "the price of gas: %s", err)
	}
	contracts := []chain.Contract{&chain.Escrow{}}
	if c.X402 {
		contracts = append(contracts, &chain.BatchSettlement{})
	}
	need := admit.SettlementCost(new(big.Int).Lsh(price, 1), contracts...)
	need.Mul(need, big.NewInt(int64(c.Settlements)))
	if has.Cmp(need) < 0 {
		return mend("coin", "key %s has %s of the chain's coin, and %d settlements take %s at twice the present price of gas: send it the rest", c.Payee, ether(has), c.Settlements, ether(need))
	}
	return ok("coin", "key %s has %s of the chain's coin, %d settlements take %s", c.Payee, ether(has), c.Settlements, ether(need))
}

func ether(wei *big.Int) string {
	amount, _ := uint256.FromBig(wei)
	return units.Format(*amount, 18)
}

// payout looks at the cold address: what is sent to some addresses is gone.
func (c *Config) payout(ctx context.Context, backend chain.Backend) []Finding {
	if c.Payout == (common.Address{}) {
		return nil
	}
	if err := (sweep.Policy{To: c.Payout}).Check(c.Token, c.Escrow, c.Payee); err != nil {
		return mend("payout", "%s", err)
	}
	code, err := backend.CodeAt(ctx, c.Payout, nil)
	if err != nil {
		return mend("payout", "the code of %s: %s", c.Payout, err)
	}
	kind := "an ordinary account: hold its key elsewhere than here"
	if len(code) > 0 {
		kind = "a contract: make sure that its owners can move tokens"
	}
	return ok("payout", "%s is %s", c.Payout, kind)
}
