package x402client

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// frozen is a clock on which no time passes.
type frozen struct {
	metering.Clock
	at metering.Instant
}

func (f frozen) Now() metering.Instant { return f.at }
func (f frozen) BootID() string        { return "frozen" }

// rewriteTick changes what a tick is answered by.
func rewriteTick(t *testing.T, change func(*wire.Tick)) func(*http.Response) {
	return func(resp *http.Response) {
		var tick wire.Tick
		body, err := io.ReadAll(resp.Body)
		if err != nil || json.Unmarshal(body, &tick) != nil {
			t.Errorf("%s: %v", body, err)
		}
		change(&tick)
		if body, err = json.Marshal(tick); err != nil {
			t.Error(err)
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
}

// TestX402StrangerAccusesNoPayee: somebody's site names the payee of an honest provider in its 402 and answers the payment by a
// forgery. It is paid no more; the provider is, as before, also by a renter that was started anew.
func TestX402StrangerAccusesNoPayee(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.tick()
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		resp, err := http.Get(n.Server.URL + "/tick?gpus=1")
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		said, err := x402.ParsePaymentRequired(resp.Header)
		if err != nil {
			t.Error(err)
			return
		}
		o := said.Accepts[0]
		said.Accepts = []x402.Requirements{{Network: o.Network, Amount: wireUnits(100), Asset: o.Asset, PayTo: o.PayTo, MaxTimeoutSeconds: o.MaxTimeoutSeconds, Extra: o.Extra}}
		if _, err := x402.ParsePaymentPayload(q.Header); err == nil {
			base := wireUnits(7)
			said.Error = string(x402.CodeCumulativeMismatch)
			said.Accepts[0].Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &base}
			said.Accepts[0].Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: base}
		}
		if err := said.Set(w.Header()); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusPaymentRequired)
	}))
	defer stranger.Close()
	payee := n.account().Payee
	for range 2 {
		var d *wallet.Dispute
		if resp, err := n.x.Client().Get(stranger.URL); !errors.As(err, &d) || !errors.Is(err, ErrForged) && n.accountAt(stranger.URL).Accused == nil {
			t.Fatalf("the stranger's site: %v, %v", resp, err)
		}
		if err := n.x.w.Vet(t.Context(), payee, peer.SiteOf(n.Server.URL)); err != nil {
			t.Errorf("a rental of the honest provider: %v", err)
		}
		n.tick()
		if caught, honest := n.accountAt(stranger.URL).Violation(), n.accountAt(n.Server.URL).Violation(); caught == "" || honest != "" {
			t.Errorf("the stranger's channel is said to be caught at %q, the honest one at %q", caught, honest)
		}
		n.open()
	}
}

// TestX402RelayAccusesNoPayee: somebody's site passes ticks on to an honest provider and keeps an answer back until it is asked for
// another one: the record that the provider signed says more time than passed since. The site is paid no more; the provider is.
func TestX402RelayAccusesNoPayee(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.change = func(c *wallet.Config) { c.Tolerance = time.Millisecond }
	n.open()
	provider := httputil.NewSingleHostReverseProxy(parsed(t, n.Server.URL))
	var first string
	kept := httptest.NewRecorder()
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		switch paid := q.Header.Get(x402.HeaderSignature); paid {
		case "":
			provider.ServeHTTP(w, q)
		case first:
			w.WriteHeader(http.StatusBadRequest)
		default:
			if first == "" {
				first = paid
				provider.ServeHTTP(kept, q)
				w.WriteHeader(http.StatusBadRequest)
				return
			}
			maps.Copy(w.Header(), kept.Header())
			_, _ = w.Write(kept.Body.Bytes())
		}
	}))
	defer relay.Close()
	rental, err := n.x.Rent(t.Context(), relay.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	var d *wallet.Dispute
	for tries := 0; !errors.As(err, &d); tries++ {
		if _, err = rental.Tick(t.Context()); err == nil || tries == 3 {
			t.Fatalf("the relay's answer was believed, or not read: %v", err)
		}
	}
	if !errors.Is(err, verify.ErrClock) {
		t.Fatal(err)
	}
	if err := n.x.w.Vet(t.Context(), n.account().Payee, peer.SiteOf(n.Server.URL)); err != nil {
		t.Errorf("a rental of the honest provider: %v", err)
	}
	if _, err := rental.Tick(t.Context()); !errors.As(err, &d) {
		t.Errorf("the relay is paid again: %v", err)
	}
	n.change = nil
	n.open()
	if _, err = n.rental.Tick(t.Context()); errors.Is(err, ErrLostAnswer) { // less passed than the relay had metered
		_, err = n.rental.Close(t.Context())
	}
	if err != nil {
		t.Error(err)
	}
	n.tick()
}

// TestX402StrangerLosesNoTickOfAnother: somebody's site shows the offer of an honest provider, and says of a tick that it was
// charged, with no record: the provider is paid for ticks as ever, from a channel of its own. Where the renter has the two paid from
// one, the provider, asked for a tick, is asked for that one.
func TestX402StrangerLosesNoTickOfAnother(t *testing.T) {
	t.Parallel()
	t.Run("two sites", func(t *testing.T) { strangerLosesNoTick(t, false) })
	t.Run("two names of one", func(t *testing.T) { strangerLosesNoTick(t, true) })
}

func strangerLosesNoTick(t *testing.T, same bool) {
	n := newTenant(t, newPayRig(t))
	provider := httputil.NewSingleHostReverseProxy(parsed(t, n.Server.URL))
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		p, err := x402.ParsePaymentPayload(q.Header)
		if err != nil {
			provider.ServeHTTP(w, q)
			return
		}
		o, v := p.Accepted, p.Payload.Voucher
		said := x402.PaymentRequired{
			Resource: x402.Resource{URL: "http://" + q.Host}, Error: string(x402.CodeCumulativeMismatch),
			Accepts: []x402.Requirements{{Network: o.Network, Amount: o.Amount, Asset: o.Asset, PayTo: o.PayTo, MaxTimeoutSeconds: o.MaxTimeoutSeconds, Extra: o.Extra}},
		}
		said.Accepts[0].Extra.ChannelState = &x402.ChannelState{ChargedCumulativeAmount: &v.MaxClaimableAmount}
		said.Accepts[0].Extra.VoucherState = &x402.VoucherState{SignedMaxClaimable: v.MaxClaimableAmount, Signature: v.Signature}
		if err := said.Set(w.Header()); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusPaymentRequired)
	}))
	defer stranger.Close()
	if same {
		n.x.options.SameSite = map[string]string{peer.SiteOf(stranger.URL): n.Server.URL}
	}
	rental, err := n.x.Rent(t.Context(), stranger.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err = rental.Tick(t.Context()); !errors.Is(err, ErrLostAnswer) {
			t.Fatal(err)
		}
	}
	signed := func() uint256.Int { // for the stranger's tick
		s, err := n.x.payer.State(t.Context(), rental.Channel())
		if err != nil {
			t.Fatal(err)
		}
		return s.Signed
	}
	before := signed()
	if tick := n.tick(); (tick.Channel == rental.Channel()) != same {
		t.Errorf("the provider is paid from channel %s, the stranger from %s", tick.Channel, rental.Channel())
	}
	if now := signed(); now != before {
		t.Errorf("%s were signed for one tick, and %s of another", now.Dec(), before.Dec())
	}
	n.tick()
}

// TestX402StrangersOfferAccusesNoPayee: a site that shows the offer of an honest provider, and answers a tick by a record under an
// offer of its own, signed by its own key, accuses itself.
func TestX402StrangersOfferAccusesNoPayee(t *testing.T) {
	m := newMill(t, false, func(uint64, uint64) time.Duration { return time.Second })
	x := m.s.client(wallet.Caps{PricePerGPUHour: "10", PerLease: "5", PerDay: "50", PerPayee: "50"}, Options{MaxPrice: wallet.Unlimited})
	rental, err := x.Rent(t.Context(), m.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	payee := m.Meter.Address()
	own, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	m.Meter = channel.NewKey(own)
	m.SignOffer()
	m.Price.Amount.AddUint64(&m.Price.Amount, 1)
	var d *wallet.Dispute
	if _, err := rental.Tick(t.Context()); !errors.As(err, &d) || !errors.Is(err, peer.ErrOffer) {
		t.Errorf("%v, want a dispute about the offer", err)
	}
	if err := x.w.Vet(t.Context(), payee, "http://elsewhere"); err != nil {
		t.Errorf("a rental of the honest provider: %v", err)
	}
}

// endless is a body that never ends.
type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

// TestX402AccessSteersNoTerminal: how the GPUs of a tick are reached is there to be shown, and is no more than shown.
func TestX402AccessSteersNoTerminal(t *testing.T) {
	n := newTenant(t, newPayRig(t))
	n.line.Alter = rewriteTick(t, func(k *wire.Tick) {
		k.Access, k.State = json.RawMessage("{\"ssh\":\"a\\u001b[2Jb\u009b2J\u202e\"}"), "active\x1b[2J"
	})
	tick := n.tick()
	if want := `{"ssh":"a[2Jb2J"}`; string(tick.Access) != want || tick.State != "active[2J" {
		t.Errorf("%q, %q, want %q", tick.Access, tick.State, want)
	}
}

// TestX402RenterCatchesProviders: a tick that does not hold is kept as evidence, and nothing more is paid.
func TestX402RenterCatchesProviders(t *testing.T) {
	r := newPayRig(t, func(c *provider.Config) { c.Source = testclock.GPUs(16) }) // a lease goes on that a renter left
	rewrite := func(change func(*wire.Tick)) func(*http.Response) { return rewriteTick(t, change) }
	for _, row := range []struct {
		name  string
		want  error
		clock metering.Clock
		alter func(*http.Response)
	}{
		{"charged without a record", peer.ErrProtocol, nil, rewrite(func(k *wire.Tick) { k.Record = nil })},
		{"no answer at all", peer.ErrProtocol, nil, func(resp *http.Response) { resp.Body = http.NoBody }},
		{"an endless answer", peer.ErrProtocol, nil, func(resp *http.Response) { resp.Body = io.NopCloser(endless{}) }},
		{"record of another lease", peer.ErrProtocol, nil, rewrite(func(k *wire.Tick) { k.LeaseID[0]++ })},
		{"record of another channel", peer.ErrProtocol, nil, rewrite(func(k *wire.Tick) { k.ChannelID[0]++ })},
		{"record that was changed", verify.ErrSignature, nil, rewrite(func(k *wire.Tick) { k.Record.Nanos++ })},
		{"another offer", peer.ErrOffer, nil, rewrite(func(k *wire.Tick) { k.OfferHash[0]++ })},
		{"more devices than were paid", verify.ErrDevices, nil, rewrite(func(k *wire.Tick) { k.Devices = append(k.Devices, "GPU-x") })},
		{"another device than was metered", verify.ErrDevices, nil, rewrite(func(k *wire.Tick) { k.Devices[0] = "GPU-x" })},
		{"a body that says another charge", ErrOvercharged, nil, rewrite(func(k *wire.Tick) { k.Charged.AddUint64(&k.Charged.Int, 1) })},
		{"a receipt over more than the record", ErrOvercharged, nil, func(resp *http.Response) {
			receipt, err := x402.ParseSettleResponse(resp.Header)
			if err != nil {
				t.Error(err)
			}
			for _, a := range []*wire.Amount{receipt.ChargedAmount, receipt.ChannelState.ChargedCumulativeAmount} {
				a.Add(&a.Int, uint256.NewInt(50))
			}
			if err := receipt.Set(resp.Header); err != nil {
				t.Error(err)
			}
		}},
		{"more time than passed", verify.ErrClock, frozen{}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			n := newTenant(t, r)
			n.line.Alter = row.alter
			if row.clock != nil {
				n.clock = row.clock
				n.open()
			}
			var d *wallet.Dispute
			_, err := n.rental.Tick(t.Context())
			held := 0
			for ; err == nil && row.clock != nil && held < 10; held++ { // what was metered is within the tolerance, on a busy machine
				_, err = n.rental.Tick(t.Context())
			}
			if !errors.Is(err, row.want) || !errors.As(err, &d) {
				t.Fatalf("%v, want %v", err, row.want)
			}
			paid := len(n.line.Paid)
			n.open()
			if _, err := n.rental.Tick(t.Context()); !errors.As(err, &d) || len(n.line.Paid) != paid {
				t.Errorf("afterwards: %v, %d payments", err, len(n.line.Paid)-paid)
			}
			kept, err := n.x.w.Evidence(t.Context(), n.account().ID)
			if records, err2 := n.x.Records(t.Context(), n.account().ID); len(kept) != 1 || len(records) != held || err != nil || err2 != nil {
				t.Errorf("%d pieces of evidence, %d records, %v", len(kept), len(records), errors.Join(err, err2))
			}
		})
	}
}

// TestX402RenterBoundsTicks: a provider that asks for a ceiling of more than a minute is not paid, however low its price.
func TestX402RenterBoundsTicks(t *testing.T) {
	n := newTenant(t, newPayRig(t, func(c *provider.Config) { c.X402.Window = 59_800 * time.Millisecond }))
	if b, err := n.rental.request(t.Context()); err != nil || b.offer.Amount.Uint64() != 60_001 {
		t.Errorf("a minute: %v", err) // 59.8 s and the slack
	}
	n.Stop()
	n.Config.X402.Window += time.Millisecond
	n.Start()
	n.open()
	if _, err := n.rental.Tick(t.Context()); !errors.Is(err, wallet.ErrPrice) || len(n.line.Paid) != 0 {
		t.Errorf("more than a minute: %v", err)
	}
}

// TestEvidenceHoldsNoAccess: what is kept of a tick that is no good, and what is exported of a lease, does not say how its
// GPUs are reached.
func TestEvidenceHoldsNoAccess(t *testing.T) {
	const hush = "ssh hush-hush"
	n := newTenant(t, newPayRig(t))
	n.line.Alter = func(resp *http.Response) {
		var tick map[string]any
		body, err := io.ReadAll(resp.Body)
		if err != nil || json.Unmarshal(body, &tick) != nil {
			t.Error(err)
		}
		tick["access"], tick["record"] = hush, nil
		body, _ = json.Marshal(tick)
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	var d *wallet.Dispute
	if _, err := n.rental.Tick(t.Context()); !errors.As(err, &d) {
		t.Fatal(err)
	}
	kept, err := n.x.w.Evidence(t.Context(), d.Channel)
	if err != nil || len(kept) != 1 || bytes.Contains(kept[0].Document, []byte(hush)) || !bytes.Contains(kept[0].Document, []byte("leaseId")) {
		t.Errorf("%s, %v", kept, err)
	}
}

// TestTicksNeedTheirOffer: a renter pays no ticks under an offer that names no meter, since nothing of x402 says whose key signs, and
// none under that of another class than was asked for.
func TestTicksNeedTheirOffer(t *testing.T) {
	t.Parallel()
	m := testrig.NewMarket(t)
	w, err := wallet.Open(t.Context(), wallet.Config{
		Chain: wallet.Chain{Backend: m.Backend}, Token: m.Token, Key: channel.NewKey(m.Payer), Database: filepath.Join(t.TempDir(), "renter.db"),
		Caps: wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	x := &Client{w: w} // on a chain without x402's contract
	if _, err := x.Rent(t.Context(), testrig.NewHostileNodes(t, m).Server.URL, 1); !errors.Is(err, peer.ErrOffer) {
		t.Errorf("an offer without a meter: %v", err)
	}
	other := testrig.NewHostile(t, m, func(o *wire.Offer) {
		o.Version, o.Class = 2, &wire.Class{ID: "a100", Model: "Simulated A100", MemoryBytes: 80 << 30}
	})
	if _, err := x.RentClass(t.Context(), other.Server.URL, "h100", 1); !errors.Is(err, peer.ErrOffer) || !strings.Contains(err.Error(), `those of class "a100"`) {
		t.Errorf("an offer of another class: %v", err)
	}
}
