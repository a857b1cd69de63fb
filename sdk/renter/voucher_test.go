package renter_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestShownVoucher: a voucher that the provider shows with the lease counts as signed if we signed it, is on disk before any
// record is, and explains the records that were paid by it and by those before it; any other changes nothing.
func TestShownVoucher(t *testing.T) {
	m := testrig.NewMarket(t)
	payer, stranger := channel.NewKey(m.Payer), channel.NewKey(m.Payee)
	const signed, spareRecords = 500_000, 64 // the second as of a lease that no voucher explains
	for name, test := range map[string]struct {
		by     channel.Signer
		change func(*wire.HeldVoucher, *channel.Voucher)
		want   uint64
	}{
		"ours":                {payer, func(*wire.HeldVoucher, *channel.Voucher) {}, signed},
		"of a stranger":       {stranger, func(*wire.HeldVoucher, *channel.Voucher) {}, 0},
		"of another channel":  {payer, func(_ *wire.HeldVoucher, v *channel.Voucher) { v.ChannelID[0]++ }, 0},
		"for less":            {payer, func(_ *wire.HeldVoucher, v *channel.Voucher) { v.Cumulative.SubUint64(&v.Cumulative, 1) }, 0},
		"without a signature": {payer, func(h *wire.HeldVoucher, _ *channel.Voucher) { h.Signature = nil }, 0},
		"for all there is":    {payer, func(h *wire.HeldVoucher, _ *channel.Voucher) { h.CumulativeAmount.Int = channel.MaxAmount() }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			v := testrig.NewHostile(t, m, func(o *wire.Offer) { o.RecordEvery = time.Minute.Milliseconds() })
			v.ForgeLease = func(l *wire.Lease) {
				voucher := channel.Voucher{ChannelID: l.ChannelID, Cumulative: *uint256.NewInt(signed)}
				l.Voucher = &wire.HeldVoucher{CumulativeAmount: wire.NewAmount(voucher.Cumulative)}
				test.change(&wire.HeldVoucher{}, &voucher)
				voucher, err := channel.EscrowDomain(31337, m.Escrow).Sign(t.Context(), test.by, voucher.ChannelID, voucher.Cumulative)
				if err != nil {
					t.Error(err)
				}
				l.Voucher.Signature = voucher.Signature
				test.change(l.Voucher, &voucher)
			}
			v.Script = func(p *testrig.Stream) {
				for range 4 * spareRecords {
					p.Usage(p.Next(50 * time.Millisecond))
				}
			}
			config := renterrig.Config(t, m, m.Payer)
			clock := &later{Clock: metering.System}
			log := &testrig.Log{}
			config.Clock, config.Patience, config.Caps.PerDay, config.Log = clock, time.Hour, wallet.Unlimited, slog.New(slog.NewTextHandler(log, nil))
			r := renterrig.Open(t, config)
			l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1"})
			if err != nil {
				t.Fatal(err)
			}
			if s := l.Snapshot(); s.Paid.Uint64() != test.want {
				t.Errorf("%s is signed for, want %d", s.Paid.Dec(), test.want)
			}
			if said := strings.Contains(log.String(), "restored from a backup"); said != (test.want != 0) {
				t.Errorf("the log says that the database was restored: %v", said)
			}
			clock.by.Store(int64(15 * time.Minute))
			ctx, stop := context.WithCancel(t.Context())
			done := renterrig.Background(ctx, l)
			testrig.Eventually(t, "records", func() bool { return l.Snapshot().Sequence >= 4*spareRecords || len(done) > 0 })
			stop()
			var dispute *wallet.Dispute
			if err := <-done; errors.As(err, &dispute) != (test.want == 0) {
				t.Errorf("Run: %v", err)
			}
		})
	}
}
