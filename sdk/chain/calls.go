package chain

import (
	"bytes"
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/rows"
)

// Kind names what a call does, in the words used everywhere.
type Kind string

// The kinds of calls. Fill is the sender's own: it pays nobody and only uses up a nonce that would hold up the rest.
const (
	Open           Kind = "open"
	TopUp          Kind = "top up"
	Settle         Kind = "settle"
	SettleBatch    Kind = "settle batch"
	Close          Kind = "close"
	RequestClose   Kind = "request close"
	CancelClose    Kind = "cancel close"
	Withdraw       Kind = "withdraw"
	WithdrawCredit Kind = "withdraw credit"
	Approve        Kind = "approve"
	Fill           Kind = "fill nonce"
)

// A Call is one contract call, ready for a Sender, and the channels it is about.
type Call struct {
	Kind     Kind
	To       common.Address
	Data     []byte
	Channels []common.Hash
	// Budget is the most that it may cost, in wei, if its first version costs no more already; nil: what MaxFee allows. It is
	// for what is sent for somebody else: its fee is at most doubled within the budget, and where that is too little it gives way
	// to what waits behind it and has no budget (ErrGaveWay).
	Budget *big.Int
	// Guard is asked in the transaction that writes the call to the outbox: where it fails nothing is written, and nothing sent.
	// It is for who may have lost the right to send the call since it decided to; nil: nobody can.
	Guard func(*sqlx.Tx) error
	// MaxGas and MaxCost are what it may take at most: a Sender refuses it before it is sent where it takes more gas, or costs more
	// wei at the present price (TooDear). No version of it offers more than MaxCost, where Budget is no more. 0 and nil: no bound.
	MaxGas  uint64
	MaxCost *big.Int
}

// A packer makes the calls of an escrow's entry points. It asks no chain.
type packer struct {
	abi     *bindings.ChannelEscrow
	address common.Address
}

// OpenCall opens a channel with the sender's own money: the sender must be the payer and have approved the deposit.
func (p *packer) OpenCall(t channel.Terms, deposit uint256.Int) Call {
	return p.about(Open, t, p.abi.PackOpen(t.Payee, t.Token, deposit.ToBig(), t.Salt, t.AuthorizedSigner))
}

// OpenAuthorizedCall opens a channel with the payer's ERC-3009 authorization; anyone may send it.
func (p *packer) OpenAuthorizedCall(t channel.Terms, a Authorization) Call {
	return p.about(Open, t, p.abi.PackOpenWithAuthorization(t.Payee, t.Token, a.Value.ToBig(), t.Salt, t.AuthorizedSigner,
		a.From, number(a.ValidAfter), number(a.ValidBefore), a.Nonce, a.Signature))
}

// TopUpCall adds to a channel's deposit from the sender's allowance.
func (p *packer) TopUpCall(t channel.Terms, additional uint256.Int) Call {
	return p.about(TopUp, t, p.abi.PackTopUp(terms(t), additional.ToBig()))
}

// TopUpAuthorizedCall adds to a channel's deposit with an ERC-3009 authorization; salt is the one in its nonce.
func (p *packer) TopUpAuthorizedCall(t channel.Terms, salt common.Hash, a Authorization) Call {
	return p.about(TopUp, t, p.abi.PackTopUpWithAuthorization(terms(t), a.Value.ToBig(), a.From, salt,
		number(a.ValidAfter), number(a.ValidBefore), a.Nonce, a.Signature))
}

// SettleCall pays the payee up to a voucher; anyone may send it.
func (p *packer) SettleCall(t channel.Terms, cumulative uint256.Int, signature []byte) Call {
	return p.about(Settle, t, p.abi.PackSettle(terms(t), cumulative.ToBig(), signature))
}

// SettleBatchCall settles the newest accepted voucher of many channels of one payee and one token.
func (p *packer) SettleBatchCall(payee, token common.Address, states []channel.State) (Call, error) {
	rows, err := rows.Pack(payee, token, states)
	if err != nil {
		return Call{}, err
	}
	call := Call{Kind: SettleBatch, To: p.address, Data: p.abi.PackSettleBatch(payee, token, rows)}
	for _, s := range states {
		call.Channels = append(call.Channels, s.ID)
	}
	return call, nil
}

// CloseCall settles the last voucher and refunds the rest; the sender must be the payee. What is settled already needs
// no signature.
func (p *packer) CloseCall(t channel.Terms, cumulative uint256.Int, signature []byte) Call {
	return p.about(Close, t, p.abi.PackClose(terms(t), cumulative.ToBig(), signature))
}

// CloseAuthorizedCall is CloseCall by anyone who holds the payee's signature (channel.Domain.CloseDigest), until
// deadline, in unix seconds.
func (p *packer) CloseAuthorizedCall(t channel.Terms, cumulative uint256.Int, signature []byte, deadline uint64, payee []byte) Call {
	return p.about(Close, t, p.abi.PackCloseWithAuthorization(terms(t), cumulative.ToBig(), signature, number(deadline), payee))
}

// CloseDeadline is until when anyone who has a close may send it, in unix seconds. It is false of a close that only the
// payee can send.
func CloseDeadline(call Call) (uint64, bool) {
	method := escrowErrors.Methods["closeWithAuthorization"]
	if len(call.Data) < 4 || !bytes.Equal(call.Data[:4], method.ID) {
		return 0, false
	}
	values, err := method.Inputs.Unpack(call.Data[4:])
	if err != nil || len(values) != len(method.Inputs) {
		return 0, false
	}
	deadline, ok := values[3].(*big.Int)
	if !ok || !deadline.IsUint64() {
		return 0, false
	}
	return deadline.Uint64(), true
}

// RequestCloseCall starts the grace period; the sender must be the payer.
func (p *packer) RequestCloseCall(t channel.Terms) Call {
	return p.about(RequestClose, t, p.abi.PackRequestClose(terms(t)))
}

// RequestCloseAuthorizedCall is RequestCloseCall by anyone who holds the payer's signature
// (channel.Domain.RequestCloseDigest), until deadline, in unix seconds.
func (p *packer) RequestCloseAuthorizedCall(t channel.Terms, deadline uint64, payer []byte) Call {
	return p.about(RequestClose, t, p.abi.PackRequestCloseWithAuthorization(terms(t), number(deadline), payer))
}

// CancelCloseAuthorizedCall takes a pending close request back by the payer's signature (channel.Domain.CancelCloseDigest),
// until deadline, in unix seconds; anyone may send it. Its nonce is CloseRequests.
func (p *packer) CancelCloseAuthorizedCall(t channel.Terms, deadline uint64, payer []byte) Call {
	return p.about(CancelClose, t, p.abi.PackCancelCloseWithAuthorization(terms(t), number(deadline), payer))
}

// WithdrawCall pays the payer back once the grace period is over; anyone may send it.
func (p *packer) WithdrawCall(t channel.Terms) Call {
	return p.about(Withdraw, t, p.abi.PackWithdraw(terms(t)))
}

// Simulate runs a call as from would send it, without sending it. What the contract refuses is a *Revert.
func (e *Escrow) Simulate(ctx context.Context, from common.Address, call Call) error {
	return simulate(ctx, e.backend, from, call)
}

func simulate(ctx context.Context, backend Backend, from common.Address, call Call) error {
	_, err := backend.CallContract(ctx, ethereum.CallMsg{From: from, To: &call.To, Data: call.Data}, nil)
	if err != nil {
		return fmt.Errorf("chain: %s: %w", call, decode(err))
	}
	return nil
}

// String names the call and its channels, for errors and logs.
func (c Call) String() string {
	switch len(c.Channels) {
	case 0:
		return string(c.Kind)
	case 1:
		return fmt.Sprintf("%s of channel %s", c.Kind, c.Channels[0])
	default:
		return fmt.Sprintf("%s of %d channels", c.Kind, len(c.Channels))
	}
}

func (p *packer) about(kind Kind, t channel.Terms, data []byte) Call {
	return Call{Kind: kind, To: p.address, Data: data, Channels: []common.Hash{t.ID()}}
}

func terms(t channel.Terms) bindings.Terms {
	return bindings.Terms{
		Payer:            t.Payer,
		Payee:            t.Payee,
		Token:            t.Token,
		Salt:             t.Salt,
		AuthorizedSigner: t.AuthorizedSigner,
	}
}

func number(n uint64) *big.Int { return new(big.Int).SetUint64(n) }
