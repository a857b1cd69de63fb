package provider

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/sqlfault"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wire"
	"github.com/gpupay/gpupay/sdk/x402"
)

// mayBeSilent are places where a fault costs nobody anything, and why.
var mayBeSilent = map[string]string{
	"sdk/provider.(*Server).free":   "a challenge does not say how many GPUs are free; whether one is is asked again, aloud, when a lease begins",
	"highwater.(*Marks).Hand:":      "what is read there saves a write, which is done instead",
	"channel/store.(*group).reload": "what a write undid could not be read again: the write's own error is said",
}

// A failing is a provider whose disk fails for a moment at each place that sends it a statement, once.
type failing struct {
	disk *sqlfault.Disk
	log  testrig.Log
	dir  string
}

func newFailing(t *testing.T) *failing {
	dir := t.TempDir()
	f := &failing{disk: sqlfault.At(t, dir), dir: dir}
	t.Cleanup(func() {
		if t.Failed() && testing.Verbose() {
			fmt.Println(f.log.String())
		}
	})
	return f
}

func (f *failing) change(c *Config) {
	c.Database = filepath.Join(f.dir, "provider.db")
	c.Commands.Timeout = time.Second // between two looks at what could not be begun or ended
	c.Log = slog.New(slog.NewTextHandler(&f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// TestNoFaultOfTheDatabaseIsSilent: each place that sends a statement to the database is told once that the disk failed. Clients send again what
// was answered 5xx, and end with what they would have had; every single fault is in the log.
func TestNoFaultOfTheDatabaseIsSilent(t *testing.T) {
	t.Parallel()
	for name, flow := range map[string]func(b *buyer){
		"ticks": func(b *buyer) {
			b.open(20_000)
			b.again()
			b.idle()
			b.again()
			b.refund(0)
		},
		"stream": func(b *buyer) {
			b.path = "/lease"
			seen := func(p *x402.PaymentPayload) bool {
				resp := b.pay(p)
				if resp.StatusCode == http.StatusPaymentRequired {
					b.corrected(resp)
					return false
				}
				receipt, err := x402.ParseSettleResponse(resp.Header)
				if err != nil {
					b.Fatal(err)
				}
				b.charged = receipt.ChannelState.ChargedCumulativeAmount.Uint64()
				in := wire.NewEvents(resp.Body)
				for {
					if e, err := in.Next(); err != nil || e.Name == wire.EventUsage {
						return err == nil
					}
				}
			}
			for p := b.depositing(b.next(), 100_000); !seen(p); { // a stream that breaks off is had again
			}
			b.idle()
			for !seen(b.payment(b.next())) {
			}
			b.refund(1000)
		},
		"requests": func(b *buyer) {
			b.path = "/infer"
			b.open(30_000)
			p := b.payment(b.next())
			first := b.take(b.keyed(p, "k"))
			b.charged -= first.ChargedAmount.Uint64()
			if again := b.take(b.keyed(p, "k")); again.ChargedAmount.Int != first.ChargedAmount.Int {
				b.Errorf("charged %s, and %s for the same answer", first.ChargedAmount.Dec(), again.ChargedAmount.Dec())
			}
			b.refund(0)
		},
	} {
		t.Run("x402 "+name, func(t *testing.T) {
			f := newFailing(t)
			r := newPayRig(t, f.change)
			served, err := r.provider.Metered(Route{MaxTime: 5 * time.Second, Devices: []string{r.provider.leases.Offered.Devices[0].UUID}}, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
				testclock.Sleep(20 * time.Millisecond)
				_, _ = io.WriteString(w, `{}`)
			}))
			if err != nil {
				t.Fatal(err)
			}
			mux := http.NewServeMux()
			mux.Handle("/", r.provider)
			mux.Handle("/infer", served)
			r.server.Close()
			r.server = httptest.NewServer(triedAgain{mux})
			b := r.buyer("/tick")
			f.disk.Arm(true)
			flow(b)
			if err := r.provider.Settle(t.Context()); err != nil { // the next try finds the disk well
				fmt.Fprintln(&f.log, err)
			}
			f.disk.Arm(false)
			eventually(t, "what was used is claimed", func() bool {
				_ = r.provider.Settle(t.Context())
				used, on := b.used(), b.on().View
				return on.Settled == used
			})
			r.shut()
			f.disk.Said(t, f.log.String(), mayBeSilent)
		})
	}
	t.Run("session", func(t *testing.T) {
		f := newFailing(t)
		r := newRig(t, f.change, generousCredit)
		r.server.Close()
		r.server = httptest.NewServer(triedAgain{r.provider})
		f.disk.Arm(true)
		lease := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 1)}
		resp := r.do("GET", "", r.openCredential(r.payer, lease.terms, 100_000, 0))
		for resp.StatusCode != http.StatusOK { // the channel is open by now
			cred := lease.credential(wire.ActionVoucher, 0)
			cred.Payload.Proof = lease.proof(cred.Challenge.ID, "attach")
			resp = r.do("GET", "", cred)
		}
		lease.attach(resp)
		lease.pay(owedIn(lease.usage()))
		resp = r.do("POST", "", &wire.Credential{Challenge: r.challenge(), Payload: *lease.topUp(50_000, 3)})
		if resp.StatusCode != http.StatusOK {
			t.Fatal(wire.ParseProblem(resp))
		}
		owed := owedIn(lease.release())
		lease.pay(owed)
		lease.close(owed)
		var bundles int
		for range 200 { // what is over is written into the archive, once, and deleted
			n, err := r.provider.Prune(t.Context(), time.Now().Add(time.Hour), func(*audit.Bundle) error { bundles++; return nil })
			if err == nil && n > 0 {
				break
			}
			fmt.Fprintln(&f.log, err)
			time.Sleep(50 * time.Millisecond)
		}
		f.disk.Arm(false)
		if bundles == 0 {
			t.Error("nothing was archived")
		}
		if got := r.balance(r.payer.Address()); got != 1_000_000-owed {
			t.Errorf("the payer has %d, want %d back", got, 1_000_000-owed)
		}
		r.shut()
		f.disk.Said(t, f.log.String(), mayBeSilent)
	})
}

// usage is a record of the lease, whose stream is had again where it breaks off.
func (t *tab) usage() (rec metering.SignedRecord) {
	t.Helper()
	for {
		e, err := t.in.Next()
		switch {
		case err != nil:
			cred := t.credential(wire.ActionVoucher, 0)
			cred.Payload.LeaseSecret = t.lease.Secret
			secret := t.lease.Secret
			t.attach(t.do("GET", "", cred))
			t.lease.Secret = cmp.Or(t.lease.Secret, secret)
		case e.Name == wire.EventUsage:
			if err := json.Unmarshal(e.Data, &rec); err != nil {
				t.Fatal(err)
			}
			return rec
		}
	}
}

// triedAgain has requests that are answered 5xx or 409 sent again, as clients do.
type triedAgain struct{ http.Handler }

func (h triedAgain) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for n := range 200 {
		time.Sleep(time.Duration(n) * 5 * time.Millisecond)
		answer := &sound{ResponseWriter: w, header: make(http.Header)}
		h.Handler.ServeHTTP(answer, r)
		if !answer.failed {
			return
		}
	}
	http.Error(w, "answered 5xx in 200 tries", http.StatusInternalServerError)
}

// sound keeps an answer back that is to be tried again.
type sound struct {
	http.ResponseWriter
	header        http.Header
	begun, failed bool
}

func (s *sound) Header() http.Header { return s.header }

func (s *sound) WriteHeader(status int) {
	if s.failed = status >= 500 || status == http.StatusConflict; s.failed { // 409: the end of a lease is still to be written
		return
	}
	if !s.begun && status >= 200 {
		s.begun = true
		clear(s.ResponseWriter.Header())
		maps.Copy(s.ResponseWriter.Header(), s.header)
	}
	s.ResponseWriter.WriteHeader(status)
}

func (s *sound) Write(p []byte) (int, error) {
	if !s.begun && !s.failed {
		s.WriteHeader(http.StatusOK)
	}
	if s.failed {
		return len(p), nil
	}
	return s.ResponseWriter.Write(p)
}

func (s *sound) Unwrap() http.ResponseWriter { return s.ResponseWriter }
