package accept

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"errors"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/core/vm"
	"github.com/ethereum/go-ethereum/core/vm/runtime"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// paid is the contract's verdict on a voucher that it would pay; others are the names of its errors.
const paid = "paid"

// ledger is a chain with the escrow and the token on it.
type ledger interface {
	id() uint64
	contracts() (escrow, token common.Address)
	// transact sends a call that must succeed.
	transact(from *ecdsa.PrivateKey, to common.Address, data []byte)
	// settle says what the contract would do with a voucher, and changes nothing.
	settle(t channel.Terms, v channel.Voucher) string
	// view is the channel as the contract has it.
	view(id common.Hash) channel.ChainView
}

// keys are the parties: two payers, a delegate who signs for one, a payee, and a stranger.
type keys struct{ payer, delegate, payee, stranger *ecdsa.PrivateKey }

func newKeys() keys {
	key := func(name string) *ecdsa.PrivateKey {
		k, err := crypto.ToECDSA(crypto.Keccak256([]byte(name)))
		if err != nil {
			panic(err)
		}
		return k
	}
	return keys{key("payer"), key("delegate"), key("payee"), key("stranger")}
}

func address(k *ecdsa.PrivateKey) common.Address { return crypto.PubkeyToAddress(k.PublicKey) }

// subject is one channel, as the chain has it and as the payee was told.
type subject struct {
	name  string
	terms channel.Terms
	view  channel.ChainView // on the chain
	told  channel.ChainView // to the payee; nothing if known is false
	known bool
}

var escrowABI = bindings.NewChannelEscrow()

func abiTerms(t channel.Terms) bindings.Terms {
	return bindings.Terms{Payer: t.Payer, Payee: t.Payee, Token: t.Token, Salt: t.Salt, AuthorizedSigner: t.AuthorizedSigner}
}

// builder opens the channels of a test.
type builder struct {
	ledger
	keys
	subjects []*subject
}

var maxAmount = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 96), big.NewInt(1))

// subjects opens one channel of each kind.
func subjects(l ledger, k keys) []*subject {
	b := &builder{ledger: l, keys: k}
	escrow, token := l.contracts()
	erc20 := testtoken.NewTestToken()
	l.transact(k.payer, token, erc20.PackMint(address(k.payer), new(big.Int).Lsh(maxAmount, 1)))
	l.transact(k.payer, token, erc20.PackApprove(escrow, new(big.Int).Lsh(maxAmount, 2)))

	b.open("plain", 1000, common.Address{})
	delegated := b.open("delegated, partly settled", 5000, address(k.delegate))
	voucher := b.voucher(delegated.terms, k.delegate, 700)
	l.transact(k.stranger, escrow, escrowABI.PackSettle(abiTerms(delegated.terms), voucher.Cumulative.ToBig(), voucher.Signature))
	b.openBig("huge", maxAmount, common.Address{})
	topped := b.open("topped up, not confirmed", 1000, common.Address{})
	l.transact(k.payer, escrow, escrowABI.PackTopUp(abiTerms(topped.terms), big.NewInt(500)))
	for _, name := range []string{"closing", "closing, not seen yet"} {
		closing := b.open(name, 1000, common.Address{})
		l.transact(k.payer, escrow, escrowABI.PackRequestClose(abiTerms(closing.terms)))
	}
	closed := b.open("closed", 1000, common.Address{})
	l.transact(k.payee, escrow, escrowABI.PackClose(abiTerms(closed.terms), new(big.Int), nil))
	b.subjects = append(b.subjects, &subject{name: "never opened", terms: b.terms(common.Address{})})
	b.look()
	return b.subjects
}

func (b *builder) terms(signer common.Address) channel.Terms {
	escrow, token := b.contracts()
	return channel.Terms{ChainID: b.id(), Escrow: escrow, Payer: address(b.payer), Payee: address(b.payee), Token: token,
		Salt: common.Hash{31: byte(len(b.subjects) + 1)}, AuthorizedSigner: signer}
}

func (b *builder) open(name string, deposit int64, signer common.Address) *subject {
	return b.openBig(name, big.NewInt(deposit), signer)
}

func (b *builder) openBig(name string, deposit *big.Int, signer common.Address) *subject {
	s := &subject{name: name, terms: b.terms(signer), known: true}
	b.transact(b.payer, s.terms.Escrow, escrowABI.PackOpen(s.terms.Payee, s.terms.Token, deposit, s.terms.Salt, signer))
	b.subjects = append(b.subjects, s)
	return s
}

func (b *builder) voucher(t channel.Terms, key *ecdsa.PrivateKey, amount uint64) channel.Voucher {
	v, err := channel.EscrowDomain(t.ChainID, t.Escrow).Sign(context.Background(), channel.NewKey(key), t.ID(), *uint256.NewInt(amount))
	if err != nil {
		panic(err)
	}
	return v
}

// look reads what the contract says now, and what of it the payee knows.
func (b *builder) look() {
	for _, s := range b.subjects {
		s.view = b.view(s.terms.ID())
		s.told = s.view
		switch s.name {
		case "topped up, not confirmed":
			s.told.Deposit = *uint256.NewInt(1000)
		case "closing, not seen yet":
			s.told.CloseRequestedAt = 0
		}
	}
}

// anvil is a ledger on a node of its own.
type anvil struct {
	*testing.T
	*chaintest.Chain
	escrow *chain.Escrow
}

func newAnvil(t *testing.T, k keys) *anvil {
	a := &anvil{T: t, Chain: chaintest.Anvil(t)}
	var err error
	if a.escrow, err = chain.NewEscrow(t.Context(), a.Backend, a.Chain.Escrow); err != nil {
		t.Fatal(err)
	}
	for _, key := range []*ecdsa.PrivateKey{k.payer, k.payee, k.stranger} {
		a.RPC(t, nil, "anvil_setBalance", address(key), "0xde0b6b3a7640000")
	}
	return a
}

func (a *anvil) id() uint64 { return a.escrow.ChainID() }

func (a *anvil) contracts() (escrow, token common.Address) { return a.Chain.Escrow, a.Chain.Token }

func (a *anvil) transact(from *ecdsa.PrivateKey, to common.Address, data []byte) {
	a.Transact(a.T, from, to, data)
}

func (a *anvil) settle(t channel.Terms, v channel.Voucher) string {
	err := a.escrow.Simulate(a.Context(), common.Address{1}, a.escrow.SettleCall(t, v.Cumulative, v.Signature))
	var revert *chain.Revert
	switch {
	case err == nil:
		return paid
	case errors.As(err, &revert):
		return or(revert.Name, "reverted")
	}
	a.Fatal(err)
	return ""
}

func (a *anvil) view(id common.Hash) channel.ChainView {
	views, err := a.escrow.Views(a.Context(), []common.Hash{id})
	if err != nil {
		a.Fatal(err)
	}
	return views[0]
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// machine is a ledger in an EVM in this process: the same code without a node, thousands of calls a second.
type machine struct {
	config        *runtime.Config
	escrow, token common.Address
	errors        map[string]abi.Error
}

func newMachine() *machine {
	db, err := state.New(types.EmptyRootHash, state.NewDatabaseForTesting())
	must(err)
	m := &machine{config: &runtime.Config{ChainConfig: params.MergedTestChainConfig, State: db, Time: 1_800_000_000, GasLimit: 30_000_000,
		BlockNumber: big.NewInt(1000)}}
	create := func(code string, args []byte) common.Address {
		_, address, _, err := runtime.Create(append(common.FromHex(code), args...), m.config)
		must(err)
		return address
	}
	m.config.Origin = common.Address{0xde}
	m.escrow = create(bindings.ChannelEscrowMetaData.Bin, escrowABI.PackConstructor(big.NewInt(600)))
	m.token = create(testtoken.TestTokenMetaData.Bin, nil)
	parsed, err := bindings.ChannelEscrowMetaData.ParseABI()
	must(err)
	m.errors = parsed.Errors
	return m
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func (m *machine) id() uint64 { return m.config.ChainConfig.ChainID.Uint64() }

func (m *machine) contracts() (escrow, token common.Address) { return m.escrow, m.token }

func (m *machine) call(from common.Address, to common.Address, data []byte) ([]byte, error) {
	m.config.Origin = from
	out, _, err := runtime.Call(to, data, m.config)
	return out, err
}

func (m *machine) transact(from *ecdsa.PrivateKey, to common.Address, data []byte) {
	_, err := m.call(address(from), to, data)
	must(err)
	c := m.config
	c.State.Finalise(c.ChainConfig.Rules(c.BlockNumber, true, c.Time))
}

func (m *machine) settle(t channel.Terms, v channel.Voucher) string {
	before := m.config.State.Snapshot()
	defer m.config.State.RevertToSnapshot(before)
	data := escrowABI.PackSettle(abiTerms(t), v.Cumulative.ToBig(), v.Signature)
	out, err := m.call(common.Address{1}, m.escrow, data)
	switch {
	case err == nil:
		return paid
	case !errors.Is(err, vm.ErrExecutionReverted):
		return err.Error()
	}
	for name, e := range m.errors {
		if len(out) >= 4 && bytes.Equal(out[:4], e.ID[:4]) {
			return name
		}
	}
	return "reverted"
}

func (m *machine) view(id common.Hash) channel.ChainView {
	out, err := m.call(common.Address{1}, m.escrow, escrowABI.PackChannel(id))
	must(err)
	c, err := escrowABI.UnpackChannel(out)
	must(err)
	v := channel.ChainView{CloseRequestedAt: c.CloseRequestedAt.Uint64(), Finalized: c.Finalized}
	v.Deposit.SetFromBig(c.Deposit)
	v.Settled.SetFromBig(c.Settled)
	return v
}
