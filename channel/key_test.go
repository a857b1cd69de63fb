package channel_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/keystore"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

const secret = "8f2a55949038a9610f50fb23b5883af3b4ecb3c3bb792cbcefbd1542c692be63"

func parseKey(t testing.TB, text string) *channel.Key {
	t.Helper()
	key, err := channel.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func TestParseKey(t *testing.T) {
	private, _ := crypto.HexToECDSA(secret)
	want := crypto.PubkeyToAddress(private.PublicKey)
	for _, text := range []string{secret, "0x" + secret, strings.ToUpper(secret)} {
		key := parseKey(t, text)
		sig, err := key.Sign(context.Background(), common.Hash{1})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := eip712.Recover(common.Hash{1}, sig); err != nil || got != want || key.Address() != want {
			t.Errorf("signs as %s, %v; want %s", got, err, want)
		}
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := parseKey(t, secret).Sign(done, common.Hash{}); !errors.Is(err, context.Canceled) {
		t.Errorf("signed after its context ended: %v", err)
	}
}

// badKeys are what people paste by mistake: every one holds most of a secret.
var badKeys = []string{
	secret[:63], secret + "0", "0x0x" + secret, secret[:63] + "g", strings.Repeat("0", 64), strings.Repeat("f", 64),
	" " + secret, secret[:32] + "\n" + secret[33:], "",
}

func TestKeyErrorsDoNotQuote(t *testing.T) {
	for _, text := range badKeys {
		_, err := channel.ParseKey(text)
		if !errors.Is(err, channel.ErrKey) {
			t.Errorf("%d characters: %v", len(text), err)
			continue
		}
		checkSilent(t, err.Error())
	}
}

// checkSilent fails if text holds a stretch of the secret.
func checkSilent(t *testing.T, text string) {
	t.Helper()
	for i := 0; i+8 <= len(secret); i++ {
		if strings.Contains(strings.ToLower(text), secret[i:i+8]) {
			t.Errorf("shows the key: %s", text)
			return
		}
	}
	number := new(big.Int).SetBytes(common.FromHex(secret)).String()
	if strings.Contains(text, number) || strings.Contains(text, fmt.Sprint(common.FromHex(secret))) {
		t.Errorf("shows the key: %s", text)
	}
}

func TestKeysNeverShow(t *testing.T) {
	key := parseKey(t, secret)
	payer := channel.Payer{Signer: key, Domain: testDomain}
	hidden := struct{ key channel.Key }{*key} // fmt cannot call methods here
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%t"} {
		for _, value := range []any{key, *key, payer, &payer, hidden, &hidden, []any{key}, map[string]any{"key": *key}} {
			checkSilent(t, fmt.Sprintf(verb, value))
		}
	}
	var log bytes.Buffer
	for _, logger := range []*slog.Logger{slog.New(slog.NewTextHandler(&log, nil)), slog.New(slog.NewJSONHandler(&log, nil))} {
		logger.Info("signing", "key", key, "value", *key, "payer", payer, "any", slog.AnyValue(key))
	}
	checkSilent(t, log.String())
	if !strings.Contains(log.String(), key.Address().Hex()) {
		t.Errorf("the log does not say whose key: %s", log.String())
	}
	encoded, err := json.Marshal([]any{key, *key})
	if err != nil {
		t.Fatal(err)
	}
	checkSilent(t, string(encoded))
	checkSilent(t, fmt.Errorf("failed with %v, %+v: %w", key, *key, channel.ErrKey).Error())
}

func TestKeyFromEnv(t *testing.T) {
	const name = "GPUPAY_TEST_KEY"
	for _, text := range badKeys {
		t.Setenv(name, text)
		if text == " "+secret { // space around it is forgiven
			continue
		}
		_, err := channel.KeyFromEnv(name)
		if !errors.Is(err, channel.ErrKey) || !strings.Contains(err.Error(), name) {
			t.Errorf("%d characters: %v", len(text), err)
			continue
		}
		checkSilent(t, err.Error())
	}
	t.Setenv(name, "0x"+secret+"\n")
	if key, err := channel.KeyFromEnv(name); err != nil || key.Address() != parseKey(t, secret).Address() {
		t.Errorf("%v, %v", key, err)
	}
}

func TestOpenKeystore(t *testing.T) {
	dir := t.TempDir()
	private, _ := crypto.HexToECDSA(secret)
	account, err := keystore.NewKeyStore(dir, keystore.LightScryptN, keystore.LightScryptP).ImportECDSA(private, "open sesame")
	if err != nil {
		t.Fatal(err)
	}
	path := account.URL.Path
	if key, err := channel.OpenKeystore(path, "open sesame"); err != nil || key.Address() != account.Address {
		t.Errorf("%v, %v; want %s", key, err, account.Address)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, []byte(`{"version":3,"crypto":{"kdf":"scrypt","kdfparams":{}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ path, passphrase, says string }{
		"wrong passphrase": {path, "close sesame", "passphrase"},
		"damaged":          {damaged, "open sesame", "not a Web3"},
		"a raw key":        {text, "open sesame", "not a Web3"},
		"missing":          {filepath.Join(dir, "missing"), "open sesame", "no such file"},
	} {
		_, err := channel.OpenKeystore(c.path, c.passphrase)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkSilent(t, err.Error())
		if strings.Contains(err.Error(), c.passphrase) {
			t.Errorf("%s: shows the passphrase: %v", name, err)
		}
	}
}

func FuzzParseKey(f *testing.F) {
	f.Add(secret)
	f.Add("0x" + secret)
	for _, text := range badKeys {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := channel.ParseKey(text)
		if err != nil {
			return
		}
		raw, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
		if err != nil {
			t.Fatalf("took %q: %v", text, err)
		}
		private, err := crypto.ToECDSA(raw)
		if err != nil || crypto.PubkeyToAddress(private.PublicKey) != key.Address() {
			t.Fatalf("read %q as %s: %v", text, key, err)
		}
	})
}
