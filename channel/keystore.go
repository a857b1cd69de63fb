package channel

import (
	"crypto/ecdsa"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ethereum/go-ethereum/accounts/keystore"
	"github.com/ethereum/go-ethereum/crypto"
)

// NewKeystore makes a private key and writes it into a new keystore file (Web3 Secret Storage, scrypt), which only its owner can read. It
// writes over nothing: where there is a file of the name, that is an error that wraps fs.ErrExist. The key is not handed out before its
// file is on disk and was read back with the passphrase: money may be sent to its address at once.
func NewKeystore(path, passphrase string) (*Key, error) {
	private, err := crypto.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("%w: making one: %w", ErrKey, err)
	}
	return writeKeystore(path, passphrase, private)
}

// ImportKeystore is NewKeystore of a private key that there is, as ParseKey reads it.
func ImportKeystore(path, passphrase, text string) (*Key, error) {
	if _, err := ParseKey(text); err != nil { // whose errors quote nothing
		return nil, err
	}
	if len(text) > 64 {
		text = text[len(text)-64:]
	}
	private, err := crypto.HexToECDSA(text)
	if err != nil {
		return nil, fmt.Errorf("%w: want 64 hex digits", ErrKey)
	}
	return writeKeystore(path, passphrase, private)
}

func writeKeystore(path, passphrase string, private *ecdsa.PrivateKey) (*Key, error) {
	if passphrase == "" {
		return nil, fmt.Errorf("%w: the passphrase is empty: whoever gets the keystore would have the key", ErrKey)
	}
	if _, err := os.Lstat(path); err == nil { // before a second of scrypt
		return nil, fmt.Errorf("%w: keystore %s: %w: nothing is written over it; name another file", ErrKey, path, os.ErrExist)
	}
	stored := &keystore.Key{Address: crypto.PubkeyToAddress(private.PublicKey), PrivateKey: private}
	rand.Read(stored.Id[:]) // never fails
	stored.Id[6], stored.Id[8] = stored.Id[6]&0x0f|0x40, stored.Id[8]&0x3f|0x80
	document, err := keystore.EncryptKey(stored, passphrase, keystore.StandardScryptN, keystore.StandardScryptP)
	if err != nil {
		return nil, fmt.Errorf("%w: encrypting the keystore: %w", ErrKey, err)
	}
	again, err := decrypt(document, passphrase)
	if err != nil || again.Address != stored.Address {
		return nil, fmt.Errorf("%w: the keystore that was made does not open: nothing was written", ErrKey)
	}
	if err := writeOnce(path, document); err != nil {
		return nil, fmt.Errorf("%w: keystore %s: %w", ErrKey, path, err)
	}
	return NewKey(private), nil
}

// writeOnce writes a file that is whole or not there, and none over another one: it is linked to its name when it is on disk.
func writeOnce(path string, document []byte) error {
	folder := filepath.Dir(path)
	file, err := os.CreateTemp(folder, ".keystore-") // for its owner alone
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(document)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		return err
	}
	if err := os.Link(file.Name(), path); err != nil {
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%w: nothing is written over it; name another file", os.ErrExist)
		}
		return err
	}
	directory, err := os.Open(folder)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}
