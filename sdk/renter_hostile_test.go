package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/peer"
	"github.com/gpupay/gpupay/sdk/wire"
)

// villain is a provider that speaks the wire and meters a simulated GPU with
// the real meter, and can be made to lie at every point.
type villain struct {
	t      *testing.T
	m      *market
	server *httptest.Server
	key    *channel.Key // payee's
	meter  *channel.Key // metering key
	offer  wire.SignedOffer
	minter *wire.Minter
	price  metering.Price

	forgeOffer     func(*villain) []byte
	forgeChallenge func(*wire.Request)
	forgeLease     func(*wire.Lease)
	script         func(*plot) // what happens on the stream; then it stays open
	closing        func(http.ResponseWriter)
	funding        func(wire.Payload) // hears of opens and top-ups; nil: they are forgotten
	refuseOpen     bool
	final          func() metering.SignedRecord // the answer to a release
	paid           func(*plot, uint256.Int)     // answers a voucher in the stream; nil: it takes none there

	mu       sync.Mutex
	vouchers uint256.Int // the highest that came
	stop     chan struct{}
}

const villainPrice = 1000 // base units a GPU-second

func newVillain(t *testing.T, m *market, change func(*wire.Offer)) *villain {
	t.Helper()
	v := &villain{t: t, m: m, key: channel.NewKey(m.payee), meter: channel.NewKey(m.payee), stop: make(chan struct{}),
		price:  metering.Price{Amount: *uint256.NewInt(villainPrice), Unit: metering.Second},
		minter: &wire.Minter{Secret: make([]byte, 32), Realm: "villain", TTL: time.Minute, Now: time.Now},
	}
	offer := wire.Offer{
		Version: 1, ChainID: 31337, Escrow: wire.Address(m.Escrow), Token: wire.Address(m.Token),
		Payee: wire.Address(v.key.Address()), Meter: wire.Address(v.key.Address()),
		Amount: wire.NewAmount(v.price.Amount), Unit: string(v.price.Unit), Credit: 10,
		MinDeposit: wire.NewAmount(*uint256.NewInt(1)), Tick: 50, MaxGap: 3000, RecordEvery: 50,
		Simulated: true,
		Expires:   time.Now().Add(time.Hour).Unix(),
	}
	if change != nil {
		change(&offer)
	}
	var err error
	if v.offer, err = wire.SignOffer(t.Context(), v.key, offer); err != nil {
		t.Fatal(err)
	}
	v.server = httptest.NewServer(v)
	t.Cleanup(func() {
		close(v.stop)
		v.server.CloseClientConnections()
		v.server.Close()
	})
	return v
}

func (v *villain) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/offer" {
		document := []byte(v.offer.Document)
		if v.forgeOffer != nil {
			document = v.forgeOffer(v)
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
		v.t.Errorf("the renter sent a bad credential: %v", err)
	}
	if cred.Payload.CumulativeAmount != nil {
		v.count(channel.Voucher{ChannelID: cred.Payload.ChannelID, Cumulative: cred.Payload.CumulativeAmount.Int, Signature: cred.Payload.Voucher()})
	}
	if v.funding != nil && (cred.Payload.Action == wire.ActionOpen || cred.Payload.Action == wire.ActionTopUp) {
		v.funding(cred.Payload)
	}
	switch {
	case v.refuseOpen && cred.Payload.Action == wire.ActionOpen:
		wire.NoCapacity.With("all are taken").Write(w)
	case r.Method == http.MethodGet:
		v.stream(w, r, cred.Payload)
	case cred.Payload.Action == wire.ActionClose && v.closing != nil:
		v.closing(w)
	case cred.Payload.Action == wire.ActionClose:
		wire.Internal.With("no").Write(w)
	case cred.Payload.Action == wire.ActionRelease:
		_ = json.NewEncoder(w).Encode(map[string]any{"record": v.last()})
	default:
		_, _ = w.Write([]byte(`{}`))
	}
}

// last is the final record, null by default.
func (v *villain) last() any {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.final == nil {
		return nil
	}
	return v.final()
}

func (v *villain) challenge() wire.Challenge {
	request := wire.Request{
		Amount: v.offer.Amount, UnitType: v.offer.Unit, Currency: v.offer.Token, Recipient: v.offer.Payee,
		ExternalID:    v.offer.Hash.Hex(),
		MethodDetails: wire.MethodDetails{ChainID: v.offer.ChainID, EscrowContract: v.offer.Escrow, FeePayer: v.funding != nil},
	}
	if v.forgeChallenge != nil {
		v.forgeChallenge(&request)
	}
	c, err := v.minter.Mint(request, "nonce")
	if err != nil {
		v.t.Error(err)
	}
	return c
}

// count remembers the highest voucher that could be settled.
func (v *villain) count(voucher channel.Voucher) {
	domain := channel.EscrowDomain(31337, v.m.Escrow)
	if err := domain.Verify(voucher, v.m.payerAddress()); err != nil {
		v.t.Errorf("the renter sent a bad voucher: %v", err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.vouchers.Lt(&voucher.Cumulative) {
		v.vouchers = voucher.Cumulative
	}
}

func (v *villain) highest() uint256.Int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.vouchers
}

func (v *villain) stream(w http.ResponseWriter, r *http.Request, payload wire.Payload) {
	p := v.plot(w, payload.ChannelID)
	p.gone = r.Context()
	if v.paid != nil {
		p.accept(r)
		defer p.conn.CloseNow()
	} else {
		w.WriteHeader(http.StatusOK)
	}
	lease := wire.Lease{
		LeaseID: p.lease.ID, ChannelID: payload.ChannelID, Secret: "secret", OfferHash: v.offer.Hash,
		Devices: p.lease.Devices, State: "active", Access: json.RawMessage(`{"ssh":"villain"}`),
	}
	if v.forgeLease != nil {
		v.forgeLease(&lease)
	}
	p.send(0, wire.EventLease, lease)
	v.mu.Lock()
	script := v.script
	v.mu.Unlock()
	script(p)
	for { // a villain keeps its connections alive
		select {
		case <-v.stop:
			return
		case <-p.gone.Done():
			return
		case <-time.After(50 * time.Millisecond):
			p.write([]byte(wire.Comment))
		}
	}
}

// plot is one stream and the metering behind it.
type plot struct {
	*villain
	w        http.ResponseWriter
	conn     *websocket.Conn // where vouchers come through the stream
	gone     context.Context
	lease    metering.Lease
	clock    *sim.Clock
	source   *sim.Source
	meter    *metering.Meter
	recorder *metering.Recorder
	sent     metering.SignedRecord
}

func (v *villain) plot(w http.ResponseWriter, channelID common.Hash) *plot {
	p := &plot{villain: v, w: w, clock: sim.NewClock()}
	p.source = sim.New(2, sim.Options{Clock: p.clock})
	p.lease = metering.Lease{
		ID: common.HexToHash("0x1ea5e"), ChannelID: channelID, OfferHash: v.offer.Hash, ChainID: 31337, Escrow: v.m.Escrow,
		Price: v.price, Devices: []string{sim.UUID(0)},
	}
	p.restart(p.lease, nil)
	return p
}

// restart meters from now on under other terms.
func (p *plot) restart(lease metering.Lease, last *metering.Record) {
	var err error
	if p.meter, err = metering.NewMeter(metering.Config{Devices: lease.Devices, Tick: 50 * time.Millisecond}); err != nil {
		p.t.Error(err)
	}
	if p.recorder, err = metering.NewRecorder(lease, p.villain.meter, last); err != nil {
		p.t.Error(err)
	}
	p.read(lease.Devices[0])
}

func (p *plot) read(uuid string) {
	reading, err := p.source.Read(context.Background(), uuid)
	if err == nil {
		_, err = p.meter.Observe(reading)
	}
	if err != nil {
		p.t.Error(err)
	}
}

// next is the record of some more GPU time, however long it really took.
func (p *plot) next(worth time.Duration) metering.SignedRecord {
	uuid := p.meter.Config().Devices[0]
	for ; worth > 0; worth -= 50 * time.Millisecond {
		p.clock.Advance(50 * time.Millisecond)
		p.read(uuid)
	}
	rec, err := p.recorder.Next(context.Background(), p.meter.Cut(), false)
	if err != nil {
		p.t.Error(err)
	}
	return rec
}

// honest sends n records, each after the time that it states.
func (p *plot) honest(n int) {
	for range n {
		time.Sleep(50 * time.Millisecond)
		p.usage(p.next(50 * time.Millisecond))
	}
}

// overcharge sends a record that owes more than time and price make, as the payee signed it.
func (p *plot) overcharge() {
	p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Owed = *uint256.NewInt(900_000) }))
}

func (p *plot) usage(rec metering.SignedRecord) {
	p.sent = rec
	p.send(rec.Sequence, wire.EventUsage, rec)
}

// resign makes a record say something else, properly signed.
func (p *plot) resign(rec metering.SignedRecord, change func(*metering.SignedRecord)) metering.SignedRecord {
	change(&rec)
	signature, err := p.villain.meter.Sign(context.Background(), rec.Digest(metering.Domain(31337, p.m.Escrow)))
	if err != nil {
		p.t.Error(err)
	}
	rec.Signature = signature
	return rec
}

func (p *plot) send(id uint64, name string, data any) {
	event, err := wire.NewEvent(id, name, data)
	if err != nil {
		p.t.Error(err)
	}
	p.raw(event)
}

func (p *plot) raw(event wire.Event) {
	if p.gone.Err() != nil {
		panic(http.ErrAbortHandler) // nobody listens any more
	}
	var text bytes.Buffer
	_, _ = event.WriteTo(&text)
	p.write(text.Bytes())
}

func (p *plot) write(text []byte) {
	if p.conn != nil {
		_ = p.conn.Write(p.gone, websocket.MessageText, text)
		return
	}
	_, _ = p.w.Write(text)
	_ = http.NewResponseController(p.w).Flush()
}

// accept takes vouchers through the stream.
func (p *plot) accept(r *http.Request) {
	var err error
	if p.conn, err = websocket.Accept(p.w, r, nil); err != nil {
		p.t.Error(err)
		panic(http.ErrAbortHandler)
	}
	life, hungUp := context.WithCancel(context.Background())
	p.gone = life
	go func() {
		defer hungUp()
		for {
			_, message, err := p.conn.Read(life)
			if err != nil {
				return
			}
			vouchers, err := wire.ParseVouchers(message, p.lease.ChannelID, nil)
			if err != nil {
				p.t.Error(err)
			}
			for _, v := range vouchers {
				p.count(v)
				p.paid(p, v.Cumulative)
			}
		}
	}()
}

// receipt acknowledges an amount, with bytes to spare or too few.
func (p *plot) receipt(amount uint256.Int, change func([]byte) []byte) {
	message, err := wire.AppendReceipt(nil, amount)
	if err != nil {
		p.t.Error(err)
	}
	if change != nil {
		message = change(message)
	}
	_ = p.conn.Write(p.gone, websocket.MessageBinary, message)
}

func (p *plot) demand(required, deposit uint64) {
	p.send(0, wire.EventNeedVoucher, wire.NeedVoucher{
		ChannelID: p.lease.ChannelID, RequiredCumulative: wire.NewAmount(*uint256.NewInt(required)),
		Deposit: wire.NewAmount(*uint256.NewInt(deposit)),
	})
}

// ransomEscrow is our code to the byte, but that withdraw adds another of the
// escrow's own words to the time of the request than the grace period.
func ransomEscrow(t *testing.T, m *market, code []byte) common.Address {
	t.Helper()
	address := common.HexToAddress("0xbad3")
	code = bytes.Clone(code)
	put := func(name string, word common.Hash) {
		for _, at := range bindings.ChannelEscrowImmutables()[name] {
			copy(code[at:], word[:])
		}
	}
	put("_cachedThis", common.BytesToHash(address[:]))
	put("_cachedDomainSeparator", channel.EscrowDomain(31337, address).Separator())
	for _, at := range bindings.ChannelEscrowImmutables()["gracePeriod"] {
		changed := bytes.Clone(code)
		copy(changed[at:], common.BytesToHash(address[:]).Bytes())
		m.RPC(t, nil, "anvil_setCode", address, hexutil.Bytes(changed))
		if e, err := chain.NewEscrow(t.Context(), m.Backend, address); err == nil && e.Grace() == chaintest.Grace {
			return address // the word is elsewhere than where gracePeriod() reads
		}
	}
	t.Fatal("no escrow says one grace period and has another")
	return address
}

// TestHostileQuotes: what a renter turns down before it signs anything.
func TestHostileQuotes(t *testing.T) {
	m := newMarket(t)
	lookAlike := common.HexToAddress("0xbad")
	code, err := m.Backend.CodeAt(t.Context(), m.Escrow, nil)
	if err != nil {
		t.Fatal(err)
	}
	tampered := append([]byte(nil), code...)
	tampered[len(tampered)-1] ^= 1 // answers every question like ours
	m.RPC(t, nil, "anvil_setCode", lookAlike, hexutil.Bytes(tampered))
	longer := common.HexToAddress("0xbad2")
	m.RPC(t, nil, "anvil_setCode", longer, hexutil.Bytes(append(code, 0)))
	ransom := ransomEscrow(t, m, code)

	stranger, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name   string
		offer  func(*wire.Offer)
		change func(*villain)
		caps   func(*Caps)
		want   error
		kept   bool
	}{
		{"offer signed by somebody else", nil, func(v *villain) {
			v.forgeOffer = func(v *villain) []byte {
				forged := v.offer.Offer
				forged.Payee = wire.Address(crypto.PubkeyToAddress(stranger.PublicKey))
				signed, err := wire.SignOffer(t.Context(), channel.NewKey(stranger), forged)
				if err != nil {
					t.Error(err)
				}
				return []byte(strings.Replace(string(signed.Document), forged.Payee.String(), v.offer.Payee.String(), 1))
			}
		}, nil, channel.ErrSignature, true},
		{"offer cheapened after it was signed", nil, func(v *villain) {
			v.forgeOffer = func(v *villain) []byte {
				return []byte(strings.Replace(string(v.offer.Document), `"amount":"1000"`, `"amount":"1"`, 1))
			}
		}, nil, channel.ErrSignature, true},
		{"offer that is no document", nil, func(v *villain) {
			v.forgeOffer = func(*villain) []byte { return []byte("<html>") }
		}, nil, peer.ErrOffer, true},
		{"challenge asks for another price", nil, func(v *villain) {
			v.forgeChallenge = func(r *wire.Request) { r.Amount = wire.NewAmount(*uint256.NewInt(1001)) }
		}, nil, peer.ErrOffer, true},
		{"challenge asks for another unit", nil, func(v *villain) {
			v.forgeChallenge = func(r *wire.Request) { r.UnitType = "gpu_minute" }
		}, nil, peer.ErrOffer, true},
		{"challenge pays somebody else", nil, func(v *villain) {
			v.forgeChallenge = func(r *wire.Request) { r.Recipient = wire.Address{1} }
		}, nil, peer.ErrOffer, true},
		{"challenge names another escrow", nil, func(v *villain) {
			v.forgeChallenge = func(r *wire.Request) { r.MethodDetails.EscrowContract = wire.Address{1} }
		}, nil, peer.ErrOffer, true},
		{"credit of years", func(o *wire.Offer) { o.Credit = 1 << 40 }, nil, nil, peer.ErrOffer, true},
		{"more credit than the renter gives", func(o *wire.Offer) { o.Credit = 3601 }, nil, nil, peer.ErrOffer, true},
		{"no credit", func(o *wire.Offer) { o.Credit = 0 }, nil, nil, peer.ErrOffer, true},
		{"records that are a day apart", func(o *wire.Offer) { o.RecordEvery = 86_400_000 }, nil, nil, peer.ErrOffer, true},
		{"records that are no time apart", func(o *wire.Offer) { o.RecordEvery = 0 }, nil, nil, peer.ErrOffer, true},
		{"a record each millisecond", func(o *wire.Offer) { o.Tick, o.RecordEvery = 1, 1 }, nil, nil, peer.ErrOffer, true},
		{"tick of an hour", func(o *wire.Offer) { o.Tick, o.MaxGap = 3_600_000, 3_600_000 }, nil, nil, peer.ErrOffer, true},
		{"gap of an hour", func(o *wire.Offer) { o.MaxGap = 3_600_000 }, nil, nil, peer.ErrOffer, true},
		{"gap that takes time back", func(o *wire.Offer) { o.MaxGap = -1 }, nil, nil, peer.ErrOffer, true},
		{"device whose name steers a terminal", func(o *wire.Offer) { o.Devices = []wire.OfferDevices{{Model: "H100\x1b[2J", Count: 1}} }, nil, nil, peer.ErrOffer, true},
		{"offer that says one thing twice", nil, func(v *villain) {
			v.forgeOffer = func(v *villain) []byte {
				return []byte(strings.Replace(string(v.offer.Document), `"amount":"1000"`, `"amount":"1000","Amount":"1"`, 1))
			}
		}, nil, peer.ErrOffer, true},
		{"expired offer", func(o *wire.Offer) { o.Expires = time.Now().Unix() }, nil, nil, peer.ErrOffer, true},
		{"escrow with one byte changed", func(o *wire.Offer) { o.Escrow = wire.Address(lookAlike) }, nil, nil, ErrEscrow, true},
		{"escrow with one byte more", func(o *wire.Offer) { o.Escrow = wire.Address(longer) }, nil, nil, ErrEscrow, true},
		{"escrow that withdraws in the year 10122", func(o *wire.Offer) { o.Escrow = wire.Address(ransom) }, nil, nil, ErrEscrow, true},
		{"escrow that is a token", func(o *wire.Offer) { o.Escrow = wire.Address(m.Token) }, nil, nil, ErrEscrow, true},
		{"escrow that is nothing", func(o *wire.Offer) { o.Escrow = wire.Address{1} }, nil, nil, ErrEscrow, true},
		{"another token", func(o *wire.Offer) { o.Token = wire.Address{1} }, nil, nil, ErrToken, true},
		{"another chain", func(o *wire.Offer) { o.ChainID = 1 }, nil, nil, chain.ErrChainID, true},
		{"dearer than the cap", nil, nil, func(c *Caps) { c.PricePerGPUHour = "3.599999" }, ErrTooDear, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVillain(t, m, test.offer)
			if test.change != nil {
				test.change(v)
			}
			config := m.renterConfig(t, m.payer)
			if test.caps != nil {
				test.caps(&config.Caps)
			}
			r := openRenter(t, config)
			_, err := r.Rent(t.Context(), v.server.URL, RentOptions{Deposit: "1"})
			if !errors.Is(err, test.want) {
				t.Fatalf("Rent: %v, want %v", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has several lines: %v", err)
			}
			kept, err := r.Evidence(t.Context(), common.Hash{})
			if err != nil || (len(kept) == 1) != test.kept {
				t.Errorf("%d pieces of evidence (%v), want them kept: %v", len(kept), err, test.kept)
			}
			if open, err := r.Rentals(t.Context()); err != nil || len(open) != 0 {
				t.Errorf("%d rentals (%v): nothing should have been begun", len(open), err)
			}
			if got := m.Tokens(t, m.payerAddress()); got != thousand {
				t.Errorf("the payer has %d left", got)
			}
		})
	}
}

// TestHostileLeases: what a renter pays nothing more for once it is caught. In
// every case the deposit comes back without the provider.
func TestHostileLeases(t *testing.T) {
	m := newMarket(t)
	for _, test := range []struct {
		name   string
		change func(*villain)
		script func(*plot)
		want   error
	}{
		{"claims more time than passed", nil, func(p *plot) {
			p.honest(4)
			p.usage(p.next(10 * time.Second))
		}, metering.ErrClock},
		{"claims more time bit by bit", nil, func(p *plot) {
			for at := time.Now(); ; { // until nobody listens
				time.Sleep(10 * time.Millisecond)
				passed := time.Since(at)
				at = at.Add(passed)
				p.usage(p.next(5 * passed))
			}
		}, metering.ErrClock},
		{"raises the price", nil, func(p *plot) {
			p.honest(4)
			p.lease.Price.Amount = *uint256.NewInt(2 * villainPrice)
			last, _ := p.recorder.Last()
			recorder, err := metering.NewRecorder(p.lease, p.villain.meter, &last)
			if err != nil {
				p.t.Error(err)
			}
			p.recorder = recorder
			p.usage(p.next(50 * time.Millisecond))
		}, metering.ErrPrice},
		{"owes more than time and price make", nil, func(p *plot) {
			p.honest(2)
			p.overcharge()
		}, metering.ErrPrice},
		{"signs two records of one number", nil, func(p *plot) {
			p.honest(4)
			p.usage(p.resign(p.sent, func(r *metering.SignedRecord) { r.To++ }))
		}, metering.ErrForked},
		{"signs another record of an old number", nil, func(p *plot) {
			p.honest(2)
			old := p.sent
			p.honest(2)
			p.usage(p.resign(old, func(r *metering.SignedRecord) { r.To++ }))
		}, metering.ErrForked},
		{"rewrites the chain", nil, func(p *plot) {
			p.honest(4)
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Previous = common.Hash{1} }))
		}, metering.ErrForked},
		{"goes on after the final record", nil, func(p *plot) {
			p.honest(2)
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.LeaseID, r.Final = common.Hash{7}, true }))
		}, metering.ErrLease},
		{"skips a number", nil, func(p *plot) {
			p.honest(2)
			p.next(50 * time.Millisecond)
			p.usage(p.next(50 * time.Millisecond))
		}, metering.ErrSequence},
		{"takes time back", nil, func(p *plot) {
			p.honest(4)
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Nanos = 1 }))
		}, metering.ErrBackwards},
		{"sends a record of another channel", nil, func(p *plot) {
			p.honest(2)
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.ChannelID = common.Hash{1} }))
		}, metering.ErrLease},
		{"sends a record under another offer", nil, func(p *plot) {
			p.honest(2)
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.OfferHash = common.Hash{1} }))
		}, metering.ErrLease},
		{"sends a record of another device", nil, func(p *plot) {
			p.lease.Devices = []string{sim.UUID(1)}
			p.restart(p.lease, nil)
			p.usage(p.next(50 * time.Millisecond))
		}, metering.ErrDevices},
		{"sends a record of more devices", nil, func(p *plot) {
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Devices = 2 }))
		}, metering.ErrDevices},
		{"has another key sign", nil, func(p *plot) {
			p.honest(2)
			p.villain.meter = channel.NewKey(p.m.Keys[5])
			p.usage(p.resign(p.next(50*time.Millisecond), func(*metering.SignedRecord) {}))
		}, metering.ErrSignature},
		{"swaps the evidence", nil, func(p *plot) {
			p.honest(2)
			rec := p.next(50 * time.Millisecond)
			rec.Evidence = p.sent.Evidence
			p.usage(rec)
		}, metering.ErrEvidence},
		{"fills the disk with records", func(v *villain) {
			o := v.offer.Offer
			o.RecordEvery = 600
			v.offer, _ = wire.SignOffer(context.Background(), v.key, o)
		}, func(p *plot) {
			for range 60 { // as large as they may be
				e := p.meter.Cut()
				for range 120 {
					e.Devices[0].Missing = append(e.Devices[0].Missing, strings.Repeat("x", 250))
				}
				rec, err := p.recorder.Next(context.Background(), e, false)
				if err != nil {
					p.t.Error(err)
				}
				p.usage(rec)
			}
		}, metering.ErrRoom},
		{"demands and sends no records", nil, func(p *plot) { p.demand(700_000, 1_000_000) }, peer.ErrDemand},
		{"demands more than its records say", nil, func(p *plot) {
			for range 200 {
				p.honest(1)
				p.demand(700_000, 1_000_000)
			}
		}, peer.ErrDemand},
		{"demands more than the deposit", nil, func(p *plot) {
			for range 200 {
				p.honest(1)
				p.demand(9_000_000, 1_000_000)
			}
		}, peer.ErrDemand},
		{"demands for another channel", nil, func(p *plot) {
			p.lease.ChannelID = common.Hash{1}
			p.demand(100, 1_000_000)
		}, peer.ErrProtocol},
		{"says nothing", nil, func(p *plot) {}, peer.ErrSilent},
		{"falls silent", nil, func(p *plot) { p.honest(4) }, peer.ErrSilent},
		{"sends a record that is none", nil, func(p *plot) {
			p.raw(wire.Event{Name: wire.EventUsage, Data: []byte(`{"nanos":"a lot"}`)})
		}, peer.ErrProtocol},
		{"sends a status that is none", nil, func(p *plot) {
			p.raw(wire.Event{Name: wire.EventStatus, Data: []byte(`[`)})
		}, peer.ErrProtocol},
		{"sends an event without end", nil, func(p *plot) {
			p.raw(wire.Event{Name: "noise", Data: []byte(strings.Repeat("x", 2<<20))})
		}, peer.ErrProtocol},
		{"sends events that mean nothing", nil, func(p *plot) {
			for i := range 300 {
				p.raw(wire.Event{Name: fmt.Sprintf("noise-%d", i), Data: []byte("x")})
				time.Sleep(10 * time.Millisecond)
			}
		}, peer.ErrSilent},
		{"floods the disk with records of no time", nil, func(p *plot) {
			for range 1000 {
				p.usage(p.next(0))
			}
		}, ErrFlood},
		{"sends evidence of half a megabyte", nil, func(p *plot) {
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) {
				r.Evidence.Source = strings.Repeat("x", 500_000)
				r.EvidenceHash = r.Evidence.Hash()
			}))
		}, metering.ErrEvidence},
		{"calls what read the GPU a terminal's command", nil, func(p *plot) {
			p.usage(p.resign(p.next(50*time.Millisecond), func(r *metering.SignedRecord) {
				r.Evidence.Source = "nvml\x1b[2J"
				r.EvidenceHash = r.Evidence.Hash()
			}))
		}, metering.ErrEvidence},
		{"gives a secret of half a megabyte", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.Secret = strings.Repeat("s", 500_000) }
		}, func(*plot) {}, peer.ErrProtocol},
		{"gives half a megabyte of access", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.Access = json.RawMessage(`"` + strings.Repeat("a", 500_000) + `"`) }
		}, func(*plot) {}, peer.ErrProtocol},
		{"begins with a debt", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.OwedBefore = wire.NewAmount(*uint256.NewInt(500_000)) }
		}, func(*plot) {}, peer.ErrDemand},
		{"gives more devices than were rented", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.Devices = append(l.Devices, "SIM-GPU-1") }
		}, func(*plot) {}, metering.ErrDevices},
		{"calls a device what steers a terminal", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.Devices = []string{"GPU-\x1b[2J"} }
		}, func(*plot) {}, peer.ErrProtocol},
		{"begins without an id", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.LeaseID = common.Hash{} }
		}, func(*plot) {}, peer.ErrProtocol},
		{"begins under another offer", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.OfferHash = common.Hash{1} }
		}, func(*plot) {}, peer.ErrOffer},
		{"begins with another channel", func(v *villain) {
			v.forgeLease = func(l *wire.Lease) { l.ChannelID = common.Hash{1} }
		}, func(*plot) {}, peer.ErrProtocol},
	} {
		t.Run(test.name, func(t *testing.T) { hostileLease(t, m, test.change, test.script, test.want) })
	}
}

func hostileLease(t *testing.T, m *market, change func(*villain), script func(*plot), want error) {
	v := newVillain(t, m, nil)
	v.script = script
	if change != nil {
		change(v)
	}
	config := m.renterConfig(t, m.payer)
	config.Patience, config.ClockOff = 600*time.Millisecond, 1000*time.Hour // the chain's clock runs ahead in this test
	config.Caps.PerDay = Unlimited
	r := openRenter(t, config)
	before := m.Tokens(t, m.payerAddress())

	const prepay = 100 * time.Millisecond
	l, err := r.Rent(t.Context(), v.server.URL, RentOptions{Deposit: "1", PayEvery: 60 * time.Millisecond, Prepay: prepay})
	if err == nil {
		err = l.Run(t.Context())
	}
	if !errors.Is(err, want) {
		t.Fatalf("%v, want %v", err, want)
	}
	open, listErr := r.Rentals(t.Context())
	if listErr != nil || len(open) != 1 {
		t.Fatalf("%d rentals (%v), want the one", len(open), listErr)
	}
	checkPaid(t, r, v, open[0].Channel, prepay)

	// Also what is on disk alone must get the deposit back.
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r = openRenter(t, config)
	if l, err = r.Resume(t.Context(), open[0].Channel); err != nil {
		t.Fatal(err)
	}
	c := leave(t, m, l)
	if got := m.Tokens(t, m.payerAddress()); got != before-c.Settled.Uint64() || !c.Forced || !c.Settled.IsZero() {
		t.Errorf("the payer has %d of %d, the closing is %+v", got, before, c)
	}
}

// checkPaid: no voucher is above what was checked and the prepayment, and what
// was refused is on disk.
func checkPaid(t *testing.T, r *Renter, v *villain, id common.Hash, prepay time.Duration) {
	t.Helper()
	records, err := r.Records(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	allowed, err := v.price.Charge(uint64(prepay))
	if err != nil {
		t.Fatal(err)
	}
	if len(records) > 0 {
		allowed.Add(&allowed, &records[len(records)-1].Owed)
	}
	if got := v.highest(); got.Gt(&allowed) {
		t.Errorf("the provider has a voucher over %s, checked and prepaid is %s", got.Dec(), allowed.Dec())
	}
	kept, err := r.Evidence(t.Context(), id)
	if err != nil || len(kept) != 1 {
		t.Errorf("%d pieces of evidence (%v), want one", len(kept), err)
	}
}

// TestLieAtTheEnd: a final record that does not hold is not paid, and reported
// beside what became of the close.
func TestLieAtTheEnd(t *testing.T) {
	m := newMarket(t)
	v := newVillain(t, m, nil)
	streamed := make(chan *plot, 8)
	v.script = func(p *plot) {
		p.honest(4)
		streamed <- p
	}
	r := openRenter(t, m.renterConfig(t, m.payer))
	l, err := r.Rent(t.Context(), v.server.URL, RentOptions{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := background(t.Context(), l)
	p := <-streamed
	eventually(t, "all records", func() bool { return l.Snapshot().Sequence == 4 })
	v.mu.Lock()
	v.script = func(*plot) {}
	v.final = func() metering.SignedRecord {
		return p.resign(p.next(10*time.Second), func(r *metering.SignedRecord) { r.Final = true })
	}
	v.mu.Unlock()
	var dispute *Dispute
	if _, err := l.Close(t.Context()); !errors.As(err, &dispute) || !errors.Is(err, metering.ErrClock) || !errors.Is(err, peer.ErrRefused) {
		t.Errorf("Close: %v, want a dispute for ErrClock, and ErrRefused", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	checkPaid(t, r, v, l.ID(), 0)
	leave(t, m, l)
}

// TestEquivocation: the two records that a provider signed for one number are
// kept side by side, each with its signature, for anyone to check.
func TestEquivocation(t *testing.T) {
	m := newMarket(t)
	v := newVillain(t, m, nil)
	v.script = func(p *plot) {
		p.honest(2)
		p.usage(p.resign(p.sent, func(r *metering.SignedRecord) { r.To++ }))
	}
	r := openRenter(t, m.renterConfig(t, m.payer))
	l, err := r.Rent(t.Context(), v.server.URL, RentOptions{Deposit: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var dispute *Dispute
	if err := l.Run(t.Context()); !errors.As(err, &dispute) || dispute.Channel != l.ID() {
		t.Fatalf("Run: %v, want a dispute of this channel", err)
	}
	kept, err := l.Evidence(t.Context())
	if err != nil || len(kept) != 1 {
		t.Fatalf("%d pieces of evidence, %v", len(kept), err)
	}
	var pair struct{ Accepted, Refused metering.SignedRecord }
	if err := json.Unmarshal(kept[0].Document, &pair); err != nil {
		t.Fatal(err)
	}
	domain := metering.Domain(31337, m.Escrow)
	for _, rec := range []metering.SignedRecord{pair.Accepted, pair.Refused} {
		who, err := eip712.Recover(rec.Digest(domain), rec.Signature)
		if err != nil || who != v.key.Address() || rec.Sequence != 2 {
			t.Errorf("record %d is signed by %s (%v)", rec.Sequence, who, err)
		}
	}
	if pair.Accepted.Digest(domain) == pair.Refused.Digest(domain) {
		t.Error("it is one record twice")
	}
	if err := l.Run(t.Context()); !errors.As(err, &dispute) {
		t.Errorf("Run after a dispute: %v, want the dispute", err)
	}
}

// leave gets the deposit back without the provider, the grace period included.
func leave(t *testing.T, m *market, l *Rental) Closing {
	t.Helper()
	type result struct {
		Closing
		error
	}
	done := make(chan result, 1)
	go func() {
		c, err := l.Leave(t.Context())
		done <- result{c, err}
	}()
	eventually(t, "the request to close", func() bool {
		view, err := l.escrow.View(t.Context(), l.ID(), nil)
		return err == nil && view.CloseRequestedAt != 0
	})
	select {
	case r := <-done:
		t.Fatalf("left within the grace period: %+v", r)
	case <-time.After(100 * time.Millisecond):
	}
	m.AdvanceTime(t, l.escrow.Grace())
	r := <-done
	if r.error != nil {
		t.Fatal(r.error)
	}
	return r.Closing
}

// TestRefusedClose: a provider that does not close, or says so and does not,
// only costs the grace period.
func TestRefusedClose(t *testing.T) {
	m := newMarket(t)
	for _, test := range []struct {
		name    string
		closing func(http.ResponseWriter)
	}{
		{"refuses", nil},
		{"says that it did", func(w http.ResponseWriter) { w.WriteHeader(http.StatusOK) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			v := newVillain(t, m, nil)
			v.script, v.closing = func(p *plot) { p.honest(1000) }, test.closing
			config := m.renterConfig(t, m.payer)
			config.ClockOff = 1000 * time.Hour
			r := openRenter(t, config)
			l, err := r.Rent(t.Context(), v.server.URL, RentOptions{Deposit: "1", PayEvery: 60 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := background(t.Context(), l)
			eventually(t, "a payment", func() bool { s := l.Snapshot(); return !s.Paid.IsZero() })
			if _, err := l.Close(t.Context()); !errors.Is(err, peer.ErrRefused) {
				t.Fatalf("Close: %v, want ErrRefused", err)
			}
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			if _, err := l.payer.Pay(t.Context(), l.ID(), l.Snapshot().Owed); !errors.Is(err, channel.ErrClosing) {
				t.Errorf("paying after the close was asked for: %v, want ErrClosing", err)
			}
			leave(t, m, l)
		})
	}
}
