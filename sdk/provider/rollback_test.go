package provider

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// front has one address for a provider that is stopped and started.
type front struct {
	*httptest.Server
	provider atomic.Pointer[Server]
	full     atomic.Bool // whoever attaches hears that no GPU is free
}

func newFront(t *testing.T) *front {
	f := &front{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := f.provider.Load()
		if p == nil {
			panic(http.ErrAbortHandler)
		}
		if f.full.Load() && r.Method == http.MethodGet && r.Header.Get("Authorization") != "" {
			wire.NoCapacity.With("a test has all GPUs taken").Write(w)
			return
		}
		p.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { f.CloseClientConnections(); f.Close() })
	return f
}

func (r *rig) renter(t *testing.T, database string, change ...func(*renter.Config)) *renter.Client {
	t.Helper()
	config := renter.Config{
		Chain: wallet.Chain{Backend: r.chain.Backend, ClockTolerance: 24 * time.Hour, Poll: 50 * time.Millisecond}, Token: r.chain.Token, Escrow: r.chain.Escrow, Key: r.payer, Database: database,
		Caps:     wallet.Caps{PricePerGPUHour: "4.00", PerLease: "10", PerDay: "20", PerPayee: wallet.Unlimited},
		Patience: 20 * time.Second, Log: slog.New(slog.DiscardHandler)}
	for _, c := range change {
		c(&config)
	}
	renter, err := renter.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { renter.Close() })
	return renter
}

func awaitRecord(t *testing.T, l *renter.Rental, sequence uint64) (s renter.State) {
	t.Helper()
	eventually(t, fmt.Sprintf("record %d", sequence), func() bool {
		s = l.Snapshot()
		return s.Sequence >= sequence
	})
	return s
}

// TestRestoredMachine: with the image of a whole machine from before, the file of high-water marks is as old as the
// database. The renter shows what it has: the lease ends without another signature, and exactly what its records say is
// paid. What the payee settled meanwhile on the chain is found there.
func TestRestoredMachine(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"lease in the copy", "lease begun since", "nothing is left"} {
		t.Run(name, func(t *testing.T) {
			begun := name == "lease in the copy"
			key := newNotary(t)
			r := newRig(t, quiet, func(c *Config) { c.Metering.Key = key })
			f := newFront(t)
			image := func() testrig.Files {
				f.provider.Store(nil)
				f.CloseClientConnections()
				r.shut()
				defer func() { r.start(); f.provider.Store(r.provider) }()
				return testrig.CopyFiles(t, r.config.Database, r.config.Database+".signed")
			}
			f.provider.Store(r.provider)
			var old testrig.Files
			if !begun {
				old = image()
			}
			client := r.renter(t, filepath.Join(t.TempDir(), "renter.db"))
			rental, err := client.Rent(t.Context(), f.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			done := renterrig.Background(t.Context(), rental)
			awaitRecord(t, rental, 3)
			if begun {
				old = image()
			}
			awaitRecord(t, rental, rental.Snapshot().Sequence+5)
			if err := r.provider.Settle(t.Context()); err != nil {
				t.Fatal(err)
			}
			f.provider.Store(nil)
			f.CloseClientConnections()
			r.shut()
			old.Restore(t)
			if name == "nothing is left" {
				for _, file := range []string{r.config.Database, r.config.Database + ".signed"} {
					if err := os.Remove(file); err != nil {
						t.Fatal(err)
					}
				}
			}
			r.start()
			f.provider.Store(r.provider)
			if err := <-done; err != nil {
				t.Fatalf("the renter's run: %v", err)
			}
			s := rental.Snapshot()
			closed, err := rental.Close(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if closed.Settled != s.Owed || closed.Owed != s.Owed {
				t.Errorf("settled %s of %s", closed.Settled.Dec(), s.Owed.Dec())
			}
			if kept, err := client.Evidence(t.Context(), rental.ID()); err != nil || len(kept) != 0 {
				t.Errorf("the renter accuses a provider that signed no fork: %v, %v", kept, err)
			}
			b, err := r.provider.Export(t.Context(), rental.ID())
			if err != nil || len(b.Evidence) == 0 {
				t.Fatalf("the record that the renter showed is not kept: %v", err)
			}
			var shown wire.ShownRecord
			if err := json.Unmarshal([]byte(b.Evidence[0].Document), &shown); err != nil || shown.Record.Sequence != s.Sequence || shown.Record.Owed != s.Owed {
				t.Errorf("kept: %+v, %v", shown.Record, err)
			}
		})
	}
}

// TestRestoredRenter: a renter whose database is from before goes on with its lease, or closes it, and is accused of
// nothing.
func TestRestoredRenter(t *testing.T) {
	r := newRig(t, quiet)
	f := newFront(t)
	f.provider.Store(r.provider)
	path := filepath.Join(t.TempDir(), "renter.db")
	client := r.renter(t, path)
	rental, err := client.Rent(t.Context(), f.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	pause := func() {
		t.Helper()
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, rental)
	awaitRecord(t, rental, 3)
	stop()
	<-done
	pause()
	old := testrig.CopyFiles(t, path)

	client = r.renter(t, path)
	if rental, err = client.Resume(t.Context(), rental.ID()); err != nil {
		t.Fatal(err)
	}
	ctx, stop = context.WithCancel(t.Context())
	done = renterrig.Background(ctx, rental)
	awaitRecord(t, rental, rental.Snapshot().Sequence+5)
	stop()
	<-done
	if err := r.provider.Settle(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause()
	old.Restore(t)

	client = r.renter(t, path)
	if rental, err = client.Resume(t.Context(), rental.ID()); err != nil {
		t.Fatal(err)
	}
	done = renterrig.Background(t.Context(), rental)
	awaitRecord(t, rental, rental.Snapshot().Sequence+3)
	closed, err := rental.Close(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("the renter's run: %v", err)
	}
	if closed.Settled != closed.Owed {
		t.Errorf("settled %s of %s", closed.Settled.Dec(), closed.Owed.Dec())
	}
	if b, err := r.provider.Export(t.Context(), rental.ID()); err != nil || len(b.Evidence) != 0 {
		t.Errorf("the provider keeps evidence of nothing: %+v, %v", b.Evidence, err)
	}
}

// TestChannelTakenUpFromTheChain: a provider that has lost its database takes a channel up from the chain when a client
// shows its terms, and what was used is not served a second time: to the base unit where the file of what was signed is left,
// else all that was vouchered.
func TestChannelTakenUpFromTheChain(t *testing.T) {
	t.Parallel()
	t.Run("the records signed are left", func(t *testing.T) { takenUp(t, true) })
	t.Run("nothing is left", func(t *testing.T) { takenUp(t, false) })
}

func takenUp(t *testing.T, marks bool) {
	r := newRig(t, quiet)
	lease := r.open(1, 500_000, "")
	lease.record()
	ended := lease.release()
	used := ended.Owed.Uint64()
	lease.pay(700)
	r.shut()
	if err := os.Remove(r.config.Database); err != nil {
		t.Fatal(err)
	}
	if !marks {
		if err := os.Remove(r.config.Database + ".signed"); err != nil {
			t.Fatal(err)
		}
		used = 700
	}
	r.start()
	ask := func(change func(*wire.Credential)) *http.Response {
		cred := lease.credential(wire.ActionVoucher, 700)
		cred.Payload.Salt = &lease.terms.Salt
		var err error
		if cred.Payload.Proof, err = wire.Prove(t.Context(), r.payer, lease.terms, cred.Challenge.ID, "attach"); err != nil {
			t.Fatal(err)
		}
		change(cred)
		return r.do("GET", "", cred)
	}
	for name, refused := range map[string]struct {
		change func(*wire.Credential)
		status int
	}{
		"no terms":    {func(c *wire.Credential) { c.Payload.Salt = nil }, http.StatusGone},
		"other terms": {func(c *wire.Credential) { c.Payload.Salt = &common.Hash{9} }, http.StatusPaymentRequired},
		"not on the chain": {func(c *wire.Credential) {
			terms := r.terms(r.payer.Address(), 9)
			c.Payload.ChannelID, c.Payload.Salt = terms.ID(), &terms.Salt
		}, http.StatusGone},
	} {
		if resp := ask(refused.change); resp.StatusCode != refused.status {
			t.Errorf("%s: %s", name, resp.Status)
		}
	}
	lease.attach(ask(func(*wire.Credential) {}))
	if got := lease.lease.OwedBefore.Uint64(); got != used {
		t.Errorf("the next lease begins with %d owed, want %d", got, used)
	}
	final := lease.release()
	due := max(700, final.Owed.Uint64())
	if receipt := lease.close(due); receipt.TxHash == nil || receipt.AcceptedCumulative.Uint64() != due {
		t.Errorf("closed: %+v", receipt)
	}
}

// TestShownRecordOfNobody: a record that we did not sign, or of another channel, or that we have, ends nothing.
func TestShownRecordOfNobody(t *testing.T) {
	r := newRig(t, quiet)
	lease := r.open(1, 500_000, "")
	mine := lease.record()
	stranger := newNotary(t)
	show := func(change func(*wire.ShownRecord), sign channel.Signer) string {
		s := wire.ShownRecord{Record: mine.Record, Signature: mine.Signature}
		change(&s)
		if sign != nil {
			var err error
			if s.Signature, err = sign.Sign(t.Context(), s.Record.Digest(metering.Domain(lease.terms.ChainID, lease.terms.Escrow))); err != nil {
				t.Fatal(err)
			}
		}
		h := http.Header{}
		if err := s.Set(h); err != nil {
			t.Fatal(err)
		}
		return h.Get(wire.HeaderRecord)
	}
	for name, header := range map[string]string{
		"what we have":         show(func(*wire.ShownRecord) {}, nil),
		"a stranger's":         show(func(s *wire.ShownRecord) { s.Record.Sequence = 1000 }, stranger),
		"forged":               show(func(s *wire.ShownRecord) { s.Record.Sequence = 1000 }, nil),
		"of another channel":   show(func(s *wire.ShownRecord) { s.Record.ChannelID, s.Record.Sequence = common.Hash{1}, 1000 }, r.config.Key),
		"no signature, though": show(func(s *wire.ShownRecord) { s.Record.Sequence, s.Signature = 1000, nil }, nil),
	} {
		lease.again(wire.HeaderRecord, header)
		if lease.lease.State == wire.StateEnded {
			t.Errorf("%s: the lease ended", name)
		}
	}
	if b, err := r.provider.Export(t.Context(), lease.terms.ID()); err != nil || len(b.Evidence) != 0 {
		t.Errorf("kept: %+v, %v", b.Evidence, err)
	}
	cred := lease.credential(wire.ActionVoucher, 0)
	cred.Payload.LeaseSecret = lease.lease.Secret
	if resp := r.do("GET", "", cred, wire.HeaderRecord, "no record"); resp.StatusCode != http.StatusPaymentRequired && resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a header that does not parse: %s", resp.Status)
	}
}

// TestAccessIsForgotten: the access document of a lease is in no database when it has ended, and never in a renter's.
func TestAccessIsForgotten(t *testing.T) {
	const password = "hunter2 of the tests"
	r := newRig(t, quiet, func(c *Config) {
		c.Allocator = &gpu.HostAllocator{Devices: []string{"SIM-GPU-0"}, AllocateCommand: []string{"echo", password}}
	})
	path := filepath.Join(t.TempDir(), "renter.db")
	client := r.renter(t, path)
	rental, err := client.Rent(t.Context(), r.server.URL, renter.Options{Deposit: "0.3", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	done := renterrig.Background(t.Context(), rental)
	s := awaitRecord(t, rental, 2)
	if got := string(rental.Access()); got != `"`+password+`"` {
		t.Errorf("access: %s", got)
	}
	if row := readRental(t, path, rental.ID()); len(row.Access) != 0 {
		t.Errorf("the renter's database has %s", row.Access)
	}
	if _, err := rental.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if a := r.row(s.Lease).Allocation; strings.Contains(a, password) || !strings.Contains(a, "SIM-GPU-0") {
		t.Errorf("the provider's database has %s", a)
	}
}
