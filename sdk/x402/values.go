package x402

import (
	"encoding/hex"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/wire"
)

const (
	// Version is the only version of x402 that has this scheme.
	Version = 2
	// Scheme is its name in an offer.
	Scheme = "batch-settlement"
	// TransferERC3009 is how a deposit is drawn from the payer; an offer that
	// names no method means it too.
	TransferERC3009 = "eip3009"
)

const (
	maxSafe   = 1<<53 - 1 // above it, JavaScript reads another number than was written
	maxUint40 = 1<<40 - 1
)

// Network is an EVM chain's id, "eip155:N" in JSON.
type Network uint64

const namespace = "eip155:"

// MarshalText returns the CAIP-2 name.
func (n Network) MarshalText() ([]byte, error) {
	return strconv.AppendUint([]byte(namespace), uint64(n), 10), nil
}

// UnmarshalText accepts the one spelling of a chain id from 1 to 2^53-1.
func (n *Network) UnmarshalText(text []byte) error {
	digits, ok := strings.CutPrefix(string(text), namespace)
	id, canonical := parseUint(digits, maxSafe)
	if !ok || !canonical || id == 0 {
		return malformed("network %.40q is not eip155 and a chain's id", text)
	}
	*n = Network(id)
	return nil
}

func (n Network) String() string { return namespace + strconv.FormatUint(uint64(n), 10) }

// Seconds is a time in unix seconds, a decimal string in JSON.
type Seconds uint64

// MarshalText returns the decimal.
func (s Seconds) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(s), 10), nil }

// UnmarshalText accepts a canonical decimal of at most 64 bits.
func (s *Seconds) UnmarshalText(text []byte) error {
	v, ok := parseUint(string(text), 1<<64-1)
	if !ok {
		return malformed("time %.40q is not a whole number of seconds", text)
	}
	*s = Seconds(v)
	return nil
}

// Hash is 32 bytes, 0x and 64 hex digits in JSON.
type Hash common.Hash

// MarshalText returns lowercase hex.
func (h Hash) MarshalText() ([]byte, error) { return common.Hash(h).MarshalText() }

// UnmarshalText accepts hex digits of any case.
func (h *Hash) UnmarshalText(text []byte) error { return unhex(h[:], text) }

func (h Hash) String() string { return common.Hash(h).Hex() }

// Transaction is a transaction's hash, or zero where there is none: "" in JSON.
type Transaction common.Hash

// MarshalText returns lowercase hex, or nothing.
func (t Transaction) MarshalText() ([]byte, error) {
	if t == (Transaction{}) {
		return nil, nil
	}
	return common.Hash(t).MarshalText()
}

// UnmarshalText is the inverse of MarshalText; zeros are no transaction's hash.
func (t *Transaction) UnmarshalText(text []byte) error {
	*t = Transaction{}
	if len(text) == 0 {
		return nil
	}
	if err := unhex(t[:], text); err != nil {
		return err
	}
	if *t == (Transaction{}) {
		return malformed("no transaction has the hash 0")
	}
	return nil
}

// Signature is r, s and v, 0x and 130 hex digits in JSON. Whose it is, and
// whether a contract would take it, channel.Domain says.
type Signature [65]byte

// MarshalText returns lowercase hex.
func (s Signature) MarshalText() ([]byte, error) { return []byte("0x" + hex.EncodeToString(s[:])), nil }

// UnmarshalText accepts hex digits of any case. The longer signatures of smart
// accounts are refused: no batch of claims could carry them.
func (s *Signature) UnmarshalText(text []byte) error { return unhex(s[:], text) }

func (s Signature) String() string { return "0x" + hex.EncodeToString(s[:]) }

// unhex fills to with exactly its length of hex digits after 0x.
func unhex(to, text []byte) error {
	digits, ok := strings.CutPrefix(string(text), "0x")
	if !ok || len(digits) != 2*len(to) {
		return malformed("%.20q is not 0x and %d hex digits", text, 2*len(to))
	}
	if _, err := hex.Decode(to, []byte(digits)); err != nil {
		return malformed("%.20q is not 0x and %d hex digits", text, 2*len(to))
	}
	return nil
}

// parseAddress is wire.Address without the spelling 0X, which viem refuses.
func parseAddress(text string) (wire.Address, error) {
	var a wire.Address
	if !strings.HasPrefix(text, "0x") || a.UnmarshalText([]byte(text)) != nil {
		return wire.Address{}, malformed("address %.50q is not 0x and 40 hex digits", text)
	}
	return a, nil
}

// parseUint reads digits with no sign and no leading zeros.
func parseUint(text string, most uint64) (uint64, bool) {
	if text == "" || (len(text) > 1 && text[0] == '0') || strings.Trim(text, "0123456789") != "" {
		return 0, false
	}
	v, err := strconv.ParseUint(text, 10, 64)
	return v, err == nil && v <= most
}
