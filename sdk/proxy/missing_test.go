package proxy_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestWhatIsMissingIsSaid: who asks for a model whose providers are missing is told why, whether to ask again, and what to send where.
func TestWhatIsMissingIsSaid(t *testing.T) {
	t.Parallel()
	empty := &pool.WalletError{Address: common.HexToAddress("0xaa"), Token: common.HexToAddress("0xbb"), Symbol: "USDC", Decimals: 6, ChainID: 8453, Needs: *uint256.NewInt(66_000)}
	down := pool.Missing{URL: "https://a.example", Err: errors.New("channel refused"), Again: time.Now().Add(time.Minute)}
	for name, c := range map[string]struct {
		missing []pool.Missing
		status  int
		code    string
		retry   string
		words   []string
	}{
		"down":   {[]pool.Missing{down}, http.StatusServiceUnavailable, "providers_failed", "true", []string{"https://a.example did not answer", "again in"}},
		"closed": {[]pool.Missing{{URL: "https://a.example", Err: fmt.Errorf("no: %w", wire.NotServed.With("channel: its server is down")), Again: down.Again}}, http.StatusServiceUnavailable, "providers_failed", "true", []string{"https://a.example takes no requests now", "again in"}},
		"empty":  {[]pool.Missing{{URL: "https://a.example", Err: empty}, down}, http.StatusPaymentRequired, "wallet_empty", "false", []string{empty.Address.Hex(), empty.Token.Hex(), "$0.066", "USDC", "Base, chain 8453"}},
		"dear":   {[]pool.Missing{{URL: "https://a.example", Err: fmt.Errorf("no: %w", wallet.ErrPrice)}}, http.StatusNotFound, "no_provider_fits", "false", []string{"--max-price"}},
		"nobody": {nil, http.StatusServiceUnavailable, "providers_failed", "true", nil},
	} {
		d := newDesk(t, nil, func(_ *proxy.Config, p *purse) { p.missing = c.missing })
		a := d.chat("")
		if a.StatusCode != c.status || a.code() != c.code || a.Header.Get("X-Should-Retry") != c.retry || proxying.Hidden.MatchString(a.text) {
			t.Errorf("%s: %d %s", name, a.StatusCode, a.text)
		}
		for _, want := range c.words {
			if !strings.Contains(a.text, want) {
				t.Errorf("%s: %q is not said: %s", name, want, a.text)
			}
		}
	}
}

// TestWalletFailsAtReserving: a provider for whom the wallet holds too little is not blamed, and who asked is told what to send where.
func TestWalletFailsAtReserving(t *testing.T) {
	t.Parallel()
	e := newEngine(t, well)
	d := newDesk(t, []*engine{e})
	d.purse.refuse[e.URL] = fmt.Errorf("no: %w", &pool.WalletError{Symbol: "USDC", Decimals: 6, Needs: *uint256.NewInt(66_000)})
	for range 8 {
		if a := d.chat(""); a.StatusCode != http.StatusPaymentRequired || a.code() != "wallet_empty" {
			t.Fatalf("%d %s", a.StatusCode, a.text)
		}
	}
	delete(d.purse.refuse, e.URL)
	if a := d.chat(""); a.StatusCode != http.StatusOK {
		t.Errorf("%d %s", a.StatusCode, a.text)
	}
}
