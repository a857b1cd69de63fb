package nodekeys

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"

	ethcrypto "github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
)

// OpenMeterKey reads the key that a node signs usage records with, and makes one where there is no file. It stays on the
// node's host, beside the node's identity: a payee binds its address to each of the node's leases. Who loses it loses the
// leases that run there, which end, and no money.
func OpenMeterKey(path string) (*channel.Key, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		key, err := ethcrypto.GenerateKey()
		if err != nil {
			return nil, err
		}
		return channel.NewKey(key), writeNew(path, meterKeyKind, ethcrypto.FromECDSA(key), 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("metering key: %w", err)
	}
	block, _ := pem.Decode(raw)
	if block == nil || block.Type != meterKeyKind {
		return nil, fmt.Errorf("metering key %s: it is none: where no lease runs at the node remove the file, and another is made", path)
	}
	key, err := ethcrypto.ToECDSA(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("metering key %s: it is none", path) // without what is in it
	}
	return channel.NewKey(key), nil
}

// meterKeyKind is the PEM type of a metering key: the 32 bytes of a secp256k1 key, for which x509 has no form.
const meterKeyKind = "GPUPAY METER KEY"
