package eip712

import (
	"bytes"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// SignatureLength is the length of a signature: r (32), s (32), v (1).
const SignatureLength = 65

// ErrSignature marks a signature that the contract would refuse whoever made it.
var ErrSignature = errors.New("invalid signature")

var (
	order     = crypto.S256().Params().N.FillBytes(make([]byte, 32))
	halfOrder = common.FromHex("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0")
	zero      = make([]byte, 32)
)

// Check reports whether sig has the only form that the contract takes: 65
// bytes, r and s in range, s in the lower half (so that nobody can make a second
// signature out of a first one), v 27 or 28.
func Check(sig []byte) error {
	if len(sig) != SignatureLength {
		return fmt.Errorf("%w: %d bytes, want 65 (r, s, v)", ErrSignature, len(sig))
	}
	r, s, v := sig[:32], sig[32:64], sig[64]
	if v != 27 && v != 28 {
		return fmt.Errorf("%w: v is %d, want 27 or 28", ErrSignature, v)
	}
	if bytes.Equal(r, zero) || bytes.Compare(r, order) >= 0 {
		return fmt.Errorf("%w: r is out of range", ErrSignature)
	}
	if bytes.Equal(s, zero) || bytes.Compare(s, halfOrder) > 0 {
		return fmt.Errorf("%w: s is zero or in the upper half of the order", ErrSignature)
	}
	return nil
}

// work is what the C library reads: memory that it is given is on the heap.
type work struct {
	digest common.Hash
	raw    [SignatureLength]byte
}

var works = sync.Pool{New: func() any { return new(work) }}

// Recover returns the address that signed digest. A nil error says only that
// somebody did: the caller compares the address.
func Recover(digest common.Hash, sig []byte) (common.Address, error) {
	if err := Check(sig); err != nil {
		return common.Address{}, err
	}
	w := works.Get().(*work)
	defer works.Put(w)
	w.digest = digest
	copy(w.raw[:], sig)
	w.raw[64] -= 27
	public, err := crypto.Ecrecover(w.digest[:], w.raw[:])
	if err != nil {
		return common.Address{}, fmt.Errorf("%w: no key recovers from it", ErrSignature)
	}
	hash := Keccak(public[1:])
	return common.BytesToAddress(hash[12:]), nil
}

// Sign returns the signature of digest in the form that Check asks for. The same
// key and digest give the same signature (RFC 6979).
func Sign(digest common.Hash, key *ecdsa.PrivateKey) ([]byte, error) {
	sig, err := crypto.Sign(digest[:], key)
	if err != nil {
		return nil, errors.New("eip712: signing failed") // the cause could quote the key
	}
	sig[64] += 27
	return sig, nil
}
