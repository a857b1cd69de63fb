package accept

import (
	"context"
	"crypto/ecdsa"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
)

// source gives the bytes that choose what is done to a voucher; zeros when it has no more.
type source struct{ bytes []byte }

func (s *source) next() byte {
	if len(s.bytes) == 0 {
		return 0
	}
	b := s.bytes[0]
	s.bytes = s.bytes[1:]
	return b
}

func (s *source) word() (w [32]byte) {
	for i := range w {
		w[i] = s.next()
	}
	return w
}

// pick takes the first, which is what an honest payer does, three times out of four.
func pick[T any](s *source, first T, others ...T) T {
	b := int(s.next()) - dishonest
	if b < 0 {
		return first
	}
	return others[b%len(others)]
}

const dishonest = 192

// amounts are the ones at which something changes.
var amounts = map[string]func(s channel.State, src *source) *big.Int{
	"zero":           func(channel.State, *source) *big.Int { return new(big.Int) },
	"accepted":       func(s channel.State, _ *source) *big.Int { return s.Accepted.ToBig() },
	"accepted - 1":   func(s channel.State, _ *source) *big.Int { return plus(s.Accepted, -1) },
	"accepted + 1":   func(s channel.State, _ *source) *big.Int { return plus(s.Accepted, 1) },
	"accepted + few": func(s channel.State, src *source) *big.Int { return plus(s.Accepted, int64(src.next())) },
	"settled":        func(s channel.State, _ *source) *big.Int { return s.Settled.ToBig() },
	"settled + 1":    func(s channel.State, _ *source) *big.Int { return plus(s.Settled, 1) },
	"deposit":        func(s channel.State, _ *source) *big.Int { return s.Deposit.ToBig() },
	"deposit + 1":    func(s channel.State, _ *source) *big.Int { return plus(s.Deposit, 1) },
	"deposit + few":  func(s channel.State, src *source) *big.Int { return plus(s.Deposit, int64(src.next())*4) },
	"96 bits":        func(channel.State, *source) *big.Int { return maxAmount },
	"97 bits":        func(channel.State, *source) *big.Int { return new(big.Int).Add(maxAmount, big.NewInt(1)) },
	"128 bits":       func(channel.State, *source) *big.Int { return power(128, -1) },
	"129 bits":       func(_ channel.State, src *source) *big.Int { return power(128, int64(src.next())) },
	"any": func(_ channel.State, src *source) *big.Int {
		w := src.word()
		return new(big.Int).SetBytes(w[:])
	},
}

var amountNames = []string{"zero", "accepted", "accepted - 1", "accepted + 1", "settled", "settled + 1", "deposit", "deposit + 1",
	"deposit + few", "96 bits", "97 bits", "128 bits", "129 bits", "any"}

func plus(v uint256.Int, n int64) *big.Int {
	sum := new(big.Int).Add(v.ToBig(), big.NewInt(n))
	if sum.Sign() < 0 {
		return new(big.Int)
	}
	return sum
}

func power(bits uint, n int64) *big.Int {
	return new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), bits), big.NewInt(n))
}

// forgeries change a signature after it was made.
var forgeries = map[string]func(sig []byte, src *source) []byte{
	"as signed": func(sig []byte, _ *source) []byte { return sig },
	"high s": func(sig []byte, _ *source) []byte {
		s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
		s.FillBytes(sig[32:64])
		sig[64] = 55 - sig[64]
		return sig
	},
	"high s, same v": func(sig []byte, _ *source) []byte {
		s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
		s.FillBytes(sig[32:64])
		return sig
	},
	"flipped v":  func(sig []byte, _ *source) []byte { sig[64] = 55 - sig[64]; return sig },
	"v 0 or 1":   func(sig []byte, _ *source) []byte { sig[64] -= 27; return sig },
	"any v":      func(sig []byte, src *source) []byte { sig[64] = src.next(); return sig },
	"bit":        func(sig []byte, src *source) []byte { n := src.next(); sig[n%65] ^= 1 << (src.next() % 8); return sig },
	"short":      func(sig []byte, src *source) []byte { return sig[:src.next()%65] },
	"compact":    func(sig []byte, _ *source) []byte { sig[32] |= (sig[64] - 27) << 7; return sig[:64] },
	"long":       func(sig []byte, src *source) []byte { return append(sig, make([]byte, src.next())...) },
	"zero r":     func(sig []byte, _ *source) []byte { clear(sig[:32]); return sig },
	"zero s":     func(sig []byte, _ *source) []byte { clear(sig[32:64]); return sig },
	"order as s": func(sig []byte, _ *source) []byte { crypto.S256().Params().N.FillBytes(sig[32:64]); return sig },
	"random": func(_ []byte, src *source) []byte {
		r, s := src.word(), src.word()
		return append(append(r[:], s[:]...), 27+src.next()%2)
	},
}

var forgeryNames = []string{"high s", "high s, same v", "flipped v", "v 0 or 1", "any v", "bit", "short", "compact", "long", "zero r",
	"zero s", "order as s", "random"}

// attempt is one voucher and what was done to it.
type attempt struct {
	signer, domain, amount, forgery string
	channel.Voucher
}

// attempt makes a voucher for a channel out of the bytes of src.
func (k keys) attempt(s *subject, state channel.State, others []*subject, src *source) attempt {
	a := attempt{
		signer:  pick(src, "signer", "payer", "delegate", "payee", "stranger"),
		domain:  pick(src, "this", "another chain", "another escrow", "another channel", "another amount", "usage record"),
		amount:  pick(src, "accepted + few", amountNames...),
		forgery: pick(src, "as signed", forgeryNames...),
	}
	amount, _ := uint256.FromBig(amounts[a.amount](state, src)) // nothing here is over 256 bits
	id := s.terms.ID()
	domain, signedID, signedAmount := channel.EscrowDomain(s.terms.ChainID, s.terms.Escrow), id, *amount
	switch a.domain {
	case "another chain":
		domain = channel.EscrowDomain(s.terms.ChainID+uint64(src.next())+1, s.terms.Escrow)
	case "another escrow":
		domain = channel.EscrowDomain(s.terms.ChainID, common.Address{src.next()})
	case "another channel":
		signedID = others[int(src.next())%len(others)].terms.ID()
	case "another amount":
		signedAmount.AddUint64(&signedAmount, uint64(src.next()))
	}
	digest := domain.Digest(signedID, &signedAmount)
	if a.domain == "usage record" { // the same parties sign these too
		record := metering.Record{ChannelID: id, Owed: *amount}
		digest = record.Digest(metering.Domain(s.terms.ChainID, s.terms.Escrow))
	}
	sig, err := channel.NewKey(k.key(a.signer, s)).Sign(context.Background(), digest)
	must(err)
	a.Voucher = channel.Voucher{ChannelID: id, Cumulative: *amount, Signature: forgeries[a.forgery](sig, src)}
	return a
}

func (k keys) key(name string, s *subject) *ecdsa.PrivateKey {
	switch {
	case name == "payee":
		return k.payee
	case name == "stranger":
		return k.stranger
	case name == "delegate", name == "signer" && s.terms.AuthorizedSigner != (common.Address{}):
		return k.delegate
	}
	return k.payer
}
