package provider

import (
	"net/http"
	"testing"

	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/wire"
)

// askAgain is that a credential is refused before the payer's deposit moves, and its renter told to ask for the price.
func (r *rig) askAgain(stale *wire.Credential) {
	r.Helper()
	resp := r.do("GET", "", stale)
	if err := problemIn(wire.PaymentExpired, resp); err != nil || resp.StatusCode != http.StatusPaymentRequired || resp.Header.Get("WWW-Authenticate") == "" {
		r.Errorf("%s, %v", resp.Status, err)
	}
	if has := r.balance(r.payer.Address()); has != 1_000_000 {
		r.Errorf("its payer has %d left of 1000000", has)
	}
}

// TestStaleChallengeOfAClassThatSellsOthers: the operator gives the name of a class to other GPUs. Nobody's deposit moves by a challenge of before,
// whose GPUs would be counted by the name: those of then may be let, and those of now are others than it pays for.
func TestStaleChallengeOfAClassThatSellsOthers(t *testing.T) {
	t.Parallel()
	for name, let := range map[string]bool{"the old ones are let": true, "the old ones are free": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, quiet, generousCredit, twoKinds)
			if r.inClass("a100"); let {
				r.open(1, 300_000, "?gpus=2").record()
			}
			r.payer = r.fund(t, 1_000_000)
			stale := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 300_000, 0)
			r.config.Classes = []Class{{ID: "a100", Model: "h100"}, {ID: "old", Model: "a100", PricePerGPUHour: "1.80"}}
			r.restart()
			r.askAgain(stale)
			r.open(3, 300_000, "").record()
		})
	}
}

// TestStaleChallengeOfOtherGPUs: the same of a provider without classes, whose next process has other GPUs.
func TestStaleChallengeOfOtherGPUs(t *testing.T) {
	r := newRig(t, quiet, generousCredit)
	stale := r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 300_000, 0)
	r.shut()
	r.config.Allocator, r.config.Source = nil, sim.New(2, sim.Options{Clock: testclock.Process(), Models: []string{"Simulated A100"}})
	r.start()
	r.askAgain(stale)
	r.open(2, 300_000, "").record()
}

// TestStaleChallengeOverNodes: TestStaleChallengeOfAClassThatSellsOthers of a gateway over nodes.
func TestStaleChallengeOverNodes(t *testing.T) {
	good := newOutpost(t)
	cheap := newCheapOutpost(t, good)
	r := newRig(t, good.link, generousCredit, quiet, func(c *Config) {
		c.Nodes.Links = append(c.Nodes.Links, NodeLink{Name: "south", URL: cheap.server.URL})
		c.Classes = []Class{{ID: "good", Model: "simulated gpu"}, {ID: "cheap", Model: "Cheap", PricePerGPUHour: "1.80"}}
	})
	r.inClass("cheap").open(1, 300_000, "?gpus=4").record()
	r.payer = r.fund(t, 1_000_000)
	stale := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 300_000, 0)
	r.config.Classes = []Class{{ID: "cheap", Model: "simulated gpu"}, {ID: "old", Model: "Cheap", PricePerGPUHour: "1.80"}}
	r.restart()
	eventually(t, "the nodes to be of the other class", func() bool { return *r.provider.free("cheap") == 2 })
	r.askAgain(stale)
}

// TestX402GPUsThatComeBackToNobody: a lease of x402 runs on the GPUs that a class had before its name was given to others, at another price.
// No deposit moves for the others, which are let, on the GPUs that the lease would give back.
func TestX402GPUsThatComeBackToNobody(t *testing.T) {
	r := newPayRig(t, twoKinds)
	b := r.buyer("/tick?class=a100&gpus=2")
	b.open(100_000)
	r.shut()
	r.config.Classes = []Class{{ID: "a100", Model: "h100"}, {ID: "old", Model: "a100", PricePerGPUHour: "1.80"}}
	r.start()
	r.buyer("/tick?class=a100&gpus=2").open(200_000)
	before := b.holds()
	resp := b.pay(b.depositing(b.next(), 200_000))
	for n := 0; resp.StatusCode == http.StatusPaymentRequired && n < 10; n++ {
		b.corrected(resp)
		resp = b.pay(b.depositing(b.next(), 200_000))
	}
	if err := problemIn(wire.NoCapacity, resp); err != nil || b.holds() != before {
		t.Errorf("%v; its channel holds %d after %d", err, b.holds(), before)
	}
}
