package provider

import (
	"net/http"
	"os"
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/wire"
)

// TestOldRecordBesideTheNewestVoucher: a renter of a provider that has lost its database, or is back to an older one, shows
// no record or an old one beside its newest voucher. What that voucher paid for is not served a second time.
func TestOldRecordBesideTheNewestVoucher(t *testing.T) {
	t.Parallel()
	for _, files := range []string{"the database", "the database and the records signed"} {
		for _, back := range []string{"lost", "of before the channel", "of before the last records"} {
			for _, shown := range []string{"no record", "an old record", "the newest record"} {
				if files != "the database" && back == "of before the last records" && shown == "no record" {
					continue // nothing is left that could tell
				}
				t.Run(files+" "+back+", "+shown, func(t *testing.T) { oldRecord(t, files == "the database", back, shown) })
			}
		}
	}
}

func oldRecord(t *testing.T, marks bool, back, shown string) {
	r := newRig(t, quiet)
	paths := []string{r.config.Database}
	if !marks {
		paths = append(paths, r.config.Database+".signed")
	}
	copied := func() testrig.Files {
		r.shut()
		defer r.start()
		return testrig.CopyFiles(t, paths...)
	}
	old := copied()
	lease := r.open(1, 500_000, "")
	lease.pay(6_000)
	var first, rec metering.SignedRecord // first is what the renter shows long after it
	known := uint64(2)                   // the newest record in the copy, at most
	if back == "of before the last records" {
		lease.record()
		old = copied()
		known += uint64(lease.row().Sequence)
		lease.again()
	}
	for rec.Owed.Uint64() < 5_000 || first.Sequence <= known {
		if rec = lease.record(); first.Sequence <= known {
			first = rec
		}
	}
	rec = lease.release()
	used := rec.Owed.Uint64()
	lease.pay(used)
	r.shut()
	old.Restore(t)
	if back == "lost" {
		for _, path := range paths {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.start()
	ask := func(header ...string) {
		cred := lease.credential(wire.ActionVoucher, used)
		cred.Payload.Salt = &lease.terms.Salt
		var err error
		if cred.Payload.Proof, err = wire.Prove(t.Context(), r.payer, lease.terms, cred.Challenge.ID, "attach"); err != nil {
			t.Fatal(err)
		}
		lease.attach(r.do("GET", "", cred, header...))
	}
	switch shown {
	case "no record":
		ask()
	case "an old record":
		ask(wire.HeaderRecord, header(t, first))
	default:
		ask(wire.HeaderRecord, header(t, rec))
	}
	if lease.lease.State == wire.StateEnded { // that is said once: the next begins another
		ask()
	}
	if s, err := r.provider.payee.State(t.Context(), lease.terms.ID()); err != nil || s.Spent.Uint64() < used {
		t.Errorf("%d were used and vouchered, and %s count as used (%v)", used, s.Spent.Dec(), err)
	}
}

// TestOpenedAgainAfterALoss: who opens its channel again at a provider that has lost its database, and not the file of what
// was signed, begins with what was used.
func TestOpenedAgainAfterALoss(t *testing.T) {
	r := newRig(t, quiet)
	lease := r.open(1, 500_000, "")
	lease.record()
	final := lease.release()
	used := final.Owed.Uint64()
	lease.pay(used)
	opened, err := r.provider.sender.Find(t.Context(), lease.terms.ID(), chain.Open)
	if err != nil || len(opened) != 1 {
		t.Fatalf("%d opens, %v", len(opened), err)
	}
	r.shut()
	if err := os.Remove(r.config.Database); err != nil {
		t.Fatal(err)
	}
	r.start()
	amount := wireAmount(used)
	lease.attach(r.do("GET", "", &wire.Credential{Challenge: r.challenge(), Source: wire.Source(lease.terms.ChainID, lease.terms.Payer), Payload: wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeHash, ChannelID: lease.terms.ID(), Salt: &lease.terms.Salt, Hash: &opened[0].Hash,
		CumulativeAmount: &amount, Signature: r.sign(r.payer, lease.terms, used)}}))
	if got := lease.lease.OwedBefore.Uint64(); got != used {
		t.Errorf("%d were used, and the next lease begins with %d owed", used, got)
	}
}

// header is a record as a renter shows it.
func header(t *testing.T, rec metering.SignedRecord) string {
	h := http.Header{}
	if err := (wire.ShownRecord{Record: rec.Record, Signature: rec.Signature}).Set(h); err != nil {
		t.Fatal(err)
	}
	return h.Get(wire.HeaderRecord)
}
