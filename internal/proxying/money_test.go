package proxying_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/units"
)

// money is what the proxy says of it to its owner's program.
func (h *house) money(admin string) *proxy.MoneyStatus {
	h.Helper()
	res, err := http.Get("http://" + admin + "/healthz?money")
	if err != nil {
		h.Fatal(err)
	}
	defer res.Body.Close()
	var s proxy.Status
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil || s.Money == nil {
		h.Fatalf("%+v, %v", s, err)
	}
	return s.Money
}

// base is a sum of dollars in base units.
func base(t *testing.T, dollars ...string) (sum uint64) {
	t.Helper()
	for _, text := range dollars {
		n, err := units.Parse(text, 6)
		if err != nil {
			t.Fatal(err)
		}
		sum += n.Uint64()
	}
	return sum
}

// shown is what gpupay budget prints, each row's words a space apart.
func (h *house) shown(admin string) string {
	h.Helper()
	var out strings.Builder
	began := time.Now()
	if err := proxying.Budget(h.Context(), &out, admin); err != nil {
		h.Error(err)
	}
	if took := time.Since(began); took > 10*time.Second {
		h.Errorf("gpupay budget took %s", took)
	}
	if found := proxying.Hidden.FindAllString(out.String(), -1); len(found) > 0 {
		h.Errorf("%q is said: %s", found, out.String())
	}
	var rows []string
	for _, row := range strings.Split(out.String(), "\n") {
		rows = append(rows, strings.Join(strings.Fields(row), " "))
	}
	return strings.Join(rows, "\n")
}

// TestWhereTheMoneyIs: gpupay budget says what is in the wallet, and of each provider what it holds, what of that is owed and what comes back until
// when; after a provider has vanished, over a restart and until all is back it adds up to the wallet's 20 dollars. A provider that hangs is
// not waited for; while the chain hangs it says that it is not known, and who holds some.
func TestWhereTheMoneyIs(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	real, bad := h.chain, badrpc.New(t, h.chain.URL)
	h.chain = &devchain.Chain{URL: bad.URL, Token: real.Token}
	url, admin, stop := h.serve(h.proxying())
	if status, text := h.chat(url, "none"); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	const gift = 20_000_000
	adds := func(m *proxy.MoneyStatus) {
		t.Helper()
		if !m.Known || base(t, m.Wallet, m.Parked, m.Paid) != gift || base(t, m.Owed, m.Refundable) != base(t, m.Parked) {
			t.Errorf("%+v", m)
		}
	}
	m := h.money(admin)
	if adds(m); len(m.Providers) != 1 || m.Providers[0].Refundable == "0.00" || !m.Alone || m.Providers[0].Back.IsZero() {
		t.Errorf("%+v", m)
	}
	text := h.shown(admin)
	for _, want := range []string{"In the wallet: $" + m.Wallet + "\nPaid to providers until now: $0.00\nAt providers: $" + m.Parked + ", of which $", h.site.URL + " $0.00 $" + m.Parked + " $", " UTC in use"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not shown: %s", want, text)
		}
	}

	h.hangs.Store(true)
	if text = h.shown(admin); !strings.Contains(text, "In the wallet: $"+m.Wallet) {
		t.Errorf("while the provider hangs: %s", text)
	}
	h.hangs.Store(false)

	over := make(chan struct{})
	t.Cleanup(func() { bad.Heal(); close(over) })
	bad.Instead("eth_call", func(*badrpc.Exchange) { <-over })
	if text = h.shown(admin); !strings.Contains(text, "is not known now") || !strings.Contains(text, h.site.URL+" holds some: in use") || !strings.Contains(text, "all together $") ||
		strings.Contains(text, "In the wallet") {
		t.Errorf("while the chain hangs: %s", text)
	}
	bad.Heal()
	adds(h.money(admin))

	h.gone.Store(true)
	h.site.CloseClientConnections()
	if err := stop(); err != nil {
		t.Error(err)
	}
	again := h.proxying()
	again.Client.Patience = 2 * time.Second
	_, admin, stop = h.serve(again)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) { // it listens before it has opened what pays
		if res, err := http.Get("http://" + admin + "/healthz"); err == nil {
			if _ = res.Body.Close(); res.StatusCode == http.StatusOK {
				break
			}
		}
	}
	adds(h.money(admin))
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		m = h.money(admin)
		if adds(m); len(m.Providers) == 1 && m.Providers[0].State == "leaving" || time.Now().After(end) {
			break
		}
	}
	if text = h.shown(admin); !strings.Contains(text, " UTC on its way back, without its help") {
		t.Error(text)
	}
	for end := time.Now().Add(time.Minute); len(m.Providers) > 0 && time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if err := real.AdvanceTime(5 * time.Minute); err != nil {
			t.Fatal(err)
		}
		m = h.money(admin)
		adds(m)
	}
	if text = h.shown(admin); m.Wallet != "20.00" || !strings.Contains(text, "In the wallet: $20.00\nPaid to providers until now: $0.00\nAt providers: $0.00\n") {
		t.Errorf("%+v, %s", m, text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestWalletWithoutCoin: a person whose wallet has none of the chain's own coin is told what that means for what providers hold.
func TestWalletWithoutCoin(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	p := h.proxying()
	keys, err := proxying.Keys(h.dir) // which makes the folder
	if err != nil || keys.Needed() {
		t.Fatal(err)
	}
	key, err := proxying.Wallet(h.dir, &h.screen)
	if err == nil {
		err = h.chain.Fund(t.Context(), key.Address(), nil, *uint256.NewInt(5_000_000))
	}
	if err != nil {
		t.Fatal(err)
	}
	url, admin, stop := h.serve(p)
	if status, text := h.chat(url, "none"); status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	if text := h.shown(admin); !strings.Contains(text, "none of the chain's own coin") || !strings.Contains(text, " with its help in use") {
		t.Error(text)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if err := h.proxying().Return(t.Context()); err != nil {
		t.Error(err)
	}
	if text := h.screen.text(); !strings.Contains(text, "in moments with its help, and without it once the wallet has some of the chain's own coin.") {
		t.Error(text)
	}
}
