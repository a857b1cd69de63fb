package model

import (
	"context"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
)

// A notary is a metering key that counts what it signs.
type notary struct {
	*channel.Key
	mu     sync.Mutex
	signed map[common.Hash]bool
}

func newNotary() *notary {
	return &notary{Key: channel.NewKey(key("meter")), signed: map[common.Hash]bool{}}
}

func (n *notary) Sign(ctx context.Context, digest common.Hash) ([]byte, error) {
	n.mu.Lock()
	n.signed[digest] = true
	n.mu.Unlock()
	return n.Key.Sign(ctx, digest)
}

func (n *notary) distinct() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.signed)
}

// TestRestored: with a copy of its database from before, a provider signs nothing more of a lease that went on since. With a
// copy of its whole machine it shows no fork to a renter that is there.
func TestRestored(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(3*markets(t)))
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		n := newNotary()
		m := newMarket(rt, seen, func(c *provider.Config) { c.Metering.Key = n })
		d := m.lease()
		files := []string{tillFile}
		machine := rapid.Bool().Draw(rt, "whole machine")
		if machine {
			files = append(files, tillFile+".signed")
		}
		m.hear(d, rapid.Uint64Range(1, 8).Draw(rt, "records before"))
		m.image(files, false)
		m.hear(d, rapid.Uint64Range(4, 12).Draw(rt, "records since"))
		if rapid.Bool().Draw(rt, "settled since") {
			ctx, cancel := context.WithTimeout(m.ctx, 10*time.Second)
			m.must(m.provider.Settle(ctx))
			cancel()
		}
		if !machine && rapid.Bool().Draw(rt, "nobody is there") {
			m.pause(d)
		}
		before := m.image(files, true, n.distinct)
		m.goesOnNot(d, machine)
		if after := n.distinct(); after != before && !machine {
			m.Fatalf("%d records were signed of a lease whose newest ones were lost", after-before)
		}
		m.pause(d)
		seen["restored"]++
		m.clearance()
	})
	t.Log(seen)
}

// goesOnNot: a provider that has forgotten records of a lease ends it, when it starts or, if only the renter can tell, when that
// is back.
func (m *market) goesOnNot(d *deal, later bool) {
	until := time.Now()
	if later {
		until = until.Add(10 * time.Second)
	}
	for m.provider.Service(d.id) == "active" {
		if time.Now().After(until) {
			m.pause(d) // which finds a fork, if it saw one
			m.Fatal("a provider goes on with a lease whose newest records it does not have")
		}
		time.Sleep(tick / 4)
	}
	time.Sleep(5 * tick)
}

// image copies files of the provider while it stands still, or puts the copies back, and has it go on.
func (m *market) image(files []string, back bool, last ...func() int) (n int) {
	m.shut()
	for _, f := range last {
		n = f()
	}
	for _, file := range files {
		if back {
			m.copyFile(file+".bak", file)
		} else {
			m.copyFile(file, file+".bak")
		}
	}
	m.open()
	return n
}

// lease is a deal that is paid for.
func (m *market) lease() *deal {
	ctx, cancel := context.WithTimeout(m.ctx, 20*time.Second)
	defer cancel()
	r := m.renters[0]
	rental, err := r.Rent(ctx, m.server.URL, renter.Options{Deposit: "0.05", PayEvery: 50 * time.Millisecond})
	m.must(err)
	d := &deal{by: r, rental: rental, id: rental.ID()}
	m.deals = append(m.deals, d)
	m.pay(d)
	return d
}

// hear waits until a renter has so many records more.
func (m *market) hear(d *deal, more uint64) {
	want := d.rental.Snapshot().Sequence + more
	for until := time.Now().Add(20 * time.Second); d.rental.Snapshot().Sequence < want; time.Sleep(tick / 4) {
		if time.Now().After(until) {
			m.Fatalf("a renter has %d records of %d: %+v", d.rental.Snapshot().Sequence, want, d.rental.Snapshot())
		}
	}
}
