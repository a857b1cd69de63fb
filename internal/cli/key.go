package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/gpupay/gpupay/channel"
)

// KeyVariable is the environment variable that may hold a program's key as hex. There is neither a flag nor a key of the
// configuration file for it: command lines are public, and configurations are copied.
const KeyVariable = "GPUPAY_KEY"

// KeyFlags are where a program finds its key.
type KeyFlags struct{ keystore, passphrase string }

func (k *KeyFlags) register(f *Flags) {
	f.Path(&k.keystore, "keystore", "", "keystore file of go-ethereum (`path`); without it $"+KeyVariable+" holds the key as hex")
	f.Path(&k.passphrase, "passphrase-file", "", "file with the keystore's passphrase (`path`)")
}

func (k *KeyFlags) load() (*channel.Key, error) {
	if k.keystore == "" {
		key, err := channel.KeyFromEnv(KeyVariable)
		if err != nil {
			return nil, fmt.Errorf("%w (or give --keystore)", err)
		}
		return key, nil
	}
	if k.passphrase == "" {
		return nil, errors.New("--keystore needs --passphrase-file: a file with the keystore's passphrase; there is no flag for the passphrase itself, because command lines are public")
	}
	passphrase, err := os.ReadFile(k.passphrase)
	if err != nil {
		return nil, fmt.Errorf("passphrase file: %w", err)
	}
	key, err := channel.OpenKeystore(k.keystore, strings.TrimRight(string(passphrase), "\r\n"))
	if err != nil {
		return nil, fmt.Errorf("%w (--keystore %s, with the passphrase in --passphrase-file %s)", err, k.keystore, k.passphrase)
	}
	return key, nil
}
