package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/exactjson"
)

// maxHeader bounds what a parser of this package reads from one header. A
// credential that opens a channel without gas is about 2 KiB.
const maxHeader = 16 << 10

// ErrMalformed is wrapped by every parse error of this package.
var ErrMalformed = errors.New("malformed payment message")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Amount is a number of a token's base units (0 to 2^96-1), a decimal string
// in JSON: a JSON number would lose digits in most clients.
type Amount struct{ uint256.Int }

// NewAmount returns v as it stands on the wire.
func NewAmount(v uint256.Int) Amount { return Amount{v} }

// MarshalText returns the canonical decimal.
func (a Amount) MarshalText() ([]byte, error) { return []byte(a.Dec()), nil }

// UnmarshalText accepts a canonical decimal only.
func (a *Amount) UnmarshalText(text []byte) error {
	v, err := channel.ParseAmount(string(text))
	if err != nil {
		return malformed("%v", err)
	}
	a.Int = v
	return nil
}

// UnmarshalJSON refuses a bare JSON number.
func (a *Amount) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return malformed("amount %.40s is not a decimal string", data)
	}
	return a.UnmarshalText([]byte(text))
}

// MarshalJSON writes the decimal as a string.
func (a Amount) MarshalJSON() ([]byte, error) { return json.Marshal(a.Dec()) }

// Address is an account, EIP-55 in JSON and compared as bytes.
type Address common.Address

// MarshalText returns the EIP-55 form.
func (a Address) MarshalText() ([]byte, error) { return []byte(common.Address(a).Hex()), nil }

// UnmarshalText accepts 0x and 40 hex digits of any case.
func (a *Address) UnmarshalText(text []byte) error {
	if len(text) != 42 || !common.IsHexAddress(string(text)) {
		return malformed("address %.50q is not 0x and 40 hex digits", text)
	}
	*a = Address(common.HexToAddress(string(text)))
	return nil
}

func (a Address) String() string { return common.Address(a).Hex() }

// Bytes is 0x hex in JSON, lowercase when written.
type Bytes = hexutil.Bytes

// encode is base64url without padding over JSON without HTML escapes.
func encode(v any) (string, error) {
	raw, err := marshal(v)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(raw), nil
}

func decode(what, text string, into any) error {
	if len(text) > maxHeader {
		return malformed("%s has %d bytes, at most %d are read", what, len(text), maxHeader)
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil {
		return malformed("%s is not base64url: %v", what, err)
	}
	if err := exactjson.Unmarshal(raw, into); err != nil {
		if errors.Is(err, ErrMalformed) {
			return fmt.Errorf("%s: %w", what, err)
		}
		return malformed("%s: %v", what, err)
	}
	return nil
}

func marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimRight(buf.Bytes(), "\n"), nil
}

// unescaped writes two characters as themselves, as RFC 8785 does: encoding/json escapes them for JavaScript's sake. A
// backslash that is escaped itself is no escape's beginning.
var unescaped = strings.NewReplacer(`\\`, `\\`, `\u2028`, "\u2028", `\u2029`, "\u2029")

// canonical is RFC 8785 for what this package writes: objects with ASCII keys,
// strings, booleans and integers. Two replicas then mint the same bytes, and
// so the same challenge id, for one offer.
func canonical(v any) ([]byte, error) {
	raw, err := marshal(v)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil {
		return nil, err
	}
	raw, err = marshal(tree) // maps are written in key order
	if err != nil {
		return nil, err
	}
	return []byte(unescaped.Replace(string(raw))), nil
}
