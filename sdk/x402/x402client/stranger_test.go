package x402client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// offered is what the honest provider asks for a tick.
func (n *tenant) offered() x402.PaymentRequired {
	n.Helper()
	resp, err := http.Get(n.Server.URL + "/tick?gpus=1")
	if err != nil {
		n.Fatal(err)
	}
	defer resp.Body.Close()
	said, err := x402.ParsePaymentRequired(resp.Header)
	if err != nil {
		n.Fatal(err)
	}
	return said
}

// pass pays the honest provider for a tick with a payment that somebody else was given.
func (n *tenant) pass(p x402.PaymentPayload) (*http.Response, []byte) {
	n.Helper()
	req, err := http.NewRequestWithContext(n.Context(), http.MethodGet, n.Server.URL+"/tick?gpus=1", nil)
	if err == nil {
		err = p.Set(req.Header)
	}
	if err != nil {
		n.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		n.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		n.Fatal(err)
	}
	return resp, body
}

// copycat is somebody's site that asks for what an honest provider asks for, with its payee, and answers a payment as it likes.
func (n *tenant) copycat(change func(*x402.PaymentRequired), paid func(http.ResponseWriter, x402.PaymentPayload)) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if p, err := x402.ParsePaymentPayload(q.Header); err == nil {
			paid(w, p)
			return
		}
		said := n.offered()
		if change != nil {
			change(&said)
		}
		if err := said.Set(w.Header()); err != nil {
			n.Error(err)
		}
		w.WriteHeader(http.StatusPaymentRequired)
	}))
	n.Cleanup(s.Close)
	return s
}

// asks is an offer of another amount, whose deposits may be as small.
func asks(said *x402.PaymentRequired, amount uint64) {
	o, least := said.Accepts[0], wireUnits(1)
	extra := o.Extra
	extra.MinDeposit = &least
	said.Accepts = []x402.Requirements{{Network: o.Network, Amount: wireUnits(amount), Asset: o.Asset, PayTo: o.PayTo, MaxTimeoutSeconds: 900, Extra: extra}}
}

func (n *tenant) visit(url string) {
	n.Helper()
	resp, err := n.x.Client().Get(url)
	if err != nil {
		n.Log("the stranger's site:", err)
		return
	}
	resp.Body.Close()
}

// TestX402StrangerReachesNoLease: somebody's site that copies the 402 of an honest provider passes on there what it is paid with, before
// the renter rents and while it does. It is served no tick of the renter's lease, whose access document it would be shown.
func TestX402StrangerReachesNoLease(t *testing.T) {
	t.Parallel()
	for name, first := range map[string]bool{"before the lease": true, "in the lease": false} {
		t.Run(name, func(t *testing.T) {
			n := newTenant(t, newPayRig(t))
			var stolen wire.Tick
			stranger := n.copycat(nil, func(w http.ResponseWriter, p x402.PaymentPayload) {
				p.Accepted = n.offered().Accepts[0]
				resp, body := n.pass(p)
				if resp.StatusCode == http.StatusOK {
					if err := json.Unmarshal(body, &stolen); err != nil {
						t.Error(err)
					}
				}
				for k, v := range resp.Header {
					w.Header()[k] = v
				}
				w.WriteHeader(resp.StatusCode)
				_, _ = w.Write(body)
			})
			if !first {
				n.tick()
			}
			for range 3 {
				n.visit(stranger.URL + "/weather")
			}
			if tick := n.tick(); tick.Lease == stolen.LeaseID {
				t.Errorf("a stranger was served a tick of lease %s, and told how to reach it: %s", tick.Lease, stolen.Access)
			}
			if stolen.LeaseID.Hex() == (wire.Tick{}).LeaseID.Hex() {
				t.Error("the stranger was served nothing with its own channel: the test shows nothing")
			}
		})
	}
}

// TestX402StrangerEndsNoLease: nor does it have the renter's lease ended and its channel emptied by asking for a refund with what
// it was paid with.
func TestX402StrangerEndsNoLease(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	ours := n.tick()
	refunded := false
	var shown *x402.PaymentRequired
	stranger := n.copycat(func(said *x402.PaymentRequired) { asks(said, 1) }, func(w http.ResponseWriter, p x402.PaymentPayload) {
		time.Sleep(500 * time.Millisecond) // until the lease has used its slack: its charge stands still
		p.Accepted, p.Payload.Type, p.Payload.Deposit, p.Payload.Refund = n.offered().Accepts[0], x402.TypeRefund, nil, nil
		resp, _ := n.pass(p)
		if resp.StatusCode == http.StatusOK {
			refunded = true
			return
		}
		said, err := x402.ParsePaymentRequired(resp.Header)
		if err != nil || said.Accepts[0].Extra.ChannelState == nil || said.Accepts[0].Extra.VoucherState == nil {
			return
		}
		shown = &said
		base := wireUnits(said.Accepts[0].Extra.ChannelState.ChargedCumulativeAmount.Uint64() - 1)
		said.Accepts[0].Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &base}
		asks(&said, 1)
		said.Error = string(x402.CodeCumulativeMismatch)
		_ = said.Set(w.Header())
		w.WriteHeader(http.StatusPaymentRequired)
	})
	for range 4 {
		if n.visit(stranger.URL + "/weather"); refunded {
			t.Fatal("a stranger took a refund of the renter's channel")
		}
	}
	if shown != nil {
		t.Error("a stranger was shown what the provider keeps of the renter's channel")
	}
	if tick := n.tick(); tick.Lease != ours.Lease {
		t.Errorf("lease %s was ended", ours.Lease)
	}
}

// TestX402StrangersDepositHoldsUpNoPayee: a deposit of next to nothing that somebody's site keeps back holds up no payment at the
// provider that it names, which begins a lease and goes on with one.
func TestX402StrangersDepositHoldsUpNoPayee(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	amount := uint64(1)
	withheld := 0
	stranger := n.copycat(func(said *x402.PaymentRequired) { asks(said, amount) }, func(w http.ResponseWriter, p x402.PaymentPayload) {
		if p.Payload.Deposit != nil {
			withheld++
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	n.visit(stranger.URL)
	if withheld == 0 {
		t.Fatal("no deposit was signed")
	}
	began := n.tick()
	amount = 2_000 // more than any tick's ceiling
	n.visit(stranger.URL)
	for range 30 { // past the first deposit
		if tick := n.tick(); tick.Lease != began.Lease {
			t.Fatalf("lease %s was ended", began.Lease)
		}
	}
}

// TestX402StrangerHoldsNoTurn: somebody's site that names an honest provider's payee and does not answer what it is paid with holds up
// neither the provider's tick, nor its refund, nor leaving its channel.
func TestX402StrangerHoldsNoTurn(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	id := n.tick().Channel
	var paid atomic.Bool
	stop := make(chan struct{})
	stranger := n.copycat(nil, func(http.ResponseWriter, x402.PaymentPayload) {
		paid.Store(true)
		<-stop
	})
	ended := make(chan struct{})
	go func() { defer close(ended); n.visit(stranger.URL) }()
	defer func() { close(stop); <-ended }()
	for deadline := time.Now().Add(10 * time.Second); !paid.Load(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the stranger was not paid")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for name, do := range map[string]func() error{
		"tick":   func() error { _, err := n.rental.Tick(ctx); return err },
		"refund": func() error { _, err := n.rental.Close(ctx); return err },
		"leave": func() error {
			_, err := n.x.Leave(ctx, id) // it has no coin for it
			return err
		},
	} {
		if err := do(); ctx.Err() != nil {
			t.Errorf("%s of the honest provider's channel waits for the stranger: %v", name, err)
		}
	}
}

// TestX402EachSiteHasItsOwnChannel: sites that name one payee are paid from a channel each, within the caps of the payee, whichever
// client of the renter pays; two names of one site, by SameSite, from one.
func TestX402EachSiteHasItsOwnChannel(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	x := s.client(wallet.Caps{PricePerGPUHour: "1", PerLease: "0.05", PerDay: "1", PerPayee: "0.025"}, stallOptions)
	s.buy(x)
	sites := []string{s.Server.URL}
	for range 2 {
		other := httptest.NewServer(s)
		defer other.Close()
		sites = append(sites, other.URL)
	}
	get := func(x *Client, url string) error {
		s.Base, s.Newest = 0, nil // it counts each channel alone
		resp, err := x.Client().Get(url)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	if err := get(x, sites[1]); err != nil {
		t.Fatal(err)
	}
	var capped *channel.CapError
	if err := get(x, sites[2]); !errors.As(err, &capped) || capped.Cap != channel.CapPayee {
		t.Errorf("a third deposit for one payee: %v", err)
	}
	all, err := x.Channels(t.Context())
	if err != nil || len(all) != 2 || all[0].Terms.Salt == all[1].Terms.Salt {
		t.Fatalf("%+v, %v", all, err)
	}
	named, err := New(t.Context(), x.w, Options{MaxPrice: "0.001", SameSite: map[string]string{peer.SiteOf(sites[2]): sites[1] + "/answers"}})
	if err != nil {
		t.Fatal(err)
	}
	paid := len(s.Paid)
	s.Base = testrig.SellerCharge
	if resp, err := named.Client().Get(sites[2]); err != nil || resp.StatusCode != http.StatusOK || len(s.Paid) != paid+1 {
		t.Fatalf("another name of a site: %v, %v", resp, err)
	}
	known, err := x.accounts().Load(t.Context(), common.Hash(s.Paid[paid].Payload.Voucher.ChannelID))
	if err != nil || known == nil || known.PaidSite() != peer.SiteOf(sites[1]) {
		t.Errorf("it was paid from %+v, %v", known, err)
	}
}

// older has the only channel be one of a version before sites had their own: with the client's bare salt.
func (s *stall) older(x *Client) common.Hash {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), http.MethodGet, s.Server.URL+"/answer", nil)
	if err != nil {
		s.Fatal(err)
	}
	b, err := x.choose(s.Context(), &request{req: req}, x402.PaymentRequired{Accepts: []x402.Requirements{s.Offer}}, x.maxPrice)
	if err != nil {
		s.Fatal(err)
	}
	b.terms.Salt = x.options.Salt
	b.id = b.terms.ID()
	resp, err := b.buy(s.Context())
	if err != nil || resp.StatusCode != http.StatusOK {
		s.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
	known, err := x.accounts().Load(s.Context(), b.id)
	if err != nil {
		s.Fatal(err)
	}
	known.Site, known.Salt = "", common.Hash{}
	if err := x.accounts().Save(s.Context(), known); err != nil {
		s.Fatal(err)
	}
	return b.id
}

// TestX402OlderChannelStaysWithItsSite: a channel of a database from before sites had their own is paid from at the site that was
// paid from it first, counts there as its one channel, and is paid from nowhere else.
func TestX402OlderChannelStaysWithItsSite(t *testing.T) {
	for _, salt := range []common.Hash{{}, {7}} {
		s := newStall(t, testrig.NewX402Market(t))
		options := Options{MaxPrice: "0.001", Salt: salt}
		x := s.client(stallCaps, options)
		id := s.older(x)
		if s.buy(x); s.only(x).ID != id {
			t.Errorf("paid from %+v", s.only(x))
		}
		honest := s.Offer
		s.Offer.Extra.WithdrawDelay++
		if _, err := s.get(x); !errors.Is(err, ErrNotOffered) {
			t.Errorf("other terms, while it holds money: %v", err)
		}
		if r, err := x.Refund(t.Context(), s.Server.URL, ""); errors.Is(err, ErrNotOffered) || len(s.Paid) < 3 || common.Hash(s.Paid[len(s.Paid)-1].Payload.Voucher.ChannelID) != id {
			t.Errorf("its refund under other terms: %+v, %v", r, err)
		}
		s.Offer = honest
		elsewhere := httptest.NewServer(s)
		defer elsewhere.Close()
		paid := len(s.Paid)
		if resp, err := x.Client().Get(elsewhere.URL); err == nil {
			resp.Body.Close()
		}
		for _, p := range s.Paid[paid:] {
			if common.Hash(p.Payload.Voucher.ChannelID) == id {
				t.Error("another site was paid from it")
			}
		}
		if len(s.Paid) == paid {
			t.Error("the other site was not paid: the test shows nothing")
		}
		s.Base, s.Newest = 0, nil
		s.database = filepath.Join(t.TempDir(), "new.db") // only the chain knows of it now
		x = s.client(stallCaps, options)
		paid = len(s.Paid)
		if _, err := x.Refund(t.Context(), s.Server.URL, ""); len(s.Paid) == paid || common.Hash(s.Paid[paid].Payload.Voucher.ChannelID) != id {
			t.Errorf("a refund of it with a new database: %v", err)
		}
	}
}
