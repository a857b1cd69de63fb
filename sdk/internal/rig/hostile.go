package rig

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Hostile is a provider that speaks the wire protocol and meters a simulated GPU with the real meter, and can be made to lie at
// every point.
type Hostile struct {
	T        testing.TB
	Market   *Market
	Server   *httptest.Server
	Key      *channel.Key // payee's
	MeterKey *channel.Key // metering key
	Offer    wire.SignedOffer
	minter   *wire.Minter
	Price    metering.Price

	ForgeOffer     func(*Hostile) []byte
	ForgeChallenge func(*wire.Request)
	ForgeLease     func(*wire.Lease)
	Script         func(*Stream) // what happens on the stream; then it stays open
	Closing        func(http.ResponseWriter)
	Funding        func(wire.Payload) // hears of opens and top-ups; nil: they are forgotten
	RefuseOpen     bool
	Final          func() metering.SignedRecord // the answer to a release
	Paid           func(*Stream, uint256.Int)   // answers a voucher in the stream; nil: it takes none there

	Mu       sync.Mutex    // of Script, Final and what came
	vouchers uint256.Int   // the highest that came
	Stop     chan struct{} // closed when the test ends
}

// HostilePrice is in base units a GPU-second.
const HostilePrice = 1000

// NewHostile serves a hostile provider until the test ends. It is honest until the test sets a field.
func NewHostile(t testing.TB, m *Market, change func(*wire.Offer)) *Hostile {
	t.Helper()
	v := &Hostile{T: t, Market: m, Key: channel.NewKey(m.Payee), MeterKey: channel.NewKey(m.Payee), Stop: make(chan struct{}),
		Price:  metering.Price{Amount: *uint256.NewInt(HostilePrice), Unit: metering.Second},
		minter: &wire.Minter{Secret: make([]byte, 32), Realm: "hostile", TTL: time.Minute, Now: time.Now},
	}
	offer := wire.Offer{
		Version: 1, ChainID: 31337, Escrow: wire.Address(m.Escrow), Token: wire.Address(m.Token),
		Payee: wire.Address(v.Key.Address()), Meter: wire.Address(v.Key.Address()),
		Amount: wire.NewAmount(v.Price.Amount), Unit: string(v.Price.Unit), Credit: 10,
		MinDeposit: wire.NewAmount(*uint256.NewInt(1)), Tick: 50, MaxGap: 3000, RecordEvery: 50,
		Simulated: true,
		Expires:   time.Now().Add(time.Hour).Unix(),
	}
	if change != nil {
		change(&offer)
	}
	var err error
	if v.Offer, err = wire.SignOffer(t.Context(), v.Key, offer); err != nil {
		t.Fatal(err)
	}
	v.Server = httptest.NewServer(v)
	t.Cleanup(func() {
		close(v.Stop)
		v.Server.CloseClientConnections()
		v.Server.Close()
	})
	return v
}

// ServeHTTP answers as the fields say.
func (v *Hostile) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/offer" {
		document := []byte(v.Offer.Document)
		if v.ForgeOffer != nil {
			document = v.ForgeOffer(v)
		}
		_, _ = w.Write(document)
		return
	}
	cred, err := wire.ParseCredential(r.Header)
	if errors.Is(err, wire.ErrNone) {
		w.Header().Set("WWW-Authenticate", v.challenge().Header())
		wire.PaymentRequired.With("").Write(w)
		return
	}
	if err != nil {
		v.T.Errorf("the renter sent a bad credential: %v", err)
	}
	if cred.Payload.CumulativeAmount != nil {
		v.count(channel.Voucher{ChannelID: cred.Payload.ChannelID, Cumulative: cred.Payload.CumulativeAmount.Int, Signature: cred.Payload.Voucher()})
	}
	if v.Funding != nil && (cred.Payload.Action == wire.ActionOpen || cred.Payload.Action == wire.ActionTopUp) {
		v.Funding(cred.Payload)
	}
	switch {
	case v.RefuseOpen && cred.Payload.Action == wire.ActionOpen:
		wire.NoCapacity.With("all are taken").Write(w)
	case r.Method == http.MethodGet:
		v.stream(w, r, cred.Payload)
	case cred.Payload.Action == wire.ActionClose && v.Closing != nil:
		v.Closing(w)
	case cred.Payload.Action == wire.ActionClose:
		wire.Internal.With("no").Write(w)
	case cred.Payload.Action == wire.ActionRelease:
		_ = json.NewEncoder(w).Encode(map[string]any{"record": v.last()})
	default:
		_, _ = w.Write([]byte(`{}`))
	}
}

// last is the final record, null by default.
func (v *Hostile) last() any {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	if v.Final == nil {
		return nil
	}
	return v.Final()
}

func (v *Hostile) challenge() wire.Challenge {
	request := wire.Request{
		Amount: v.Offer.Amount, UnitType: v.Offer.Unit, Currency: v.Offer.Token, Recipient: v.Offer.Payee,
		ExternalID:    v.Offer.Hash.Hex(),
		MethodDetails: wire.MethodDetails{ChainID: v.Offer.ChainID, EscrowContract: v.Offer.Escrow, FeePayer: v.Funding != nil},
	}
	if v.ForgeChallenge != nil {
		v.ForgeChallenge(&request)
	}
	c, err := v.minter.Mint(request, "nonce")
	if err != nil {
		v.T.Error(err)
	}
	return c
}

// count remembers the highest voucher that could be settled.
func (v *Hostile) count(voucher channel.Voucher) {
	domain := channel.EscrowDomain(31337, v.Market.Escrow)
	if err := domain.Verify(voucher, v.Market.PayerAddress()); err != nil {
		v.T.Errorf("the renter sent a bad voucher: %v", err)
	}
	v.Mu.Lock()
	defer v.Mu.Unlock()
	if v.vouchers.Lt(&voucher.Cumulative) {
		v.vouchers = voucher.Cumulative
	}
}

// Highest is the highest amount of all vouchers that came.
func (v *Hostile) Highest() uint256.Int {
	v.Mu.Lock()
	defer v.Mu.Unlock()
	return v.vouchers
}

func (v *Hostile) stream(w http.ResponseWriter, r *http.Request, payload wire.Payload) {
	p := v.NewStream(w, payload.ChannelID)
	p.Gone = r.Context()
	if v.Paid != nil {
		p.accept(r)
		defer p.conn.CloseNow()
	} else {
		w.WriteHeader(http.StatusOK)
	}
	lease := wire.Lease{
		LeaseID: p.Lease.ID, ChannelID: payload.ChannelID, Secret: "secret", OfferHash: v.Offer.Hash,
		Devices: p.Lease.Devices, State: "active", Access: json.RawMessage(`{"ssh":"hostile"}`),
	}
	if v.ForgeLease != nil {
		v.ForgeLease(&lease)
	}
	p.Send(0, wire.EventLease, lease)
	v.Mu.Lock()
	script := v.Script
	v.Mu.Unlock()
	script(p)
	for { // a hostile provider keeps its connections alive
		select {
		case <-v.Stop:
			return
		case <-p.Gone.Done():
			return
		case <-time.After(50 * time.Millisecond):
			p.write([]byte(wire.Comment))
		}
	}
}

// NewHostileNodes serves a hostile provider whose offer names no meter: m.Keys[5] is the key of a node of its, bound to its lease.
func NewHostileNodes(t testing.TB, m *Market) *Hostile {
	v := NewHostile(t, m, func(o *wire.Offer) { o.Version, o.Meter = 2, wire.Address{} })
	v.MeterKey = channel.NewKey(m.Keys[5])
	v.ForgeLease = func(l *wire.Lease) { l.Binding = v.Bind(l, v.MeterKey.Address(), nil) }
	return v
}

// Bind is the hostile provider's word for a meter of a lease, or for another one that change makes of it.
func (v *Hostile) Bind(l *wire.Lease, meter common.Address, change func(*wire.MeterBinding)) *wire.MeterBinding {
	b := wire.MeterBinding{LeaseID: l.LeaseID, ChannelID: l.ChannelID, OfferHash: l.OfferHash, Meter: wire.Address(meter)}
	if change != nil {
		change(&b)
	}
	b, err := wire.BindMeter(context.Background(), v.Key, v.Offer.Offer, b)
	if err != nil {
		v.T.Error(err)
	}
	return &b
}
