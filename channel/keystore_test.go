package channel_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
)

const passphrase = "canary of a passphrase"

// TestKeystoreIsWrittenOnce: a key that is made or imported is in a file for its owner alone, opens with its passphrase and with no other,
// and stays when another is made under its name, also at once.
func TestKeystoreIsWrittenOnce(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "key.json")
	made := make([]*channel.Key, 2)
	errs := make([]error, len(made))
	var work sync.WaitGroup
	for i := range made {
		work.Go(func() { made[i], errs[i] = channel.NewKeystore(path, passphrase) })
	}
	work.Wait()
	opened, err := channel.OpenKeystore(path, passphrase)
	if err != nil {
		t.Fatal(err)
	}
	good := 0
	for i, key := range made {
		if errs[i] == nil {
			if good++; key.Address() != opened.Address() {
				t.Errorf("%s is not the key in the file, %s", key, opened)
			}
		} else if !errors.Is(errs[i], fs.ErrExist) || !errors.Is(errs[i], channel.ErrKey) || key != nil {
			t.Errorf("%v, %v", key, errs[i])
		}
	}
	if good != 1 {
		t.Errorf("%d keys were made under one name: %v", good, errs)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	private, _ := crypto.GenerateKey()
	text := hex.EncodeToString(crypto.FromECDSA(private))
	if _, err := channel.ImportKeystore(path, passphrase, text); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over another one: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed: %v", err)
	}
	if _, err := channel.OpenKeystore(path, passphrase+"!"); err == nil || !strings.Contains(err.Error(), "wrong passphrase") || strings.Contains(err.Error(), "\n") {
		t.Errorf("with another passphrase: %v", err)
	}
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestImportKeystore: a key comes out as it went in, and what is no key is refused unquoted, as is an empty passphrase.
func TestImportKeystore(t *testing.T) {
	t.Parallel()
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	text, path := hex.EncodeToString(crypto.FromECDSA(private)), filepath.Join(t.TempDir(), "key.json")
	key, err := channel.ImportKeystore(path, passphrase, "0x"+text)
	if err != nil || key.Address() != crypto.PubkeyToAddress(private.PublicKey) {
		t.Fatalf("%v, %v", key, err)
	}
	if opened, err := channel.OpenKeystore(path, passphrase); err != nil || opened.Address() != key.Address() {
		t.Errorf("%v, %v", opened, err)
	}
	if raw, err := os.ReadFile(path); err != nil || bytes.Contains(raw, []byte(text)) || bytes.Contains(raw, []byte(passphrase)) {
		t.Errorf("the file has what it hides: %v", err)
	}
	for _, bad := range []string{"", text[:63], text + "0", strings.Repeat("0", 64), "canary" + text[6:]} {
		if _, err := channel.ImportKeystore(filepath.Join(t.TempDir(), "k"), passphrase, bad); !errors.Is(err, channel.ErrKey) || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%d digits: %v", len(bad), err)
		}
	}
	if _, err := channel.ImportKeystore(filepath.Join(t.TempDir(), "k"), "", text); !errors.Is(err, channel.ErrKey) {
		t.Errorf("without a passphrase: %v", err)
	}
	if _, err := channel.NewKeystore(filepath.Join(t.TempDir(), "none", "k"), passphrase); !errors.Is(err, fs.ErrNotExist) || strings.Contains(err.Error(), passphrase) {
		t.Errorf("in no folder: %v", err)
	}
}

// A key for a provider, in a keystore that its program opens with the same passphrase.
func ExampleNewKeystore() {
	folder, err := os.MkdirTemp("", "gpupay-example-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(folder)
	path := filepath.Join(folder, "provider.json")
	key, err := channel.NewKeystore(path, "from a file, never from a command line")
	if err != nil {
		panic(err)
	}
	opened, err := channel.OpenKeystore(path, "from a file, never from a command line")
	fmt.Println(opened.Address() == key.Address(), err)
	// Output: true <nil>
}
