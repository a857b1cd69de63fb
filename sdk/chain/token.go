package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/sdk/internal/reach"
)

// tokenABI is the part of ERC-20, EIP-2612 and ERC-3009 that is used. Tokens are other people's contracts, so this is
// written by hand against the standards and not generated from one token.
var tokenABI = parsed(strings.NewReader(`[
	{"type":"function","name":"name","stateMutability":"view","inputs":[],"outputs":[{"type":"string"}]},
	{"type":"function","name":"symbol","stateMutability":"view","inputs":[],"outputs":[{"type":"string"}]},
	{"type":"function","name":"version","stateMutability":"view","inputs":[],"outputs":[{"type":"string"}]},
	{"type":"function","name":"decimals","stateMutability":"view","inputs":[],"outputs":[{"type":"uint8"}]},
	{"type":"function","name":"balanceOf","stateMutability":"view","inputs":[{"type":"address"}],"outputs":[{"type":"uint256"}]},
	{"type":"function","name":"allowance","stateMutability":"view","inputs":[{"type":"address"},{"type":"address"}],"outputs":[{"type":"uint256"}]},
	{"type":"function","name":"approve","inputs":[{"type":"address"},{"type":"uint256"}],"outputs":[{"type":"bool"}]},
	{"type":"function","name":"DOMAIN_SEPARATOR","stateMutability":"view","inputs":[],"outputs":[{"type":"bytes32"}]},
	{"type":"function","name":"authorizationState","stateMutability":"view","inputs":[{"type":"address"},{"type":"bytes32"}],"outputs":[{"type":"bool"}]},
	{"type":"function","name":"receiveWithAuthorization","inputs":[{"type":"address"},{"type":"address"},{"type":"uint256"},{"type":"uint256"},{"type":"uint256"},{"type":"bytes32"},{"type":"bytes"}],"outputs":[]}]`))

func parsed(text io.Reader) abi.ABI {
	parsed, err := abi.JSON(text)
	return *mustParse(&parsed, err)
}

// A Token is an ERC-20 token. The text fields are what the token says of itself, bounded, and empty if it says nothing:
// show them, never decide by them.
type Token struct {
	Address  common.Address
	Name     string
	Symbol   string
	Decimals uint8

	backend Backend
}

// maxTokenText bounds the name a stranger's token can put on a screen or into a log.
const maxTokenText = 64

// NewToken reads a token's description. An address without code is ErrNoContract. Whatever is read of the token, then and
// later, is asked of two endpoints where there are several (Agreed).
func NewToken(ctx context.Context, backend Backend, address common.Address) (*Token, error) {
	backend = Agreed(backend)
	code, err := backend.CodeAt(ctx, address, nil)
	if err != nil {
		return nil, Unread("the code of token "+address.String(), err)
	}
	if len(code) == 0 {
		return nil, fmt.Errorf("%w: token %s; check the token's address and the chain", ErrNoContract, address)
	}
	t := &Token{Address: address, backend: backend}
	decimals, err := read[uint8](ctx, t, nil, "decimals")
	if err != nil {
		return nil, fmt.Errorf("chain: %s is not a usable ERC-20 token; check the token's address and the chain: %w", address, err)
	}
	t.Decimals = decimals
	if name, err := read[string](ctx, t, nil, "name"); err == nil {
		t.Name = clip(name)
	}
	if symbol, err := read[string](ctx, t, nil, "symbol"); err == nil {
		t.Symbol = clip(symbol)
	}
	return t, nil
}

// Balance is what owner has, in base units.
func (t *Token) Balance(ctx context.Context, owner common.Address) (uint256.Int, error) {
	return t.BalanceAt(ctx, owner, nil)
}

// BalanceAt is what owner had as of a block, the newest if nil.
func (t *Token) BalanceAt(ctx context.Context, owner common.Address, block *big.Int) (uint256.Int, error) {
	return t.amount(ctx, block, "balanceOf", owner)
}

// Allowance is what spender may still pull from owner, in base units.
func (t *Token) Allowance(ctx context.Context, owner, spender common.Address) (uint256.Int, error) {
	return t.amount(ctx, nil, "allowance", owner, spender)
}

// DomainSeparator is what authorizations of this token are signed under.
func (t *Token) DomainSeparator(ctx context.Context) (common.Hash, error) {
	separator, err := read[[32]byte](ctx, t, nil, "DOMAIN_SEPARATOR")
	return separator, err
}

// ApproveCall lets spender pull up to value base units from the sender.
func (t *Token) ApproveCall(spender common.Address, value uint256.Int) Call {
	data, err := tokenABI.Pack("approve", spender, value.ToBig())
	if err != nil {
		panic("chain: packing an approval: " + err.Error()) // the types are ours
	}
	return Call{Kind: Approve, To: t.Address, Data: data}
}

// Allow lets spender pull amount base units from the sender, if it may not yet, and waits until it may. Some tokens, such
// as Tether, change an allowance only from nothing: what is left over is taken back first there. Who then spends the
// allowance must do so before the next Allow of this sender and spender.
func (t *Token) Allow(ctx context.Context, s *Sender, spender common.Address, amount uint256.Int, confirmations uint64) error {
	return t.AllowBy(ctx, s, spender, amount, func(id TxID) error {
		_, err := s.Wait(ctx, id, confirmations)
		return err
	})
}

// AllowBy is Allow by somebody's own wait for what it sends.
func (t *Token) AllowBy(ctx context.Context, s *Sender, spender common.Address, amount uint256.Int, wait func(TxID) error) error {
	have, err := t.Allowance(ctx, s.Address(), spender)
	if err != nil || !have.Lt(&amount) {
		return err
	}
	call := t.ApproveCall(spender, amount)
	if !have.IsZero() {
		var refused *Revert
		if err := simulate(ctx, t.backend, s.Address(), call); errors.As(err, &refused) {
			if err := approve(ctx, s, t.ApproveCall(spender, uint256.Int{}), wait); err != nil {
				return fmt.Errorf("taking back what is left of an allowance: %w", err)
			}
		}
	}
	return approve(ctx, s, call, wait)
}

func approve(ctx context.Context, s *Sender, call Call, wait func(TxID) error) error {
	id, err := s.SubmitAfter(ctx, call)
	if err != nil {
		return err
	}
	return wait(id)
}

// AuthorizationUsed reports whether an ERC-3009 authorization of owner was used, or taken back, as of the newest block:
// it moves nothing any more.
func (t *Token) AuthorizationUsed(ctx context.Context, owner common.Address, nonce common.Hash) (bool, error) {
	return t.AuthorizationUsedAt(ctx, owner, nonce, nil)
}

// AuthorizationUsedAt is AuthorizationUsed as of a block. That one was not used by the end of a block whose time is past
// its validBefore says that it never will be.
func (t *Token) AuthorizationUsedAt(ctx context.Context, owner common.Address, nonce common.Hash, block *big.Int) (bool, error) {
	return read[bool](ctx, t, block, "authorizationState", owner, nonce)
}

// SupportsAuthorization asks the token whether it takes ERC-3009 receiveWithAuthorization with the signature as bytes.
// It is a probe: a token that knows the call refuses the false signature with a reason; one that does not know it
// reverts without a word, or does nothing at all. An error means that the endpoint did not answer.
func (t *Token) SupportsAuthorization(ctx context.Context) (bool, error) {
	if _, err := read[bool](ctx, t, nil, "authorizationState", probe, [32]byte{}); err != nil {
		return false, endpointOnly(err)
	}
	if _, err := t.DomainSeparator(ctx); err != nil {
		return false, endpointOnly(err)
	}
	far := new(big.Int).SetUint64(1 << 40)
	data, err := tokenABI.Pack("receiveWithAuthorization", probe, probe, new(big.Int), new(big.Int), far, [32]byte{}, make([]byte, eip712.SignatureLength))
	if err != nil {
		panic("chain: packing the probe: " + err.Error())
	}
	_, err = t.backend.CallContract(ctx, ethereum.CallMsg{From: probe, To: &t.Address, Data: data}, nil)
	var reverted *Revert
	if err := decode(err); errors.As(err, &reverted) {
		return len(reverted.Data) > 0, nil
	}
	return false, endpointOnly(err)
}

// probe is an address that nobody has the key of.
var probe = common.HexToAddress("0x00000000000000000000000000000000C0FFEE01")

// endpointOnly drops what a contract answered and keeps failures to get an answer.
func endpointOnly(err error) error {
	if err != nil && isTransport(err) {
		return decode(err)
	}
	return nil
}

func (t *Token) amount(ctx context.Context, block *big.Int, method string, args ...any) (uint256.Int, error) {
	var value uint256.Int
	b, err := read[*big.Int](ctx, t, block, method, args...)
	if err == nil {
		value.SetFromBig(b)
	}
	return value, err
}

// read asks the token as of a block, the newest if nil.
func read[T any](ctx context.Context, t *Token, block *big.Int, method string, args ...any) (T, error) {
	var zero T
	data, err := tokenABI.Pack(method, args...)
	if err != nil {
		return zero, fmt.Errorf("chain: packing %s: %w", method, err)
	}
	out, err := t.backend.CallContract(ctx, ethereum.CallMsg{To: &t.Address, Data: data}, block)
	if err != nil {
		return zero, fmt.Errorf("chain: token %s: %s: %w", t.Address, method, decode(err))
	}
	values, err := tokenABI.Unpack(method, out)
	if err != nil || len(values) != 1 {
		return zero, fmt.Errorf("chain: token %s: %s answered %d bytes that do not parse", t.Address, method, len(out))
	}
	value, ok := values[0].(T)
	if !ok {
		return zero, fmt.Errorf("chain: token %s: %s answered a %T", t.Address, method, values[0])
	}
	return value, nil
}

// clip is what is shown of a contract's words.
func clip(text string) string { return reach.Printable(strings.ToValidUTF8(text, ""), maxTokenText) }
