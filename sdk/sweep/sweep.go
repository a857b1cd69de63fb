// Package sweep moves a payee's income from the account of its key, which is on line, to a cold one. One transfer is on its way at a time:
// it is on disk before it is sent, and the next is decided when no re-org can undo it, by what the account has then.
package sweep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/admit"
)

// Kind is what the outbox calls a transfer to the cold account.
const Kind chain.Kind = "sweep"

// ErrAddress is a cold address from which nothing would come back, or that is no colder.
var ErrAddress = errors.New("tokens would be lost there, or are no safer")

// Policy says whether, where and how often income is moved; the zero Policy moves nothing.
type Policy struct {
	// To is the cold address: of a key that is on none of the provider's hosts. Nothing is moved if zero.
	To common.Address
	// Reserve is what stays, in units of the token: for what the operator pays from the address. Gas is paid in coin, and refunds come
	// from the escrow: neither needs any. None if empty.
	Reserve string
	// Every is the time between looks; 1 h if zero, not negative.
	Every time.Duration
}

// Check refuses a cold address that is one of the payee's own keys' or a contract that keeps what it is sent.
func (p Policy) Check(token, escrow common.Address, own ...common.Address) error {
	if p.Every < 0 {
		return fmt.Errorf("the time between payouts (%s) must not be negative", p.Every)
	}
	for address, whose := range map[common.Address]string{token: "the token", escrow: "the escrow",
		channel.BatchSettlementEscrow: "x402's escrow", channel.BatchSettlementCollector: "x402's collector"} {
		if p.To == address && p.To != (common.Address{}) {
			return fmt.Errorf("%w: %s is %s: name another address", ErrAddress, p.To, whose)
		}
	}
	if p.To != (common.Address{}) && slices.Contains(own, p.To) {
		return fmt.Errorf("%w: %s is of a key of this provider's: name the address of a key that is elsewhere", ErrAddress, p.To)
	}
	return nil
}

// Terms are what a payee's configuration comes to.
type Terms struct {
	Token          common.Address
	Reserve, Least uint256.Int // base units: Policy.Reserve, and what is worth a transaction
	// Settlements is how many settlements of one channel on one of Contracts the key's coin must pay for besides: vouchers that cannot be
	// settled are lost, and what was settled is not.
	Settlements int
	Contracts   []chain.Contract
}

// Sweeper moves what a sender's key has of a token by the policy; nil where that moves nothing.
func (p Policy) Sweeper(sender *chain.Sender, t Terms) *Sweeper {
	if p.To == (common.Address{}) {
		return nil
	}
	return &Sweeper{Terms: t, sender: sender, to: p.To, every: cmp.Or(p.Every, time.Hour), log: cmp.Or(sender.Log, slog.Default())}
}

// Sweeper moves what a key has of a token, beyond a reserve. Of the processes that share an outbox one runs it at a time: whoever settles.
type Sweeper struct {
	Terms
	sender *chain.Sender // whose Run sends again what was not mined
	to     common.Address
	every  time.Duration
	log    *slog.Logger
}

// Run looks at once and then every so often, until the context ends.
func (s *Sweeper) Run(ctx context.Context) error {
	for {
		if err := s.pass(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("what was settled waits to be moved to the cold address", "to", s.to, "err", err, "retry", s.every)
		}
		if err := chain.Pause(ctx, s.every); err != nil {
			return err
		}
	}
}

// id is under what the outbox keeps the transfers of a token, whoever they go to: another address begins with the next.
func (s *Sweeper) id() common.Hash { return crypto.Keccak256Hash([]byte(Kind), s.Token[:]) }

// pass sends a transfer if there is something to move and nothing is under way that may have moved it.
func (s *Sweeper) pass(ctx context.Context) error {
	if err := s.sender.Sync(ctx); err != nil { // what a re-org undid is on its way again, and pending
		return err
	}
	sent, err := s.sender.Find(ctx, s.id(), Kind)
	if err != nil {
		return err
	}
	var newest uint64
	for _, tx := range sent {
		if tx.Sender != s.sender.Address() {
			continue // of a key from before, whose account is another
		}
		if tx.State != chain.Final {
			return nil // what is on the account may be on its way already, or be there again
		}
		newest = max(newest, tx.Block)
	}
	has, err := s.balance(ctx, newest)
	if err != nil {
		return err
	}
	var keep, amount uint256.Int
	if _, overflow := keep.AddOverflow(&s.Reserve, &s.Least); overflow || has.Lt(&keep) || !has.Gt(&s.Reserve) {
		return nil
	}
	if err := s.spares(ctx); err != nil {
		return err
	}
	amount.Sub(&has, &s.Reserve)
	if _, err := s.sender.Submit(ctx, s.call(amount)); err != nil {
		return err
	}
	s.log.Info("moved to the cold address", "to", s.to, "token", s.Token, "amount", amount.Dec())
	return nil
}

// spares refuses to spend coin that settlements may need, at twice the present price of gas.
func (s *Sweeper) spares(ctx context.Context) error {
	coin, err := s.sender.Coin(ctx)
	if err != nil {
		return err
	}
	price, err := s.sender.GasPrice(ctx)
	if err != nil {
		return err
	}
	need := admit.SettlementCost(price.Lsh(price, 1), s.Contracts...)
	if need.Mul(need, big.NewInt(int64(max(s.Settlements, 0)))); coin.Cmp(need) < 0 {
		return fmt.Errorf("%w: key %s has %s wei, and %d settlements, which come first, take %s: send it coin", chain.ErrFunds, s.sender.Address(), coin, s.Settlements, need)
	}
	return nil
}

// balance is what the key has at the newest block that two endpoints know, which is no older than the last transfer's: what an endpoint
// says that has not heard of it would be moved twice.
func (s *Sweeper) balance(ctx context.Context, least uint64) (has uint256.Int, err error) {
	backend := chain.Agreed(s.sender.Backend)
	head, err := backend.BlockNumber(ctx)
	if err != nil {
		return has, chain.Unread("the newest block", err)
	}
	if head < least {
		return has, fmt.Errorf("%w: it is at block %d, and the last transfer was in %d", chain.ErrBehind, head, least)
	}
	out, err := backend.CallContract(ctx, ethereum.CallMsg{To: &s.Token, Data: calldata("balanceOf(address)", s.sender.Address().Bytes())}, new(big.Int).SetUint64(head))
	if err != nil {
		return has, chain.Unread("the balance of "+s.sender.Address().String(), err)
	}
	if len(out) != common.HashLength {
		return has, fmt.Errorf("token %s says no balance of %s", s.Token, s.sender.Address())
	}
	has.SetBytes(out)
	return has, nil
}

func (s *Sweeper) call(amount uint256.Int) chain.Call {
	value := amount.Bytes32()
	return chain.Call{Kind: Kind, To: s.Token, Data: calldata("transfer(address,uint256)", s.to.Bytes(), value[:]), Channels: []common.Hash{s.id()}}
}

// calldata is a call of a method whose arguments are a word each.
func calldata(method string, arguments ...[]byte) []byte {
	data := crypto.Keccak256([]byte(method))[:4]
	for _, argument := range arguments {
		data = append(data, common.LeftPadBytes(argument, common.HashLength)...)
	}
	return data
}
