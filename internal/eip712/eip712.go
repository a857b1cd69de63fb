// Package eip712 hashes and signs typed data (EIP-712) the way the escrow
// contract reads it.
//
// The structs that gpupay signs have only static members, so their encoding is
// a row of 32-byte words. Words lays that row out by hand, without reflection
// and without allocating; tests hold it equal to go-ethereum's apitypes.
//
// Recover is deliberately narrower than go-ethereum's Ecrecover, and different
// from VerifySignature: a high s, a v of 0 or 1, or a flipped v is refused,
// because the contract refuses it, and a signature that cannot be settled is
// not money.
package eip712

import (
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"
)

const domainType = "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"

// scratch carries the input through the hash's interface, so that callers'
// buffers stay on their stacks.
type scratch struct {
	state crypto.KeccakState
	in    []byte
	out   common.Hash
}

var pool = sync.Pool{New: func() any {
	return &scratch{state: crypto.NewKeccakState(), in: make([]byte, 0, 512)}
}}

// Keccak returns the Keccak-256 hash of data. It does not allocate for inputs
// up to 512 bytes.
func Keccak(data []byte) common.Hash {
	s := pool.Get().(*scratch)
	defer pool.Put(s)
	s.in = append(s.in[:0], data...)
	s.state.Reset()
	s.state.Write(s.in)
	s.state.Read(s.out[:])
	return s.out
}

// TypeHash returns the hash of a type's encoding, such as
// "Voucher(bytes32 channelId,uint128 cumulativeAmount)".
func TypeHash(encoding string) common.Hash {
	return Keccak([]byte(encoding))
}

// DomainSeparator returns the separator of the domain {name, version, chainId,
// verifyingContract}: what ties a signature to one contract on one chain.
func DomainSeparator(name, version string, chainID uint64, contract common.Address) common.Hash {
	var buf [5 * 32]byte
	return Words(buf[:0]).
		Hash(TypeHash(domainType)).
		Hash(Keccak([]byte(name))).
		Hash(Keccak([]byte(version))).
		Uint64(chainID).
		Address(contract).
		Sum()
}

// Digest returns the hash that is signed for a struct in a domain. It does not
// allocate.
func Digest(separator, structHash common.Hash) common.Hash {
	var buf [2 + 2*32]byte
	buf[0], buf[1] = 0x19, 0x01
	copy(buf[2:], separator[:])
	copy(buf[34:], structHash[:])
	return Keccak(buf[:])
}

// Words is the abi.encode of static values: each method appends one 32-byte
// word. Start it on a stack buffer, Words(buf[:0]), and it does not allocate.
type Words []byte

// Hash appends a bytes32.
func (w Words) Hash(h common.Hash) Words { return append(w, h[:]...) }

// Address appends an address, left-padded.
func (w Words) Address(a common.Address) Words {
	var word [32]byte
	copy(word[12:], a[:])
	return append(w, word[:]...)
}

// Uint64 appends an unsigned integer of any width up to 64 bits.
func (w Words) Uint64(n uint64) Words {
	word := uint256.Int{n}
	return w.Uint256(&word)
}

// Uint256 appends an unsigned integer of any width up to 256 bits.
func (w Words) Uint256(n *uint256.Int) Words {
	word := n.Bytes32()
	return append(w, word[:]...)
}

// Bool appends a bool as 0 or 1.
func (w Words) Bool(b bool) Words {
	if b {
		return w.Uint64(1)
	}
	return w.Uint64(0)
}

// Sum returns the Keccak-256 hash of the words.
func (w Words) Sum() common.Hash { return Keccak(w) }
