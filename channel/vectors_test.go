package channel_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"math/big"
	"os"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// The golden vectors are what Go and Solidity agree on: this file writes them,
// forge replays them against the contract.
const vectorsFile = "testdata/vectors.json"

var update = flag.Bool("update", false, "rewrite "+vectorsFile)

type vectorFile struct {
	ChainID         uint64          `json:"chainId"`
	Escrow          string          `json:"escrow"`
	DomainSeparator string          `json:"domainSeparator"`
	Vectors         []voucherVector `json:"vectors"`
	CloseRequests   []requestVector `json:"closeRequests"`
	Cancellations   []requestVector `json:"closeCancellations"`
	Credits         []creditVector  `json:"creditWithdrawals"`
	Closes          []closeVector   `json:"closes"`
	Nonces          []nonceVector   `json:"authorizationNonces"`
}

type termsVector struct {
	Payer            string `json:"payer"`
	Payee            string `json:"payee"`
	Token            string `json:"token"`
	Salt             string `json:"salt"`
	AuthorizedSigner string `json:"authorizedSigner"`
	ChannelID        string `json:"channelId"`
}

type voucherVector struct {
	Name string `json:"name"`
	termsVector
	Cumulative string `json:"cumulativeAmount"`
	Digest     string `json:"digest"`
	Signature  string `json:"signature"`
	Signer     string `json:"signer"`
	Valid      bool   `json:"valid"`
	Reason     string `json:"reason"`
}

type creditVector struct {
	Account   string `json:"account"`
	Token     string `json:"token"`
	To        string `json:"to"`
	Nonce     string `json:"nonce"`
	Deadline  string `json:"deadline"`
	Digest    string `json:"digest"`
	Signature string `json:"signature"`
	Signer    string `json:"signer"`
}

type requestVector struct {
	ChannelID string `json:"channelId"`
	Nonce     string `json:"nonce"`
	Deadline  string `json:"deadline"`
	Digest    string `json:"digest"`
	Signature string `json:"signature"`
	Signer    string `json:"signer"`
}

type closeVector struct {
	ChannelID  string `json:"channelId"`
	Cumulative string `json:"cumulativeAmount"`
	Deadline   string `json:"deadline"`
	Digest     string `json:"digest"`
	Signature  string `json:"signature"`
	Signer     string `json:"signer"`
}

type nonceVector struct {
	Kind              string `json:"kind"` // open or topUp
	From              string `json:"from"`
	Payee             string `json:"payee"`
	Token             string `json:"token"`
	Salt              string `json:"salt"`
	AuthorizedSigner  string `json:"authorizedSigner"`
	ChannelID         string `json:"channelId"`
	AdditionalDeposit string `json:"additionalDeposit"`
	TopUpSalt         string `json:"topUpSalt"`
	Nonce             string `json:"nonce"`
}

const testChain = 31337

var (
	testEscrow = common.HexToAddress("0xE5C0000000000000000000000000000000000001")
	testToken  = common.HexToAddress("0x70CE000000000000000000000000000000000002")
	testDomain = channel.EscrowDomain(testChain, testEscrow)

	payerKey    = testKey(1)
	payeeKey    = testKey(2)
	sessionKey  = testKey(3)
	strangerKey = testKey(4)
)

// testKey returns the same key for the same seed: keys in tests are not secret.
func testKey(seed byte) *channel.Key {
	private, err := crypto.ToECDSA(bytes.Repeat([]byte{seed}, 32))
	if err != nil {
		panic(err)
	}
	return channel.NewKey(private)
}

func testTerms(salt string) channel.Terms {
	return channel.Terms{ChainID: testChain, Escrow: testEscrow, Token: testToken,
		Payer: payerKey.Address(), Payee: payeeKey.Address(), Salt: common.HexToHash(salt)}
}

func delegated(salt string) channel.Terms {
	t := testTerms(salt)
	t.AuthorizedSigner = sessionKey.Address()
	return t
}

func units(n uint64) uint256.Int { return *uint256.NewInt(n) }

func sign(t testing.TB, d channel.Domain, key channel.Signer, id common.Hash, amount uint256.Int) channel.Voucher {
	t.Helper()
	v, err := d.Sign(context.Background(), key, id, amount)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVectorsAreCurrent(t *testing.T) {
	got, err := json.MarshalIndent(buildVectors(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(vectorsFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is stale: run go test ./channel -run Vectors -update, and forge test", vectorsFile)
	}
}

// TestVectorsVerify reads the committed file, so that an edited vector fails.
func TestVectorsVerify(t *testing.T) {
	file, err := os.ReadFile(vectorsFile)
	if err != nil {
		t.Fatal(err)
	}
	var vectors vectorFile
	if err := json.Unmarshal(file, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Vectors) < 20 {
		t.Errorf("%d vectors, want 20 or more", len(vectors.Vectors))
	}
	domain := channel.EscrowDomain(vectors.ChainID, common.HexToAddress(vectors.Escrow))
	for _, v := range vectors.Vectors {
		t.Run(v.Name, func(t *testing.T) { replay(t, domain, vectors, v) })
	}
}

func replay(t *testing.T, domain channel.Domain, file vectorFile, v voucherVector) {
	terms := channel.Terms{ChainID: file.ChainID, Escrow: common.HexToAddress(file.Escrow),
		Payer: common.HexToAddress(v.Payer), Payee: common.HexToAddress(v.Payee), Token: common.HexToAddress(v.Token),
		Salt: common.HexToHash(v.Salt), AuthorizedSigner: common.HexToAddress(v.AuthorizedSigner)}
	if terms.ID().Hex() != v.ChannelID || terms.Signer().Hex() != v.Signer {
		t.Errorf("id %s, signer %s; want %s, %s", terms.ID(), terms.Signer(), v.ChannelID, v.Signer)
	}
	amount, err := channel.ParseAmount(v.Cumulative)
	if err != nil {
		t.Fatal(err)
	}
	if digest := domain.Digest(terms.ID(), &amount); digest.Hex() != v.Digest {
		t.Errorf("digest %s, want %s", digest, v.Digest)
	}
	voucher := channel.Voucher{ChannelID: terms.ID(), Cumulative: amount, Signature: hexutil.MustDecode(v.Signature)}
	if err := domain.Verify(voucher, terms.Signer()); (err == nil) != v.Valid {
		t.Errorf("valid %v (%s), got %v", v.Valid, v.Reason, err)
	}
}

func buildVectors(t *testing.T) vectorFile {
	return vectorFile{
		ChainID:         testChain,
		Escrow:          testEscrow.Hex(),
		DomainSeparator: testDomain.Separator().Hex(),
		Vectors:         append(validVectors(t), invalidVectors(t)...),
		CloseRequests: []requestVector{
			requestOf(t, testTerms("0x01"), 0, 2_000_000_000), requestOf(t, testTerms("0x01"), 1, 2_000_000_000),
			requestOf(t, delegated("0x02"), 65535, 1),
		},
		Cancellations: []requestVector{
			cancellationOf(t, testTerms("0x01"), 1, 2_000_000_000), cancellationOf(t, testTerms("0x01"), 65534, 1),
			cancellationOf(t, delegated("0x02"), 2, 2_000_000_000),
		},
		Credits: []creditVector{
			creditOf(t, payeeKey, strangerKey.Address(), 0, 2_000_000_000), creditOf(t, payerKey, payeeKey.Address(), 1, 1),
			creditOf(t, payeeKey, strangerKey.Address(), 1<<40, 2_000_000_000),
		},
		Closes: []closeVector{
			closeOf(t, testTerms("0x01"), units(1_000_000), 2_000_000_000),
			closeOf(t, delegated("0x02"), channel.MaxAmount(), 1),
		},
		Nonces: []nonceVector{
			openOf(testTerms("0x01")), openOf(delegated("0x02")), openOf(testTerms("0x00")),
			topUpOf(testTerms("0x01"), units(5_000_000), "0x00"), topUpOf(testTerms("0x01"), units(5_000_000), "0xff01"),
			topUpOf(delegated("0x02"), channel.MaxAmount(), "0x01"),
		},
	}
}

func validVectors(t *testing.T) []voucherVector {
	full := "0xf1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f10"
	var out []voucherVector
	for _, c := range []struct {
		name   string
		terms  channel.Terms
		amount uint256.Int
	}{
		{"plain", testTerms("0x01"), units(1_000_000)},
		{"plain, next voucher", testTerms("0x01"), units(1_000_001)},
		{"one base unit", testTerms("0x01"), units(1)},
		{"zero amount", testTerms("0x01"), units(0)},
		{"max amount", testTerms("0x01"), channel.MaxAmount()},
		{"over 64 bits", testTerms("0x01"), uint256.Int{0, 1}},
		{"zero salt", testTerms("0x00"), units(42)},
		{"salt of 2 bytes", testTerms("0x0102"), units(42)},
		{"salt of 4 bytes", testTerms("0xdeadbeef"), units(42)},
		{"salt with inner zeros", testTerms("0x01000000000000"), units(42)},
		{"salt of 31 bytes", testTerms(full[:64]), units(42)},
		{"salt of 32 bytes", testTerms(full), units(42)},
		{"authorized signer", delegated("0x02"), units(2_000_000)},
		{"authorized signer, zero salt", delegated("0x00"), units(7)},
		{"authorized signer, max amount", delegated(full), channel.MaxAmount()},
	} {
		out = append(out, vectorOf(c.name, c.terms, sign(t, testDomain, signerOf(c.terms), c.terms.ID(), c.amount), ""))
	}
	return out
}

func signerOf(t channel.Terms) *channel.Key {
	if t.Signer() == sessionKey.Address() {
		return sessionKey
	}
	return payerKey
}

func invalidVectors(t *testing.T) []voucherVector {
	terms, id := testTerms("0x01"), testTerms("0x01").ID()
	good := sign(t, testDomain, payerKey, id, units(1_000_000))
	var out []voucherVector
	for _, c := range []struct {
		name, reason string
		sig          []byte
	}{
		{"high s", "high-s", highS(good.Signature)},
		{"high s, v kept", "high-s", keepV(highS(good.Signature), good.Signature)},
		{"flipped v", "bad-v", withV(good.Signature, good.Signature[64]^27^28)},
		{"v of 0 or 1", "bad-v", withV(good.Signature, good.Signature[64]-27)},
		{"v of the other 0 or 1", "bad-v", withV(good.Signature, 1-(good.Signature[64]-27))},
		{"v of 29", "bad-v", withV(good.Signature, 29)},
		{"64 bytes", "short", good.Signature[:64]},
		{"66 bytes", "long", append(bytes.Clone(good.Signature), 0)},
		{"empty", "short", nil},
		{"all zero", "bad-v", make([]byte, 65)},
		{"zero r", "range", append(append(make([]byte, 32), good.Signature[32:64]...), 27)},
		{"zero s", "range", append(append(bytes.Clone(good.Signature[:32]), make([]byte, 32)...), 27)},
		{"stranger", "wrong-signer", sign(t, testDomain, strangerKey, id, units(1_000_000)).Signature},
		{"payee", "wrong-signer", sign(t, testDomain, payeeKey, id, units(1_000_000)).Signature},
		{"another chain", "wrong-chain", sign(t, channel.EscrowDomain(1, testEscrow), payerKey, id, units(1_000_000)).Signature},
		{"another escrow", "wrong-escrow", sign(t, channel.EscrowDomain(testChain, testToken), payerKey, id, units(1_000_000)).Signature},
		{"another channel", "wrong-channel", sign(t, testDomain, payerKey, testTerms("0x02").ID(), units(1_000_000)).Signature},
		{"another amount", "wrong-amount", sign(t, testDomain, payerKey, id, units(999_999)).Signature},
	} {
		out = append(out, vectorOf(c.name, terms, channel.Voucher{ChannelID: id, Cumulative: good.Cumulative, Signature: c.sig}, c.reason))
	}
	byPayer := sign(t, testDomain, payerKey, delegated("0x02").ID(), units(5))
	return append(out, vectorOf("payer in place of its authorized signer", delegated("0x02"), byPayer, "wrong-signer"))
}

func vectorOf(name string, t channel.Terms, v channel.Voucher, reason string) voucherVector {
	return voucherVector{
		Name: name,
		termsVector: termsVector{Payer: t.Payer.Hex(), Payee: t.Payee.Hex(), Token: t.Token.Hex(), Salt: t.Salt.Hex(),
			AuthorizedSigner: t.AuthorizedSigner.Hex(), ChannelID: t.ID().Hex()},
		Cumulative: v.Cumulative.Dec(),
		Digest:     testDomain.Digest(t.ID(), &v.Cumulative).Hex(),
		Signature:  hexutil.Encode(v.Signature),
		Signer:     t.Signer().Hex(),
		Valid:      reason == "",
		Reason:     reason,
	}
}

func requestOf(t *testing.T, terms channel.Terms, nonce, deadline uint64) requestVector {
	digest := testDomain.RequestCloseDigest(terms.ID(), nonce, deadline)
	return requestVector{ChannelID: terms.ID().Hex(), Nonce: decimal(nonce), Deadline: decimal(deadline),
		Digest: digest.Hex(), Signature: signHex(t, payerKey, digest), Signer: payerKey.Address().Hex()}
}

func cancellationOf(t *testing.T, terms channel.Terms, nonce, deadline uint64) requestVector {
	digest := testDomain.CancelCloseDigest(terms.ID(), nonce, deadline)
	return requestVector{ChannelID: terms.ID().Hex(), Nonce: decimal(nonce), Deadline: decimal(deadline),
		Digest: digest.Hex(), Signature: signHex(t, payerKey, digest), Signer: payerKey.Address().Hex()}
}

func creditOf(t *testing.T, key *channel.Key, to common.Address, nonce, deadline uint64) creditVector {
	digest := testDomain.WithdrawCreditDigest(key.Address(), testToken, to, nonce, deadline)
	return creditVector{Account: key.Address().Hex(), Token: testToken.Hex(), To: to.Hex(), Nonce: decimal(nonce), Deadline: decimal(deadline),
		Digest: digest.Hex(), Signature: signHex(t, key, digest), Signer: key.Address().Hex()}
}

func closeOf(t *testing.T, terms channel.Terms, amount uint256.Int, deadline uint64) closeVector {
	digest := testDomain.CloseDigest(terms.ID(), amount, deadline)
	return closeVector{ChannelID: terms.ID().Hex(), Cumulative: amount.Dec(), Deadline: decimal(deadline),
		Digest: digest.Hex(), Signature: signHex(t, payeeKey, digest), Signer: payeeKey.Address().Hex()}
}

func openOf(t channel.Terms) nonceVector {
	return nonceVector{Kind: "open", From: t.Payer.Hex(), Payee: t.Payee.Hex(), Token: t.Token.Hex(), Salt: t.Salt.Hex(),
		AuthorizedSigner: t.AuthorizedSigner.Hex(), ChannelID: t.ID().Hex(), AdditionalDeposit: "0",
		TopUpSalt: common.Hash{}.Hex(), Nonce: channel.OpenNonce(t.Payer, t).Hex()}
}

func topUpOf(t channel.Terms, additional uint256.Int, salt string) nonceVector {
	v := openOf(t)
	v.Kind, v.AdditionalDeposit, v.TopUpSalt = "topUp", additional.Dec(), common.HexToHash(salt).Hex()
	v.Nonce = channel.TopUpNonce(t.ID(), additional, t.Payer, common.HexToHash(salt)).Hex()
	return v
}

func decimal(n uint64) string { return uint256.NewInt(n).Dec() }

func signHex(t *testing.T, key *channel.Key, digest common.Hash) string {
	t.Helper()
	sig, err := key.Sign(context.Background(), digest)
	if err != nil {
		t.Fatal(err)
	}
	return hexutil.Encode(sig)
}

func withV(sig []byte, v byte) []byte {
	out := bytes.Clone(sig)
	out[64] = v
	return out
}

func keepV(sig, from []byte) []byte { return withV(sig, from[64]) }

// highS returns the second signature that anyone can make out of a first one.
func highS(sig []byte) []byte {
	out := withV(sig, sig[64]^27^28)
	s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
	s.FillBytes(out[32:64])
	return out
}
