package proxy_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"reflect"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/proxy"
)

// TestWhereMoneyIs: who runs the proxy is told what is in the wallet and what lies at providers, where it is asked for, and that it is not
// known where the chain does not say.
func TestWhereMoneyIs(t *testing.T) {
	t.Parallel()
	d := newDesk(t, nil)
	by := time.Date(2026, 12, 1, 8, 0, 0, 0, time.UTC)
	n := func(base uint64) uint256.Int { return *uint256.NewInt(base) }
	d.purse.money = pool.Money{
		Wallet: n(9_000_000), Parked: n(1_000_000), Owed: n(250_000), Refundable: n(750_000), Settled: n(1), Promised: n(20_000), Coin: true,
		Channels: []pool.Channel{{URL: "https://u:secret@a.example/k/secret", Phase: "running", Parked: n(1_000_000), Owed: n(250_000), Refundable: n(750_000), Settled: n(1), From: by}},
	}
	ask := func(query string) (st proxy.Status) {
		w := httptest.NewRecorder()
		d.server.StatusHandler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1/healthz"+query, nil))
		if err := json.Unmarshal(w.Body.Bytes(), &st); err != nil || w.Code != http.StatusOK {
			t.Errorf("%d %s %v", w.Code, w.Body, err)
		}
		return st
	}
	if st := ask(""); st.Money != nil {
		t.Errorf("the chain is asked by each look at the health: %+v", st.Money)
	}
	got, want := ask("?money").Money, &proxy.MoneyStatus{
		Known: true, Wallet: "9.00", Parked: "1.00", Owed: "0.25", Refundable: "0.75", Paid: "0.000001", Promised: "0.02", Alone: true,
		Providers: []proxy.ParkedMoney{{Provider: "https://a.example", State: "running", Parked: "1.00", Owed: "0.25", Refundable: "0.75", Paid: "0.000001", Back: by}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	d.purse.money, d.purse.moneyErr = pool.Money{Channels: []pool.Channel{{URL: "https://a.example", Phase: "running"}}}, errors.New("no endpoint")
	st := ask("?money")
	if want = (&proxy.MoneyStatus{Providers: []proxy.ParkedMoney{{Provider: "https://a.example", State: "running"}}}); !reflect.DeepEqual(st.Money, want) || st.Left == "" {
		t.Errorf("%+v", st)
	}
}
