package renter_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/boundlog"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestContradictionIsNoOutage: two endpoints that contradict each other are reached. The error says who says what of what,
// names the channel, and does not speak of an endpoint that is unreachable.
func TestContradictionIsNoOutage(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	config, bad := behindEndpoint(t, m)
	config.RPC += "," + m.URL
	l, err := renterrig.Open(t, config).Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Lease().Detach()
	bad.On("eth_blockNumber", badrpc.Says("0xffffff"))
	_, looked := l.Lease().Look(t.Context(), 1)
	_, settled := l.Lease().SettledView(t.Context())
	bad.Heal()
	bad.On("eth_call", badrpc.Says("0x01"))
	_, viewed := l.Lease().Escrow.View(t.Context(), l.ID(), nil)
	for name, err := range map[string]error{"look": looked, "settled": settled, "view": viewed} {
		if !errors.Is(err, chain.ErrContradiction) || !errors.Is(err, chain.ErrUnreachable) || strings.Contains(err.Error(), "unreachable") ||
			strings.Count(err.Error(), l.ID().Hex()) != 1 || strings.Count(err.Error(), chain.ErrContradiction.Error()) != 1 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWarningsNameTheChannelOnce: as an attribute, and not in the error besides.
func TestWarningsNameTheChannelOnce(t *testing.T) {
	m := testrig.NewMarket(t)
	d := newDrawer(t, m)
	d.Script = func(p *testrig.Stream) { p.Honest(1) } // and then the stream ends, each time
	var log bytes.Buffer
	config := renterrig.Config(t, m, m.Payer)
	config.Log = slog.New(slog.NewTextHandler(&log, nil))
	l, err := renterrig.Open(t, config).Rent(t.Context(), d.Server.URL, renter.Options{Deposit: "0.5"})
	if err != nil {
		t.Fatal(err)
	}
	l.Lease().Detach()
	boundlog.Warn(config.Log, "it broke", l.ID(), fmt.Errorf("channel %s: %w", l.ID(), errors.New("why")), "retry", 1)
	d.Server.CloseClientConnections()
	d.Server.Close()
	_ = l.Run(t.Context())
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	warnings := 0
	for _, line := range lines {
		if strings.Contains(line, "level=WARN") {
			warnings++
		}
		if n := strings.Count(line, l.ID().Hex()); n > 1 {
			t.Errorf("%d times: %s", n, line)
		}
	}
	if warnings < 2 {
		t.Errorf("nothing was warned of: %s", log.String())
	}
}

// TestDisputeNamesTheClock: a renter whose machine was stopped, and whose clock nobody set, cannot know it. What it says of its
// provider then says what to do.
func TestDisputeNamesTheClock(t *testing.T) {
	for reason, named := range map[error]bool{verify.ErrClock: true, verify.ErrCredit: true, verify.ErrForked: false} {
		if said := (&wallet.Dispute{Reason: boundlog.Plain(reason)}).Error(); strings.Contains(said, "its clock not set") != named {
			t.Errorf("%v: %s", reason, said)
		}
	}
}
