package bindings_test

import (
	"crypto/ecdsa"
	"encoding/binary"
	"maps"
	"math/big"
	"slices"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/testtoken"
	sdkchain "github.com/gpupay/gpupay/sdk/chain"
)

// The most that an operation may cost, as its receipt says: 21,000, the calldata and the token's own work included.
var limits = map[string]uint64{
	"open + deposit":           71_000,
	"settle 1":                 60_000,
	"batch of 100, a channel":  11_950,
	"batch, marginal":          11_500,
	"close by the payee":       65_000,
	"top up":                   55_000,
	"open, no allowance write": 68_000,
	"top up, the same":         52_000,
	"close request":            32_000,
	"withdraw":                 48_000,
	"batch of 100, long, each": 12_800,
}

const (
	grace   = 600
	deposit = 1_000_000_000 // 1,000 dollars in base units
)

// A meter opens channels of distinct payers with one payee and measures what is done to them.
type meter struct {
	*chain
	escrow, token common.Address
	payee, sender *ecdsa.PrivateKey
	opened        uint32
}

// A payment is a channel, the keys that can act for it, and what was vouchered so far.
type payment struct {
	payer, signer *ecdsa.PrivateKey
	terms         bindings.Terms
	cumulative    int64
}

// TestGas measures the steady state on a real chain: plain ERC-20, distinct payers, every channel claimed once before,
// every balance involved above zero before and after. What settlement policies reckon with is what receipts say.
func TestGas(t *testing.T) {
	m := newMeter(t)
	measured := map[string]uint64{}

	m.prepare(1) // stays open, so that the escrow's own balance never leaves or returns to zero
	p := m.prepare(1)[0]
	measured["top up"] = m.topUp(p)
	measured["settle 1"] = m.settle(p)
	measured["close by the payee"] = m.close(p)
	q := m.prepare(1)[0]
	measured["close request"] = m.do(q.payer, escrowABI.PackRequestClose(q.terms))
	m.advance(grace)
	measured["withdraw"] = m.do(m.sender, escrowABI.PackWithdraw(q.terms))
	measured["open + deposit"] = m.open(m.payer(), shortSalt(9_999), nil)

	// Many tokens skip the allowance's storage write when it is unlimited; that is 2,900 gas of every deposit.
	r := m.prepare(1)[0]
	m.approve(r.payer, math.MaxBig256)
	measured["top up, the same"] = m.topUp(r)
	measured["open, no allowance write"] = m.open(r.payer, shortSalt(9_998), nil)

	channels := m.prepare(100)
	one, ten, hundred := m.batch(channels[:1]), m.batch(channels[:10]), m.batch(channels)
	measured["batch of 100, a channel"] = hundred / 100
	measured["batch, marginal"] = (hundred - ten) / 90
	t.Logf("a batch of N costs %d + N * %d", ten-10*measured["batch, marginal"], measured["batch, marginal"])
	t.Logf("a batch of 1 costs %d, of 10 %d, of 100 %d", one, ten, hundred)
	measured["batch of 100, long, each"] = m.batch(m.prepareLong(100)) / 100
	fixed, row := (*sdkchain.Escrow)(nil).SettlementGas()
	for n, gas := range map[uint64]uint64{10: ten, 100: hundred} {
		if said := fixed + n*row; gas*100 > said*102 || gas*100 < said*98 {
			t.Errorf("a batch of %d costs %d gas, and policies reckon with %d: more than 2 %% off", n, gas, said)
		}
	}

	for _, name := range slices.Sorted(maps.Keys(limits)) {
		limit := limits[name]
		t.Logf("%-26s %7d (limit %d)", name, measured[name], limit)
		if gas := measured[name]; gas == 0 || gas > limit {
			t.Errorf("%s costs %d gas, more than the %d we promise", name, gas, limit)
		}
	}
}

func newMeter(t *testing.T) *meter {
	c := startChain(t)
	m := &meter{chain: c, payee: c.account(), sender: c.account()}
	constructor := escrowABI.PackConstructor(big.NewInt(grace))
	m.escrow = c.deploy(m.sender, append(common.FromHex(bindings.ChannelEscrowMetaData.Bin), constructor...))
	m.token = c.deploy(m.sender, common.FromHex(testtoken.TestTokenMetaData.Bin))
	m.send(m.sender, &m.token, tokenABI.PackMint(address(m.payee), big.NewInt(1)))
	return m
}

// payer makes an account with money and with an allowance that the measured deposits do not use up.
func (m *meter) payer() *ecdsa.PrivateKey {
	key := m.account()
	m.send(m.sender, &m.token, tokenABI.PackMint(address(key), big.NewInt(10*deposit)))
	m.approve(key, big.NewInt(9*deposit))
	return key
}

func (m *meter) approve(key *ecdsa.PrivateKey, amount *big.Int) {
	m.t.Helper()
	m.send(key, &m.token, tokenABI.PackApprove(m.escrow, amount))
}

// prepare opens channels with 4-byte salts and claims each once.
func (m *meter) prepare(n int) []*payment {
	ps := make([]*payment, n)
	for i := range ps {
		m.opened++
		payer := m.payer()
		ps[i] = m.channel(payer, payer, shortSalt(m.opened), common.Address{})
	}
	m.batch(ps)
	return ps
}

// prepareLong opens channels with the longest rows there are: 32-byte salts and authorized signers.
func (m *meter) prepareLong(n int) []*payment {
	ps := make([]*payment, n)
	for i := range ps {
		signer := m.account()
		salt := crypto.Keccak256Hash(address(signer).Bytes())
		salt[0] |= 1 // group reads how long the salts are from the first
		ps[i] = m.channel(m.payer(), signer, salt, address(signer))
	}
	m.batch(ps)
	return ps
}

func (m *meter) channel(payer, signer *ecdsa.PrivateKey, salt common.Hash, authorized common.Address) *payment {
	m.open(payer, salt, &authorized)
	return &payment{payer: payer, signer: signer, terms: bindings.Terms{
		Payer: address(payer), Payee: address(m.payee), Token: m.token, Salt: salt, AuthorizedSigner: authorized,
	}}
}

func (m *meter) open(payer *ecdsa.PrivateKey, salt common.Hash, authorized *common.Address) uint64 {
	if authorized == nil {
		authorized = new(common.Address)
	}
	return m.do(payer, escrowABI.PackOpen(address(m.payee), m.token, big.NewInt(deposit), salt, *authorized))
}

func (m *meter) topUp(p *payment) uint64 {
	return m.do(p.payer, escrowABI.PackTopUp(p.terms, big.NewInt(deposit)))
}

func (m *meter) settle(p *payment) uint64 {
	amount, signature := m.voucher(p)
	return m.do(m.sender, escrowABI.PackSettle(p.terms, amount, signature))
}

func (m *meter) close(p *payment) uint64 {
	amount, signature := m.voucher(p)
	return m.do(m.payee, escrowABI.PackClose(p.terms, amount, signature))
}

// batch settles a new voucher of every channel and returns what the transaction cost. Every row must be paid.
func (m *meter) batch(ps []*payment) uint64 {
	m.t.Helper()
	receipt := m.send(m.sender, &m.escrow, escrowABI.PackSettleBatch(address(m.payee), m.token, m.group(ps)))
	if got, want := len(receipt.Logs), len(ps)+1; got != want {
		m.t.Fatalf("batch of %d has %d logs, want %d: one a channel and the transfer", len(ps), got, want)
	}
	for _, log := range receipt.Logs[:len(ps)] {
		if _, err := escrowABI.UnpackSettledEvent(log); err != nil {
			m.t.Fatalf("a row was not settled: %v", err)
		}
	}
	return receipt.GasUsed
}

// group packs the next voucher of each channel as settleBatch reads it: channels whose salts are equally long, and whose
// terms all name a signer or all do not.
func (m *meter) group(ps []*payment) []byte {
	const amountLength = 3 // of up to 16.7 dollars
	salt := common.TrimLeftZeroes(ps[0].terms.Salt[:])
	named := ps[0].terms.AuthorizedSigner != (common.Address{})
	header := byte(len(salt))
	if named {
		header |= 0x80
	}
	rows := binary.BigEndian.AppendUint16([]byte{header, amountLength}, uint16(len(ps)))
	for _, p := range ps {
		amount, signature := m.voucher(p)
		signature[32] |= (signature[64] - 27) << 7
		rows = append(append(rows, signature[:64]...), p.terms.Payer[:]...)
		rows = append(rows, common.LeftPadBytes(amount.Bytes(), amountLength)...)
		rows = append(rows, p.terms.Salt[32-len(salt):]...)
		if named {
			rows = append(rows, common.LeftPadBytes(p.terms.AuthorizedSigner[:], 32)...)
		}
	}
	return rows
}

// voucher signs the next 1.23 dollars, over the digest that the contract itself computes.
func (m *meter) voucher(p *payment) (*big.Int, []byte) {
	m.t.Helper()
	p.cumulative += 1_234_567
	amount := big.NewInt(p.cumulative)
	id, err := escrowABI.UnpackChannelId(m.view(escrowABI.PackChannelId(p.terms)))
	if err != nil {
		m.t.Fatal(err)
	}
	digest, err := escrowABI.UnpackVoucherDigest(m.view(escrowABI.PackVoucherDigest(id, amount)))
	if err != nil {
		m.t.Fatal(err)
	}
	signature, err := crypto.Sign(digest[:], p.signer)
	if err != nil {
		m.t.Fatal(err)
	}
	signature[64] += 27
	return amount, signature
}

func (m *meter) view(data []byte) []byte {
	m.t.Helper()
	out, err := m.CallContract(m.t.Context(), ethereum.CallMsg{To: &m.escrow, Data: data}, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

func (m *meter) do(key *ecdsa.PrivateKey, data []byte) uint64 {
	m.t.Helper()
	return m.send(key, &m.escrow, data).GasUsed
}

func (m *meter) advance(seconds int) {
	m.t.Helper()
	if err := m.rpc.CallContext(m.t.Context(), nil, "evm_increaseTime", seconds); err != nil {
		m.t.Fatal(err)
	}
}

func shortSalt(n uint32) (salt common.Hash) {
	binary.BigEndian.PutUint32(salt[28:], n|1<<31)
	return salt
}
