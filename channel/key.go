package channel

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/ethereum/go-ethereum/accounts/keystore"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/eip712"
)

// ErrKey marks a private key that cannot be used. Such an error never quotes
// what was given for one.
var ErrKey = errors.New("no usable private key")

// Key is a Signer with its private key in memory. However it is printed, logged
// or encoded, only its address shows.
type Key struct {
	address common.Address
	// A function, since no printer or debugger of values can look into one.
	sign func(digest common.Hash) ([]byte, error)
}

var _ Signer = (*Key)(nil)

// NewKey returns a Key of a private key.
func NewKey(private *ecdsa.PrivateKey) *Key {
	return &Key{
		address: crypto.PubkeyToAddress(private.PublicKey),
		sign:    func(digest common.Hash) ([]byte, error) { return eip712.Sign(digest, private) },
	}
}

// ParseKey reads a private key of 64 hex digits, with or without 0x.
func ParseKey(text string) (*Key, error) {
	digits := strings.TrimPrefix(text, "0x")
	if len(digits) != 64 {
		return nil, fmt.Errorf("%w: want 64 hex digits, have %d characters", ErrKey, len(digits))
	}
	raw, err := hex.DecodeString(digits)
	if err != nil { // the cause would quote a digit
		return nil, fmt.Errorf("%w: want 64 hex digits", ErrKey)
	}
	private, err := crypto.ToECDSA(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: zero, or not below the curve's order", ErrKey)
	}
	return NewKey(private), nil
}

// KeyFromEnv reads a private key from an environment variable.
func KeyFromEnv(name string) (*Key, error) {
	text := strings.TrimSpace(os.Getenv(name))
	if text == "" {
		return nil, fmt.Errorf("%w: environment variable %s is empty: set it to a private key of 64 hex digits", ErrKey, name)
	}
	key, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("environment variable %s: %w", name, err)
	}
	return key, nil
}

// OpenKeystore reads a go-ethereum keystore file (Web3 Secret Storage).
func OpenKeystore(path, passphrase string) (*Key, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: keystore: %w: give the path of a Web3 Secret Storage file, as go-ethereum's keystore directory holds", ErrKey, err)
	}
	key, err := decrypt(file, passphrase)
	if errors.Is(err, keystore.ErrDecrypt) {
		return nil, fmt.Errorf("%w: keystore %s: wrong passphrase", ErrKey, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: keystore %s is not a Web3 Secret Storage file", ErrKey, path)
	}
	return NewKey(key.PrivateKey), nil
}

// decrypt turns a panic of the keystore's reader, which trusts the file's shape,
// into an error: a damaged file is the operator's problem, not a crash.
func decrypt(file []byte, passphrase string) (key *keystore.Key, err error) {
	defer func() {
		if recover() != nil {
			err = ErrKey
		}
	}()
	return keystore.DecryptKey(file, passphrase)
}

// Address returns the key's address.
func (k *Key) Address() common.Address { return k.address }

// Sign signs a digest.
func (k *Key) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return k.sign(digest)
}

// String returns the address.
func (k Key) String() string { return "key of " + k.address.Hex() }

// GoString returns the address, for %#v.
func (k Key) GoString() string { return k.String() }

// Format prints the address, whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// LogValue logs the address.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText encodes the address.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }
