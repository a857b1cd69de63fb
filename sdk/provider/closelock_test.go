package provider

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestNoLeaseBeginsWhileItsChannelCloses: what the channel held is on its way back
// to the payer then. Who asks for a lease meanwhile is refused, at once or by what
// the channel is afterwards, and not served by what it was before.
func TestNoLeaseBeginsWhileItsChannelCloses(t *testing.T) {
	r, still, lease := closingRig(t)
	closing, again := lease.leaving()
	still.Store(true)
	closed, attached := make(chan *http.Response, 1), make(chan *http.Response, 1)
	go func() { closed <- r.do("POST", "", closing) }()
	lease.closeSent()
	go func() { attached <- r.do("GET", "", again) }()
	time.Sleep(300 * time.Millisecond)
	still.Store(false)
	if resp := <-closed; resp.StatusCode != http.StatusOK {
		t.Errorf("close: %s %v", resp.Status, wire.ParseProblem(resp))
	}
	if resp := <-attached; resp.StatusCode == http.StatusOK || r.provider.leases.Running(lease.terms.ID()) != nil {
		t.Errorf("a lease on a channel that closes: %s", resp.Status)
	}
}

// TestNoLeaseBeginsBehindAClose: nor does one begin when nobody waits for the
// close any more, or another gateway does.
func TestNoLeaseBeginsBehindAClose(t *testing.T) {
	r, still, lease := closingRig(t)
	closing, again := lease.leaving()
	still.Store(true)
	ctx, hangUp := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		req, err := http.NewRequestWithContext(ctx, "POST", r.server.URL+"/lease", nil)
		if err == nil {
			text, _ := closing.Header()
			req.Header.Set("Authorization", text)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				resp.Body.Close()
			}
		}
	}()
	lease.closeSent()
	hangUp()
	<-gone
	if resp := r.do("GET", "", again); resp.StatusCode == http.StatusOK {
		t.Errorf("a lease on a channel that closes: %s", resp.Status)
	}
	still.Store(false)
}

// closingRig has a lease that was released, on a chain whose blocks can be held up.
func closingRig(t *testing.T) (*rig, *atomic.Bool, *tab) {
	t.Helper()
	t.Parallel()
	net, err := devchain.Start(t.Context(), devchain.Options{Manual: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	still, mined := new(atomic.Bool), make(chan struct{})
	t.Cleanup(func() { <-mined }) // before the chain closes
	go func() {
		defer close(mined)
		for ; t.Context().Err() == nil; time.Sleep(20 * time.Millisecond) {
			if !still.Load() {
				net.Mine()
			}
		}
	}()
	r := rigOn(t, net, func(r *rig) *channel.Key { return r.fund(t, 1_000_000) })
	return r, still, r.open(1, 100_000, "")
}

// leaving releases the lease; its channel is closed by the first credential, and
// another lease asked for by the second.
func (t *tab) leaving() (closing, again *wire.Credential) {
	t.Helper()
	owed := t.release().Owed
	closing = t.credential(wire.ActionClose, owed.Uint64())
	closing.Payload.LeaseSecret = t.lease.Secret
	again = t.credential(wire.ActionVoucher, owed.Uint64())
	again.Payload.Proof = t.proof(again.Challenge.ID, "attach")
	return closing, again
}

// closeSent waits until the channel's close is in the outbox.
func (t *tab) closeSent() {
	t.Helper()
	for {
		tx, err := t.provider.sender.Sent(t.Context(), t.terms.ID(), chain.Close, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tx != "" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestNothingIsAcceptedBehindAClose: what a close leaves out could not be fetched
// any more. A voucher that comes after it was sent is refused, and so is a lease at
// a gateway that looked before. A close that comes to nothing leaves the channel as
// it was.
func TestNothingIsAcceptedBehindAClose(t *testing.T) {
	t.Parallel()
	for _, database := range []string{"file", onPostgres} {
		t.Run(database, func(t *testing.T) {
			r, still, lease := closingRig(t)
			closing, _ := lease.leaving()
			late := lease.credential(wire.ActionVoucher, 50_000)
			still.Store(true)
			closed := make(chan *http.Response, 1)
			go func() { closed <- r.do("POST", "", closing) }()
			lease.closeSent()
			if resp := r.do("POST", "", late); resp.StatusCode == http.StatusOK {
				t.Error("a voucher is acknowledged that the close does not fetch")
			}
			row := leasestore.Row{ID: common.Hash{9}.Hex(), Channel: lease.terms.ID().Hex(), Allocation: "{}", OwedBefore: "0", State: wire.StateAllocating}
			if err := r.provider.store.Leases.Insert(t.Context(), row); !errors.Is(err, channel.ErrClosing) {
				t.Errorf("a lease that another gateway was about to begin: %v", err)
			}
			still.Store(false)
			if resp := <-closed; resp.StatusCode != http.StatusOK {
				t.Errorf("close: %s %v", resp.Status, wire.ParseProblem(resp))
			}
			if s, err := r.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || s.Status != channel.Finalized || s.Accepted.Gt(&s.Settled) {
				t.Errorf("%s is accepted, %s settled, %s, %v", s.Accepted.Dec(), s.Settled.Dec(), s.Status, err)
			}

			other := r.open(2, 100_000, "")
			final := other.release()
			id := other.terms.ID()
			if err := sessionOf(r.provider).Closing.KeepOpen(t.Context(), id, nil, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := r.provider.payee.Close(t.Context(), id); err != nil {
				t.Fatal(err)
			}
			if err := sessionOf(r.provider).Closing.KeepOpen(t.Context(), id, nil, nil); err != nil {
				t.Fatal(err)
			}
			other.pay(final.Owed.Uint64())
		})
	}
}
