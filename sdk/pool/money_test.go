package pool_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/internal/rental"
	"github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/route"
	"github.com/gpupay/gpupay/sdk/settle"
)

// looks has a pool say where the money is all the while.
type looks struct {
	*testing.T
	mu     sync.Mutex
	looked int
	seen   map[common.Hash]bool
	fail   int
}

// at looks once, and holds what is said to its sums and to what the key was sent: no base unit is ever in two places, or in none.
func (l *looks) at(ctx context.Context, p *pool.Pool) (pool.Money, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m, err := p.Money(ctx)
	if err != nil {
		l.fail++
		return m, err
	}
	var parked, owed, refundable uint256.Int
	here := make(map[common.Hash]bool)
	for _, c := range m.Channels {
		if here[c.ID] || c.Parked.Uint64() != c.Owed.Uint64()+c.Refundable.Uint64() || c.From.IsZero() != c.Refundable.IsZero() {
			l.Errorf("%+v", c)
		}
		here[c.ID] = true
		parked.Add(&parked, &c.Parked)
		owed.Add(&owed, &c.Owed)
		refundable.Add(&refundable, &c.Refundable)
	}
	if parked != m.Parked || owed != m.Owed || refundable != m.Refundable {
		l.Errorf("%+v", m)
	}
	if sum := m.Wallet.Uint64() + m.Parked.Uint64() + m.Settled.Uint64(); sum != funds {
		l.Errorf("look %d is of %d base units, and there are %d: %+v", l.looked, sum, funds, m)
	}
	maps.Copy(l.seen, here)
	l.looked++
	return m, nil
}

// while looks until it is told that it is enough.
func (l *looks) while(p *pool.Pool) (enough func()) {
	ctx, cancel := context.WithCancel(l.Context())
	var over sync.WaitGroup
	over.Go(func() {
		for ctx.Err() == nil {
			if _, err := l.at(ctx, p); err != nil && ctx.Err() == nil {
				l.Error(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	return func() { cancel(); over.Wait() }
}

// TestRunningIsOwed: what a request that runs may come to is not said to come back.
func TestRunningIsOwed(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4) // 2500 base units a slot's second
	p := w.pool(w.client(), nil)
	offer(t, p, s)
	h, err := p.Reserve(t.Context(), "", anyPrice(s.URL), route.Base(20_000))
	if err != nil {
		t.Fatal(err)
	}
	ran := make(chan error, 1)
	go func() { _, err := send(t.Context(), h, ask{Millis: 1500}); ran <- err }()
	rig.Eventually(t, "the request", func() bool { return s.asked.Load() == 1 })
	m, err := p.Money(t.Context())
	if err != nil || m.Owed.LtUint64(20_000) {
		t.Errorf("%s are owed while a request of 20000 runs: %v", m.Owed.Dec(), err)
	}
	if err := errors.Join(<-ran, h.Done(t.Context(), route.Nano{})); err != nil {
		t.Error(err)
	}
	rig.Eventually(t, "what it came to", func() bool {
		m, err := p.Money(t.Context())
		return err == nil && !m.Owed.IsZero() && m.Owed.LtUint64(10_000)
	})
}

// TestMoneyAddsUp: wallet, what lies at providers and what they had are what the key was sent, to the base unit and at every moment: while rentals
// open, are paid, settled in part and close, after a provider has vanished, and after a restart.
func TestMoneyAddsUp(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	lost, fetches := w.shop("360", 4), w.shop("36", 1) // 25,000 and 10,000 base units a second
	fetches.shut()
	fetches.config.Provider.Settlement = settle.Policy{Interval: 200 * time.Millisecond, MinValue: *uint256.NewInt(1), LeastRow: *uint256.NewInt(1)}
	fetches.start(t)
	more := []*shop{w.shop("3.60", 4), w.shop("3.60", 4), w.shop("3.60", 4), w.shop("3.60", 4)}
	local, slow := w.chain, badrpc.New(t, w.chain.URL)
	slow.On("eth_call", badrpc.Delay(4*time.Millisecond))        // so that some look falls around each block with a deposit
	w.chain = &devchain.Chain{URL: slow.URL, Token: local.Token} // of the renter
	client := w.client()
	p := w.pool(client, nil)
	l := &looks{T: t, seen: make(map[common.Hash]bool)}
	enough := l.while(p)
	offer(t, p, append(more, lost, fetches)...)
	for _, s := range more {
		must(t, p, "", s, route.Base(5000), ask{Millis: 10})
	}
	must(t, p, "", lost, route.Base(50_000), ask{Millis: 300})
	must(t, p, "", fetches, route.Base(60_000), ask{Millis: 4000}) // of a credit of five seconds
	rig.Each(t, 50*time.Millisecond, "what a provider fetches while its rental runs", func() bool {
		m, err := l.at(t.Context(), p)
		return err == nil && !m.Settled.IsZero() && len(m.Channels) == 6
	})
	enough()
	lost.vanish()
	if err := errors.Join(p.Stop(), client.Close()); err != nil {
		t.Fatal(err)
	}

	client = w.client()
	p = w.pool(client, nil)
	enough = l.while(p)
	offer(t, p, fetches)
	must(t, p, "", fetches, route.Base(50_000), ask{Millis: 100})
	var left pool.Channel
	rig.Each(t, 100*time.Millisecond, "the vanished one to be left", func() bool {
		m, err := l.at(t.Context(), p)
		for _, c := range m.Channels {
			if c.URL == lost.URL && c.Phase == renter.PhaseLeaving {
				left = c
			}
		}
		return err == nil && left.ID != common.Hash{}
	})
	if left.Owed.IsZero() || left.Refundable.IsZero() || left.From.Before(time.Now().Add(5*time.Minute)) {
		t.Errorf("%+v", left)
	}
	rig.Each(t, 300*time.Millisecond, "its refund", func() bool {
		if err := local.AdvanceTime(5 * time.Minute); err != nil {
			t.Fatal(err)
		}
		m, err := l.at(t.Context(), p)
		return err == nil && !slices.ContainsFunc(m.Channels, func(c pool.Channel) bool { return c.ID == left.ID })
	})
	enough()
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.settled(client)
	for range rental.Finality + 5 { // no re-org can undo what is over
		local.Mine()
	}
	if left, err := client.Rentals(t.Context()); err != nil || len(left) != 0 {
		t.Fatal(left, err)
	}
	p = w.pool(client, nil)
	if m, err := l.at(t.Context(), p); err != nil || len(m.Channels) != 0 || m.Settled.IsZero() {
		t.Errorf("once all is over: %+v, %v", m, err)
	}
	l.Logf("%d looks at %d channels", l.looked, len(l.seen))
}

// TestMoneyUnknown: where the chain hangs, fails or changes its mind, the money is not known, and who has some and what counts today is: nothing
// is made up, and nobody waits for it.
func TestMoneyUnknown(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4)
	bad := badrpc.New(t, w.chain.URL)
	w.chain = &devchain.Chain{URL: bad.URL, Token: w.chain.Token} // of the renter
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	must(t, p, "", s, route.Base(5000), ask{Millis: 50})
	known, err := p.Money(t.Context())
	if err != nil || known.Wallet.Uint64()+known.Parked.Uint64() != funds || len(known.Channels) != 1 {
		t.Fatalf("%+v, %v", known, err)
	}
	over := make(chan struct{})
	t.Cleanup(func() { bad.Heal(); close(over) })
	hang := func(*badrpc.Exchange) { <-over }
	reorg := func(x *badrpc.Exchange) {
		if !bytes.Contains(x.Params, []byte("latest")) {
			x.Result = bytes.Replace(x.Result, []byte(`"extraData":"0x`), []byte(`"extraData":"0x01`), 1)
		}
	}
	for name, breaks := range map[string]func(){
		"hangs":             func() { bad.Instead("eth_call", hang); bad.Instead("eth_getBlockByNumber", hang) },
		"hangs at channels": func() { bad.Instead("eth_call", hang) },
		"fails":             func() { bad.Instead("eth_call", badrpc.Fail(-32000, "no state")) },
		"changes its mind":  func() { bad.On("eth_getBlockByNumber", reorg) },
	} {
		breaks()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		began := time.Now()
		m, err := p.Money(ctx)
		cancel()
		bad.Heal()
		if took := time.Since(began); err == nil || took > 4*time.Second {
			t.Errorf("%s: %v after %s", name, err, took)
		}
		want := pool.Channel{ID: known.Channels[0].ID, URL: s.URL, Phase: renter.PhaseRunning}
		if !m.Wallet.IsZero() || !m.Parked.IsZero() || m.Today.IsZero() || len(m.Channels) != 1 || m.Channels[0] != want {
			t.Errorf("%s: %+v", name, m)
		}
	}
	if m, err := p.Money(t.Context()); err != nil || m.Wallet != known.Wallet || m.Parked != known.Parked {
		t.Errorf("once the chain answers again: %+v, %v", m, err)
	}
}

// TestMoneyWithoutCoin: of a key that cannot ask the chain for anything it is not said when money is back.
func TestMoneyWithoutCoin(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	key, err := crypto.GenerateKey()
	if err == nil {
		err = w.chain.Fund(t.Context(), crypto.PubkeyToAddress(key.PublicKey), new(big.Int), *uint256.NewInt(funds))
	}
	if err != nil {
		t.Fatal(err)
	}
	w.key = key
	s := w.shop("36", 4)
	p := w.pool(w.client(), nil)
	offer(t, p, s)
	must(t, p, "", s, route.Base(5000), ask{Millis: 50})
	m, err := p.Money(t.Context())
	if err != nil || m.Coin || len(m.Channels) != 1 || m.Channels[0].Refundable.IsZero() || !m.Channels[0].From.IsZero() || m.Wallet.Uint64()+m.Parked.Uint64() != funds {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestMoneyOfOneToken: what was paid in another token, before this one, is no dollars of this one.
func TestMoneyOfOneToken(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	must(t, p, "", s, route.Base(5000), ask{Millis: 50})
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	p = w.pool(client, nil)
	if m, err := p.Money(t.Context()); err != nil || m.Settled.IsZero() || m.Settled.Uint64()+m.Wallet.Uint64() != funds {
		t.Errorf("%s were paid: %v", m.Settled.Dec(), err)
	}
	if err := errors.Join(p.Stop(), client.Close()); err != nil {
		t.Fatal(err)
	}
	opts := bind.NewKeyedTransactor(w.chain.Keys[7], big.NewInt(devchain.ChainID))
	other, tx, err := bind.DeployContract(opts, common.FromHex(testtoken.TestTokenMetaData.Bin), w.chain.Backend, nil)
	if err == nil {
		_, err = bind.WaitDeployed(t.Context(), w.chain.Backend, tx.Hash())
	}
	if err != nil {
		t.Fatal(err)
	}
	w.chain = &devchain.Chain{URL: w.chain.URL, Token: other}
	if m, err := w.pool(w.client(), nil).Money(t.Context()); err != nil || !m.Settled.IsZero() || !m.Wallet.IsZero() {
		t.Errorf("%+v, of another token: %v", m, err)
	}
}

// TestAnotherWalletOnTheSameFiles: a rental that runs is not gone on with by another wallet, nor in another token, which is told whose it is.
func TestAnotherWalletOnTheSameFiles(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	s := w.shop("36", 4)
	client := w.client()
	p := w.pool(client, nil)
	offer(t, p, s)
	must(t, p, "", s, route.Base(5000), ask{Millis: 50})
	if err := errors.Join(p.Stop(), client.Close()); err != nil {
		t.Fatal(err)
	}
	own := w.key
	w.key = w.chain.Keys[6]
	other := w.client()
	_, err := pool.Open(t.Context(), pool.Config{Client: other, File: filepath.Join(w.dir, "pool.db"), Budget: "0.50", Log: rig.Warnings(t)})
	if err == nil || !strings.Contains(err.Error(), crypto.PubkeyToAddress(own.PublicKey).Hex()) || !strings.Contains(err.Error(), s.URL) {
		t.Errorf("another wallet: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	w.key = own
	if p = w.pool(w.client(), nil); p.Close(t.Context()) != nil {
		t.Error("its own wallet does not get it back")
	}
}
