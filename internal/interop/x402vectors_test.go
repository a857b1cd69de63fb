package interop

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/sdk/chain"
)

const tokenName = "Test USD"

// x402Case is a channel made up at random, and what is to be done with it.
type x402Case struct {
	terms                    channel.Terms
	payer, signer, operator  *channel.Key
	keys                     [3][]byte
	deposit, ceiling, claims uint256.Int
	refund, refundNonce      uint256.Int
}

// x402Vector is what the official package makes of a case.
type x402Vector struct {
	ID               common.Hash   `json:"id"`
	VoucherID        common.Hash   `json:"voucherId"`
	VoucherSignature hexutil.Bytes `json:"voucherSignature"`
	Authorization    struct {
		ValidAfter  string        `json:"validAfter"`
		ValidBefore string        `json:"validBefore"`
		Salt        common.Hash   `json:"salt"`
		Signature   hexutil.Bytes `json:"signature"`
	} `json:"authorization"`
	Deposit          hexutil.Bytes `json:"deposit"`
	Claim            hexutil.Bytes `json:"claim"`
	Settle           hexutil.Bytes `json:"settle"`
	RefundSigned     hexutil.Bytes `json:"refundSigned"`
	Refund           hexutil.Bytes `json:"refund"`
	ClaimAndRefund   hexutil.Bytes `json:"claimAndRefund"`
	InitiateWithdraw hexutil.Bytes `json:"initiateWithdraw"`
	FinalizeWithdraw hexutil.Bytes `json:"finalizeWithdraw"`
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		b = binary.BigEndian.AppendUint64(b, r.Uint64())
	}
	return b[:n]
}

// between is a random amount of so many bits at most, from 1 on.
func between(r *rand.Rand, bits int) uint256.Int {
	var v uint256.Int
	v.SetBytes(randomBytes(r, (r.IntN(bits)+8)/8))
	if v.IsZero() {
		v.SetOne()
	}
	return v
}

func newX402Case(t *testing.T, r *rand.Rand, i int) x402Case {
	t.Helper()
	c := x402Case{terms: channel.Terms{Scheme: channel.BatchSettlement, ChainID: 31337, Escrow: channel.BatchSettlementEscrow}}
	if i%4 == 3 {
		c.terms.ChainID = r.Uint64N(1 << 53) // as far as JSON's numbers go
	}
	keys := [3]*channel.Key{}
	for k := range keys {
		c.keys[k] = randomBytes(r, 32)
		key, err := crypto.ToECDSA(c.keys[k])
		if err != nil {
			t.Fatal(err)
		}
		keys[k] = channel.NewKey(key)
	}
	c.payer, c.signer, c.operator = keys[0], keys[1], keys[2]
	c.terms.Payer, c.terms.AuthorizedSigner, c.terms.PayeeAuthorizer = c.payer.Address(), c.signer.Address(), c.operator.Address()
	if i%3 == 2 { // the payer signs its vouchers itself
		c.signer, c.keys[1], c.terms.AuthorizedSigner = c.payer, c.keys[0], common.Address{}
	}
	c.terms.Payee, c.terms.Token = common.Address(randomBytes(r, 20)), common.Address(randomBytes(r, 20))
	c.terms.WithdrawDelay = 900 + r.Uint64N(2_592_000-900+1)
	c.terms.Salt = common.Hash(randomBytes(r, 32))

	c.claims = between(r, 90)
	more := between(r, 90)
	c.ceiling.Add(&c.claims, &more)
	more = between(r, 90)
	c.deposit.Add(&c.ceiling, &more)
	c.refund, c.refundNonce = between(r, 80), between(r, 256)
	c.refund.Mod(&c.refund, &more)
	c.refund.AddUint64(&c.refund, 1) // no more than is free
	return c
}

func (c x402Case) input() map[string]any {
	t := c.terms
	return map[string]any{
		"chainId": t.ChainID, "tokenName": tokenName,
		"payerKey": hexutil.Encode(c.keys[0]), "signerKey": hexutil.Encode(c.keys[1]), "operatorKey": hexutil.Encode(c.keys[2]),
		"config": map[string]any{
			"payer": t.Payer.Hex(), "payerAuthorizer": t.AuthorizedSigner.Hex(), "receiver": t.Payee.Hex(),
			"receiverAuthorizer": t.PayeeAuthorizer.Hex(), "token": t.Token.Hex(), "withdrawDelay": t.WithdrawDelay, "salt": t.Salt.Hex(),
		},
		"deposit": c.deposit.Dec(), "ceiling": c.ceiling.Dec(), "claimed": c.claims.Dec(),
		"refund": c.refund.Dec(), "refundNonce": c.refundNonce.Dec(),
	}
}

// state is the payee's channel after the voucher was taken and its use charged.
func (c x402Case) state(v x402Vector) channel.State {
	return channel.State{ID: c.terms.ID(), Terms: c.terms, Deposit: c.deposit, Accepted: c.ceiling, Spent: c.claims, Signature: v.VoucherSignature}
}

// TestX402VectorsAreTheOfficialOnes: channel ids, signatures and calls of x402's batch-settlement are, byte for byte, what
// the official client and facilitator make of the same.
func TestX402VectorsAreTheOfficialOnes(t *testing.T) {
	needNode(t)
	t.Parallel()
	c := chaintest.Anvil(t)
	c.PlaceBatchSettlement(t)
	contract, err := chain.NewBatchSettlement(t.Context(), c.Backend)
	if err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var cases []x402Case
	var inputs []map[string]any
	for i := range 24 {
		cases = append(cases, newX402Case(t, r, i))
		inputs = append(inputs, cases[i].input())
	}
	var got struct {
		Vectors  []x402Vector  `json:"vectors"`
		ClaimAll hexutil.Bytes `json:"claimAll"`
	}
	node(t, &got, inputs, "x402vectors.mjs")
	if len(got.Vectors) != len(cases) {
		t.Fatalf("%d vectors of %d cases", len(got.Vectors), len(cases))
	}
	var states []channel.State
	for i, v := range got.Vectors {
		cases[i].sameSignatures(t, i, v)
		cases[i].sameCalls(t, i, contract, v)
		states = append(states, cases[i].state(v))
	}
	call, err := contract.SettlementCall(t.Context(), states)
	same(t, -1, "claim of all", call, err, got.ClaimAll)
}

func (c x402Case) sameSignatures(t *testing.T, i int, v x402Vector) {
	t.Helper()
	id := c.terms.ID()
	if err := c.terms.Validate(); err != nil || v.ID != id || v.VoucherID != id {
		t.Errorf("case %d: the channel is %s and %s, ours %s (%v)", i, v.ID, v.VoucherID, id, err)
	}
	domain := channel.BatchSettlement.Domain(c.terms.ChainID, channel.BatchSettlementEscrow)
	voucher, err := domain.Sign(t.Context(), c.signer, id, c.ceiling)
	if err != nil || !bytes.Equal(voucher.Signature, v.VoucherSignature) {
		t.Errorf("case %d: the voucher's signature is %s, ours %x (%v)", i, v.VoucherSignature, voucher.Signature, err)
	}
	separator := eip712.DomainSeparator(tokenName, "1", c.terms.ChainID, c.terms.Token)
	a, err := chain.SignAuthorization(t.Context(), c.payer, separator, c.authorization(t, v).Authorization)
	if err != nil || !bytes.Equal(a.Signature, v.Authorization.Signature) {
		t.Errorf("case %d: the deposit's signature is %s, ours %x (%v)", i, v.Authorization.Signature, a.Signature, err)
	}
}

// authorization is the client's of the deposit, with the nonce that we compute.
func (c x402Case) authorization(t *testing.T, v x402Vector) chain.Authorization {
	t.Helper()
	after, err := strconv.ParseUint(v.Authorization.ValidAfter, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	before, err := strconv.ParseUint(v.Authorization.ValidBefore, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return chain.Authorization{Signature: v.Authorization.Signature, Authorization: channel.Authorization{
		From: c.terms.Payer, To: channel.BatchSettlementCollector, Value: c.deposit, ValidAfter: after, ValidBefore: before,
		Nonce: channel.DepositNonce(c.terms.ID(), v.Authorization.Salt),
	}}
}

func (c x402Case) sameCalls(t *testing.T, i int, contract *chain.BatchSettlement, v x402Vector) {
	t.Helper()
	state := c.state(v)
	same(t, i, "deposit", contract.DepositCall(c.terms, v.Authorization.Salt, c.authorization(t, v)), nil, v.Deposit)
	call, err := contract.SettlementCall(t.Context(), []channel.State{state})
	same(t, i, "claim", call, err, v.Claim)
	call, err = contract.RefundCall(t.Context(), state, c.refund)
	same(t, i, "claim and refund", call, err, v.ClaimAndRefund)
	state.Settled = state.Payable()
	call, err = contract.RefundCall(t.Context(), state, c.refund)
	same(t, i, "refund", call, err, v.Refund)
	same(t, i, "start of a withdrawal", contract.InitiateWithdrawCall(c.terms, c.refund), nil, v.InitiateWithdraw)
	same(t, i, "withdrawal", contract.FinalizeWithdrawCall(c.terms), nil, v.FinalizeWithdraw)
	same(t, i, "payout", contract.SettleCall(c.terms.Payee, c.terms.Token), nil, v.Settle)
	if c.terms.ChainID != contract.ChainID() {
		return
	}
	signature, err := c.operator.Sign(t.Context(), contract.RefundDigest(state.ID, c.refundNonce, c.refund))
	same(t, i, "signed refund", contract.RefundSignedCall(c.terms, c.refund, c.refundNonce, signature), err, v.RefundSigned)
}

func same(t *testing.T, i int, what string, call chain.Call, err error, want []byte) {
	t.Helper()
	if err != nil || call.To != channel.BatchSettlementEscrow || !bytes.Equal(call.Data, want) {
		t.Errorf("case %d: the %s is\n%x\nand the official one\n%x (%v)", i, what, call.Data, want, err)
	}
}
