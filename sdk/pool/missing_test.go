package pool_test

import (
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/route"
)

var asked = []string{"test"}

// TestWalletIsFilled: what an empty wallet needs is said, and it is asked again as soon as that is there.
func TestWalletIsFilled(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	var err error
	if w.key, err = crypto.GenerateKey(); err != nil {
		t.Fatal(err)
	}
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	var short *pool.WalletError
	if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(5000)); !errors.As(err, &short) || short.Address != client.Address() || short.Needs.IsZero() {
		t.Fatalf("%v", err)
	}
	for range 3 {
		if _, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(5000)); !errors.As(err, &short) || !errors.Is(err, pool.ErrEndpoint) {
			t.Errorf("%v", err)
		}
	}
	m := p.Missing(t.Context(), asked)
	if len(p.Endpoints()) != 0 || len(m) != 1 || !errors.As(m[0].Err, &short) {
		t.Errorf("%+v", m)
	}
	for _, want := range []string{client.Address().Hex(), short.Token.Hex(), short.Symbol, "chain 1337"} {
		if !strings.Contains(short.Error(), want) {
			t.Errorf("%q is not said: %s", want, short)
		}
	}
	if err := w.chain.Fund(t.Context(), client.Address(), big.NewInt(0), short.Needs); err != nil {
		t.Fatal(err)
	}
	filled := time.Now()
	rig.Each(t, 100*time.Millisecond, "the wallet to be looked at", func() bool { return len(p.Missing(t.Context(), asked)) == 0 })
	if took := time.Since(filled); took > 15*time.Second {
		t.Errorf("it took %s", took)
	}
	must(t, p, "", s, route.Base(5000), ask{Millis: 10})
}

// TestSilentProviderIsAskedAgain: a request for the model of a provider that was down has it be asked again, however long it has been silent.
func TestSilentProviderIsAskedAgain(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4)
	s.dead.Store(true)
	p := w.pool(w.client(), nil)
	if err := p.Set([]pool.Candidate{{URL: s.URL, Model: "test"}}); err != nil {
		t.Fatal(err)
	}
	rig.Each(t, 100*time.Millisecond, "long pauses", func() bool {
		m := p.Missing(t.Context(), asked)
		return len(m) == 1 && m[0].Err != nil && m[0].URL == s.URL && time.Until(m[0].Again) > 12*time.Second
	})
	s.dead.Store(false)
	back := time.Now()
	for len(p.Missing(t.Context(), asked)) > 0 && time.Since(back) < 10*time.Second { // it would be asked by itself only later
		time.Sleep(100 * time.Millisecond)
	}
	if n := len(p.Endpoints()); n != 1 {
		t.Errorf("%d endpoints %s after it was back", n, time.Since(back))
	}
	if m := p.Missing(t.Context(), []string{"other"}); len(m) != 0 {
		t.Errorf("%+v", m)
	}
}
