package rig

import (
	"bytes"
	"context"
	"net/http"
	"time"

	"github.com/coder/websocket"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/metering/usage"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Stream is one event stream of a hostile provider and the metering behind it.
type Stream struct {
	*Hostile
	w        http.ResponseWriter
	conn     *websocket.Conn // where vouchers come through the stream
	Gone     context.Context // done when the renter has hung up
	Lease    metering.Lease
	Clock    *sim.Clock
	Source   *sim.Source
	Meter    *usage.Meter
	Recorder *usage.Recorder
	Sent     metering.SignedRecord // by Usage, the last one
}

// NewStream meters a lease on a channel.
func (v *Hostile) NewStream(w http.ResponseWriter, channelID common.Hash) *Stream {
	p := &Stream{Hostile: v, w: w, Clock: sim.NewClock()}
	p.Source = sim.New(2, sim.Options{Clock: p.Clock})
	p.Lease = metering.Lease{
		ID: common.HexToHash("0x1ea5e"), ChannelID: channelID, OfferHash: v.Offer.Hash, ChainID: 31337, Escrow: v.Market.Escrow,
		Price: v.Price, Devices: []string{sim.UUID(0)},
	}
	p.Restart(p.Lease, nil)
	return p
}

// Restart meters from now on under other terms.
func (p *Stream) Restart(lease metering.Lease, last *metering.Record) {
	var err error
	if p.Meter, err = usage.NewMeter(usage.Config{Devices: lease.Devices, Tick: 50 * time.Millisecond}); err != nil {
		p.T.Error(err)
	}
	if p.Recorder, err = usage.NewRecorder(lease, p.Hostile.MeterKey, last); err != nil {
		p.T.Error(err)
	}
	p.read(lease.Devices[0])
}

func (p *Stream) read(uuid string) {
	reading, err := p.Source.Read(context.Background(), uuid)
	if err == nil {
		_, err = p.Meter.Observe(reading)
	}
	if err != nil {
		p.T.Error(err)
	}
}

// Next is the record of some more GPU time, however long it really took.
func (p *Stream) Next(worth time.Duration) metering.SignedRecord {
	uuid := p.Meter.Config().Devices[0]
	for ; worth > 0; worth -= 50 * time.Millisecond {
		p.Clock.Advance(50 * time.Millisecond)
		p.read(uuid)
	}
	rec, err := p.Recorder.Next(context.Background(), p.Meter.Cut(), false)
	if err != nil {
		p.T.Error(err)
	}
	return rec
}

// Honest sends n records, each after the time that it states.
func (p *Stream) Honest(n int) {
	for range n {
		time.Sleep(50 * time.Millisecond)
		p.Usage(p.Next(50 * time.Millisecond))
	}
}

// Overcharge sends a record that owes more than time and price make, as the payee signed it.
func (p *Stream) Overcharge() {
	p.Usage(p.Resign(p.Next(50*time.Millisecond), func(r *metering.SignedRecord) { r.Owed = *uint256.NewInt(900_000) }))
}

// Usage sends a record.
func (p *Stream) Usage(rec metering.SignedRecord) {
	p.Sent = rec
	p.Send(rec.Sequence, wire.EventUsage, rec)
}

// Resign makes a record say something else, properly signed.
func (p *Stream) Resign(rec metering.SignedRecord, change func(*metering.SignedRecord)) metering.SignedRecord {
	change(&rec)
	signature, err := p.Hostile.MeterKey.Sign(context.Background(), rec.Digest(metering.Domain(31337, p.Market.Escrow)))
	if err != nil {
		p.T.Error(err)
	}
	rec.Signature = signature
	return rec
}

// Send sends an event; data is its JSON.
func (p *Stream) Send(id uint64, name string, data any) {
	event, err := wire.NewEvent(id, name, data)
	if err != nil {
		p.T.Error(err)
	}
	p.Raw(event)
}

// Raw sends an event as it is.
func (p *Stream) Raw(event wire.Event) {
	if p.Gone.Err() != nil {
		panic(http.ErrAbortHandler) // nobody listens any more
	}
	var text bytes.Buffer
	_, _ = event.WriteTo(&text)
	p.write(text.Bytes())
}

func (p *Stream) write(text []byte) {
	if p.conn != nil {
		_ = p.conn.Write(p.Gone, websocket.MessageText, text)
		return
	}
	_, _ = p.w.Write(text)
	_ = http.NewResponseController(p.w).Flush()
}

// accept takes vouchers through the stream.
func (p *Stream) accept(r *http.Request) {
	var err error
	if p.conn, err = websocket.Accept(p.w, r, nil); err != nil {
		p.T.Error(err)
		panic(http.ErrAbortHandler)
	}
	life, hungUp := context.WithCancel(context.Background())
	p.Gone = life
	go func() {
		defer hungUp()
		for {
			_, message, err := p.conn.Read(life)
			if err != nil {
				return
			}
			vouchers, err := wire.ParseVouchers(message, p.Lease.ChannelID, nil)
			if err != nil {
				p.T.Error(err)
			}
			for _, v := range vouchers {
				p.count(v)
				p.Paid(p, v.Cumulative)
			}
		}
	}()
}

// Receipt acknowledges an amount, with bytes to spare or too few.
func (p *Stream) Receipt(amount uint256.Int, change func([]byte) []byte) {
	message, err := wire.AppendReceipt(nil, amount)
	if err != nil {
		p.T.Error(err)
	}
	if change != nil {
		message = change(message)
	}
	_ = p.conn.Write(p.Gone, websocket.MessageBinary, message)
}

// Demand asks for a voucher over an amount in base units.
func (p *Stream) Demand(required, deposit uint64) {
	p.Send(0, wire.EventNeedVoucher, wire.NeedVoucher{
		ChannelID: p.Lease.ChannelID, RequiredCumulative: wire.NewAmount(*uint256.NewInt(required)),
		Deposit: wire.NewAmount(*uint256.NewInt(deposit)),
	})
}

// Real makes a hostile provider's record one of a GPU that is not simulated.
func (p *Stream) Real(rec metering.SignedRecord) metering.SignedRecord {
	return p.Resign(rec, func(r *metering.SignedRecord) {
		r.Evidence.Simulated = false
		r.Evidence.Devices[0].Device.Simulated = false
		r.EvidenceHash = r.Evidence.Hash()
	})
}

// RealNext is an honest record of a real GPU, after the ones that real made.
func (p *Stream) RealNext(last *metering.SignedRecord) metering.SignedRecord {
	time.Sleep(50 * time.Millisecond)
	rec := p.Next(50 * time.Millisecond)
	return p.Resign(p.Real(rec), func(r *metering.SignedRecord) {
		if last != nil {
			r.Previous = last.Digest(metering.Domain(31337, p.Market.Escrow))
		}
	})
}
