package channel_test

import (
	"bytes"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

// typed lets go-ethereum's reflective encoder say what the digest is.
func typed(t testing.TB, name, version string, contract common.Address, primary string, members []apitypes.Type, message apitypes.TypedDataMessage) common.Hash {
	t.Helper()
	data := apitypes.TypedData{
		Types: apitypes.Types{
			"EIP712Domain": {{Name: "name", Type: "string"}, {Name: "version", Type: "string"},
				{Name: "chainId", Type: "uint256"}, {Name: "verifyingContract", Type: "address"}},
			primary: members,
		},
		PrimaryType: primary,
		Domain: apitypes.TypedDataDomain{Name: name, Version: version,
			ChainId: math.NewHexOrDecimal256(testChain), VerifyingContract: contract.Hex()},
		Message: message,
	}
	digest, _, err := apitypes.TypedDataAndHash(data)
	if err != nil {
		t.Fatal(err)
	}
	return common.BytesToHash(digest)
}

func escrowTyped(t testing.TB, primary string, members []apitypes.Type, message apitypes.TypedDataMessage) common.Hash {
	return typed(t, "EVM Payment Channel", "1", testEscrow, primary, members, message)
}

func FuzzVoucherDigestEqualsApitypes(f *testing.F) {
	f.Add([]byte{1}, []byte{2}, uint64(3))
	f.Add(bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 12), ^uint64(0))
	f.Fuzz(func(t *testing.T, id, cumulative []byte, n uint64) {
		if len(cumulative) > 12 {
			cumulative = cumulative[:12]
		}
		channelID, amount := common.BytesToHash(id), *new(uint256.Int).SetBytes(cumulative)
		voucher := escrowTyped(t, "Voucher",
			[]apitypes.Type{{Name: "channelId", Type: "bytes32"}, {Name: "cumulativeAmount", Type: "uint128"}},
			apitypes.TypedDataMessage{"channelId": channelID[:], "cumulativeAmount": amount.Dec()})
		if got := testDomain.Digest(channelID, &amount); got != voucher {
			t.Errorf("voucher digest %s, apitypes has %s", got, voucher)
		}
		request := escrowTyped(t, "RequestClose",
			[]apitypes.Type{{Name: "channelId", Type: "bytes32"}, {Name: "nonce", Type: "uint256"}, {Name: "deadline", Type: "uint256"}},
			apitypes.TypedDataMessage{"channelId": channelID[:], "nonce": decimal(n), "deadline": decimal(n / 3)})
		if got := testDomain.RequestCloseDigest(channelID, n, n/3); got != request {
			t.Errorf("close request digest %s, apitypes has %s", got, request)
		}
		cancellation := escrowTyped(t, "CancelClose",
			[]apitypes.Type{{Name: "channelId", Type: "bytes32"}, {Name: "nonce", Type: "uint256"}, {Name: "deadline", Type: "uint256"}},
			apitypes.TypedDataMessage{"channelId": channelID[:], "nonce": decimal(n), "deadline": decimal(n / 3)})
		if got := testDomain.CancelCloseDigest(channelID, n, n/3); got != cancellation {
			t.Errorf("digest of a cancellation %s, apitypes has %s", got, cancellation)
		}
		account, to := common.BytesToAddress(id), common.BytesToAddress(cumulative)
		credit := escrowTyped(t, "WithdrawCredit",
			[]apitypes.Type{{Name: "account", Type: "address"}, {Name: "token", Type: "address"}, {Name: "to", Type: "address"},
				{Name: "nonce", Type: "uint256"}, {Name: "deadline", Type: "uint256"}},
			apitypes.TypedDataMessage{"account": account.Hex(), "token": testToken.Hex(), "to": to.Hex(), "nonce": decimal(n), "deadline": decimal(n / 3)})
		if got := testDomain.WithdrawCreditDigest(account, testToken, to, n, n/3); got != credit {
			t.Errorf("digest of a credit's withdrawal %s, apitypes has %s", got, credit)
		}
		closing := escrowTyped(t, "Close",
			[]apitypes.Type{{Name: "channelId", Type: "bytes32"}, {Name: "cumulativeAmount", Type: "uint128"}, {Name: "deadline", Type: "uint256"}},
			apitypes.TypedDataMessage{"channelId": channelID[:], "cumulativeAmount": amount.Dec(), "deadline": decimal(n)})
		if got := testDomain.CloseDigest(channelID, amount, n); got != closing {
			t.Errorf("close digest %s, apitypes has %s", got, closing)
		}
	})
}

// TestAuthorizationDigest also holds the type to the hash that ERC-3009 states.
func TestAuthorizationDigest(t *testing.T) {
	const stated = "0xd099cc98ef71107a616c4f0f941f04c322d8e254fe26b3c6668db87aae413de8"
	encoding := "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
	if got := eip712.TypeHash(encoding); got.Hex() != stated {
		t.Errorf("type hash %s, ERC-3009 states %s", got, stated)
	}
	a := channel.Authorization{From: payerKey.Address(), To: testEscrow, Value: channel.MaxAmount(),
		ValidAfter: 1, ValidBefore: 2_000_000_000, Nonce: channel.OpenNonce(payerKey.Address(), testTerms("0x01"))}
	want := typed(t, "Test USD", "1", testToken, "ReceiveWithAuthorization",
		[]apitypes.Type{{Name: "from", Type: "address"}, {Name: "to", Type: "address"}, {Name: "value", Type: "uint256"},
			{Name: "validAfter", Type: "uint256"}, {Name: "validBefore", Type: "uint256"}, {Name: "nonce", Type: "bytes32"}},
		apitypes.TypedDataMessage{"from": a.From.Hex(), "to": a.To.Hex(), "value": a.Value.Dec(),
			"validAfter": "1", "validBefore": "2000000000", "nonce": a.Nonce[:]})
	if got := a.Digest(eip712.DomainSeparator("Test USD", "1", testChain, testToken)); got != want {
		t.Errorf("digest %s, apitypes has %s", got, want)
	}
}

// TestDraftConstants holds the voucher to the type hash that the public draft
// states, and another protocol's voucher to its own.
func TestDraftConstants(t *testing.T) {
	const draft = "0xe97c93f01d3ef8eaba1586553df13308f236815bf4ea49c7b696895d8f5ea68a"
	if got := eip712.TypeHash("Voucher(bytes32 channelId,uint128 cumulativeAmount)"); got.Hex() != draft {
		t.Errorf("voucher type hash %s, the draft states %s", got, draft)
	}
	x402 := channel.BatchSettlement.Domain(testChain, testEscrow)
	amount := units(5)
	want := typed(t, "x402 Batch Settlement", "1", testEscrow, "Voucher",
		[]apitypes.Type{{Name: "channelId", Type: "bytes32"}, {Name: "maxClaimableAmount", Type: "uint128"}},
		apitypes.TypedDataMessage{"channelId": common.Hash{7}.Bytes(), "maxClaimableAmount": "5"})
	if got := x402.Digest(common.Hash{7}, &amount); got != want || x402 == testDomain {
		t.Errorf("x402 digest %s, apitypes has %s", got, want)
	}
}

// TestIDIsTheAbiEncoding lays the id out a second time, by hand.
func TestIDIsTheAbiEncoding(t *testing.T) {
	terms := delegated("0xdeadbeef")
	var row []byte
	for _, field := range [][]byte{terms.Payer[:], terms.Payee[:], terms.Token[:], terms.Salt[:],
		terms.AuthorizedSigner[:], terms.Escrow[:], big.NewInt(testChain).Bytes()} {
		row = append(row, common.LeftPadBytes(field, 32)...)
	}
	if got, want := terms.ID(), crypto.Keccak256Hash(row); got != want {
		t.Errorf("id %s, want %s", got, want)
	}
}

func TestDigestDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector drops pooled items at random")
	}
	id, amount := testTerms("0x01").ID(), units(5)
	if n := testing.AllocsPerRun(1000, func() { testDomain.Digest(id, &amount) }); n != 0 {
		t.Errorf("%v allocations a digest, want 0", n)
	}
}

func BenchmarkDigest(b *testing.B) {
	id, amount := testTerms("0x01").ID(), units(5)
	b.ReportAllocs()
	for b.Loop() {
		testDomain.Digest(id, &amount)
	}
}

func BenchmarkVerify(b *testing.B) {
	v := sign(b, testDomain, payerKey, testTerms("0x01").ID(), units(5))
	for b.Loop() {
		if err := testDomain.Verify(v, payerKey.Address()); err != nil {
			b.Fatal(err)
		}
	}
}
