package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gpupay/gpupay/channel"
)

// KeyVariable is the environment variable that may hold a program's key as hex. There is neither a flag nor a key of the
// configuration file for it: command lines are public, and configurations are copied.
const KeyVariable = "GPUPAY_KEY"

// The credential of systemd that may hold a keystore's passphrase, and the variable by which systemd says where its credentials are.
const (
	passphraseCredential = "passphrase"
	credentialsVariable  = "CREDENTIALS_DIRECTORY"
)

// KeyFlags are where a program finds its key.
type KeyFlags struct{ keystore, passphrase string }

func (k *KeyFlags) register(f *Flags) {
	f.Path(&k.keystore, "keystore", "", "keystore file of go-ethereum (`path`); without it $"+KeyVariable+" holds the key as hex")
	f.Path(&k.passphrase, "passphrase-file", "", "file with the keystore's passphrase (`path`); systemd's credential '"+passphraseCredential+"' if empty")
}

func (k *KeyFlags) load() (*channel.Key, error) {
	if k.keystore == "" {
		key, err := channel.KeyFromEnv(KeyVariable)
		if err != nil {
			return nil, fmt.Errorf("%w (or give --keystore)", err)
		}
		return key, nil
	}
	passphrase, from, err := k.secret()
	if err != nil {
		return nil, err
	}
	key, err := channel.OpenKeystore(k.keystore, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%w (--keystore %s, with the passphrase in %s)", err, k.keystore, from)
	}
	return key, nil
}

// secret reads the passphrase, and says where from.
func (k *KeyFlags) secret() (passphrase, from string, err error) {
	path, from := k.passphrase, "--passphrase-file "+k.passphrase
	if folder := os.Getenv(credentialsVariable); path == "" && folder != "" {
		path, from = filepath.Join(folder, passphraseCredential), "the credential '"+passphraseCredential+"'"
	}
	raw, err := os.ReadFile(path)
	switch {
	case path == "" || k.passphrase == "" && errors.Is(err, fs.ErrNotExist):
		return "", "", errors.New("--keystore needs --passphrase-file: a file with the keystore's passphrase (under systemd: LoadCredential=" + passphraseCredential +
			":FILE); there is no flag for the passphrase itself, because command lines are public")
	case err != nil:
		return "", "", fmt.Errorf("passphrase file: %w", err)
	}
	return strings.TrimRight(string(raw), "\r\n"), from, nil
}

// Keystore is the file that a key is to be written into, and its passphrase.
func (f *Flags) Keystore() (path, passphrase string, err error) {
	if f.key.keystore == "" {
		return "", "", Usage(errors.New("--keystore names no file to write the key into"))
	}
	passphrase, _, err = f.key.secret()
	return f.key.keystore, passphrase, err
}
