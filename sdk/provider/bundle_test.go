package provider

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/merkle"
	"github.com/gpupay/gpupay/metering/verify"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/internal/rig/renterrig"
	"github.com/gpupay/gpupay/sdk/renter"
)

// bundles is what both sides kept about a channel that was rented, settled and
// closed.
func bundles(t *testing.T, m *testrig.Market) (payee, payer *audit.Bundle) {
	t.Helper()
	var database string
	server := serveProvider(t, m, func(c *Config) { database = c.Database })
	r := renterrig.Open(t, renterrig.Config(t, m, m.Newcomer(t)))
	l, err := r.Rent(t.Context(), server.URL, renter.Options{GPUs: 2, Deposit: "1", PayEvery: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := renterrig.Background(ctx, l)
	testrig.Eventually(t, "four records", func() bool { return l.Snapshot().Sequence >= 4 })
	cancel()
	<-done
	if _, err := l.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if payer, err = r.Export(t.Context(), l.ID()); err != nil {
		t.Fatal(err)
	}
	if payee, err = ExportFile(t.Context(), database, payer.Leases[0].ID); err != nil {
		t.Fatal(err)
	}
	return payee, payer
}

func encoded(t *testing.T, v any) []byte {
	t.Helper()
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// unverifiable are the values that are the keeper's word and nobody else's:
// changed or left out, they prove nothing either way.
var unverifiable = map[string]bool{
	"payer: change /prepaid":           true,
	"payee: remove /leases/*/proofs/*": true, "payee: repeat /leases/*/proofs/*": true,
}

// TestTamperedBundle changes every single value of both sides' bundles in turn,
// removes every entry of every list, and wants each change found.
func TestTamperedBundle(t *testing.T) {
	m := testrig.NewMarket(t)
	payee, payer := bundles(t, m)
	for _, pair := range [][2]*audit.Bundle{{payee, payer}, {payer, payee}, {payee, payee}} {
		both := audit.Compare(pair[0], pair[1])
		if err := audit.Failures(both.Checks); len(both.Equivocations) != 0 || err != nil {
			t.Fatalf("an honest payee is said to have equivocated: %v, %v", both.Equivocations, err)
		}
	}
	addProof(t, m, payee)
	for _, b := range []*audit.Bundle{payee, payer} {
		t.Run(b.Keeper, func(t *testing.T) {
			checks := audit.Verify(t.Context(), b, m.Backend)
			for _, c := range checks {
				t.Log(c)
			}
			if err := errors.Join(audit.Failures(checks), audit.Failures(audit.Verify(t.Context(), b, nil))); err != nil {
				t.Fatal(err)
			}
			tamper := tamperer{T: t, keeper: b.Keeper, backend: m.Backend}
			tamper.all(b)
			t.Logf("%d changes found offline, %d more with the chain", tamper.offline, tamper.online)
			if tamper.offline < 200 || tamper.online == 0 {
				t.Error("too few: the test showed nothing")
			}
		})
	}
	// The payee signed its last record again, with other evidence: that is another word.
	proofs := audit.Compare(payee, payer).Equivocations
	if len(proofs) != 1 {
		t.Fatalf("%d proofs of equivocation, there is one pair", len(proofs))
	}
	if who, err := proofs[0].Verify(); err != nil || who != m.PayeeAddress() {
		t.Errorf("it is against %s: %v", who, err)
	}
}

// addProof has the payee show a sample of its last record.
func addProof(t *testing.T, m *testrig.Market, b *audit.Bundle) {
	t.Helper()
	last := &b.Leases[0].Records[len(b.Leases[0].Records)-1]
	last.Evidence.Devices[0].Samples += 3
	var samples [][]byte
	for i := range last.Evidence.Samples + 3 {
		samples = append(samples, []byte{byte(i)})
	}
	proof, err := merkle.Prove(samples, 1)
	if err != nil {
		t.Fatal(err)
	}
	last.Evidence.Root, last.Evidence.Samples = merkle.Root(samples), uint64(len(samples))
	last.EvidenceHash = last.Evidence.Hash()
	domain := metering.Domain(b.Terms.ChainID, common.Address(b.Terms.Escrow))
	if last.Signature, err = channel.NewKey(m.Payee).Sign(t.Context(), last.Digest(domain)); err != nil {
		t.Fatal(err)
	}
	b.Leases[0].Proofs = []audit.Proof{{Sequence: last.Sequence, Proof: proof}}
}

type tamperer struct {
	*testing.T
	keeper          string
	backend         chain.Backend
	root            any
	offline, online int
}

func (t *tamperer) all(b *audit.Bundle) {
	dec := json.NewDecoder(bytes.NewReader(encoded(t.T, b)))
	dec.UseNumber()
	if err := dec.Decode(&t.root); err != nil {
		t.Fatal(err)
	}
	t.walk("", t.root, func(v any) { t.root = v })
}

// freeEnd is a newest record that adds nothing to what is owed, as a final one
// may: without it the bundle says the same about money, and nothing can tell.
func freeEnd(path string, list []any, i int) bool {
	if path != "/leases/*/records" || i == 0 || i != len(list)-1 {
		return false
	}
	return list[i].(map[string]any)["owed"] == list[i-1].(map[string]any)["owed"]
}

// walk visits a value and all below it; set replaces it in the document.
func (t *tamperer) walk(path string, v any, set func(any)) {
	switch v := v.(type) {
	case map[string]any:
		for name, below := range v {
			t.walk(path+"/"+name, below, func(other any) { v[name] = other })
		}
		return
	case []any:
		for i, below := range v {
			if !freeEnd(path, v, i) {
				set(append(append([]any{}, v[:i]...), v[i+1:]...))
				t.caught("remove " + path + "/*")
				set(v)
			}
			set(append(append([]any{}, v[:i+1]...), v[i:]...))
			t.caught("repeat " + path + "/*")
			set(v)
			t.walk(path+"/*", below, func(other any) { v[i] = other })
		}
		return
	case bool:
		set(!v)
	case json.Number:
		n, _ := v.Int64()
		set(n + 1)
	case string:
		set(otherThan(v))
	}
	t.caught("change " + path)
	set(v)
}

// otherThan changes a value and keeps its form.
func otherThan(s string) string {
	if s == "" {
		return "x"
	}
	last := s[len(s)-1]
	if last == '1' {
		return s[:len(s)-1] + "2"
	}
	return s[:len(s)-1] + "1"
}

func (t *tamperer) caught(what string) {
	t.Helper()
	raw, err := json.Marshal(t.root)
	if err != nil {
		t.Fatal(err)
	}
	b, err := audit.Parse(raw)
	if err != nil || audit.Failures(audit.Verify(t.Context(), b, nil)) != nil {
		t.offline++
		return
	}
	if audit.Failures(audit.Verify(t.Context(), b, t.backend)) != nil {
		t.online++
		return
	}
	if !unverifiable[t.keeper+": "+what] {
		t.Errorf("%s: not found", what)
	}
}

// TestEquivocationIsKeptAndProven: a provider that signs two records of one
// number is caught, and what the renter exports convinces anybody, until a byte
// of it is changed.
func TestEquivocationIsKeptAndProven(t *testing.T) {
	m := testrig.NewMarket(t)
	v := testrig.NewHostile(t, m, nil)
	v.Script = func(p *testrig.Stream) {
		p.Honest(3)
		p.Usage(p.Resign(p.Sent, func(r *metering.SignedRecord) { r.To++ }))
	}
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	l, err := r.Rent(t.Context(), v.Server.URL, renter.Options{Deposit: "1", PayEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Run(t.Context()); !errors.Is(err, verify.ErrForked) {
		t.Fatalf("the fork was not noticed: %v", err)
	}
	proofs, err := r.Equivocations(t.Context(), l.ID())
	if err != nil || len(proofs) != 1 {
		t.Fatalf("%d proofs, %v", len(proofs), err)
	}
	document := encoded(t, proofs[0])
	again, err := audit.ParseEquivocation(document)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := again.Verify(); err != nil || who != m.PayeeAddress() {
		t.Errorf("it is against %s: %v", who, err)
	}
	exported, err := renter.ExportFile(t.Context(), config.Database, l.ID())
	if err != nil || len(exported.Equivocations()) != 1 {
		t.Errorf("the exported bundle has not the proof: %v", err)
	}
	for name, change := range map[string]func(*audit.Equivocation){
		"the same record twice":  func(p *audit.Equivocation) { p.Records[1] = p.Records[0] },
		"another number":         func(p *audit.Equivocation) { p.Records[1].Sequence++ },
		"another lease":          func(p *audit.Equivocation) { p.Records[1].LeaseID[0]++ },
		"a changed record":       func(p *audit.Equivocation) { p.Records[1].Nanos++ },
		"a changed first record": func(p *audit.Equivocation) { p.Records[0].Nanos++ },
		"another offer":          func(p *audit.Equivocation) { p.Records[0].OfferHash[0]++ },
		"a changed offer": func(p *audit.Equivocation) {
			p.Offer = bytes.Replace(p.Offer, []byte("gpu_second"), []byte("gpu_minute"), 1)
		},
		"another kind":            func(p *audit.Equivocation) { p.Kind = audit.Kind },
		"a signature of no one's": func(p *audit.Equivocation) { p.Records[1].Signature = make([]byte, 65) },
	} {
		t.Run(name, func(t *testing.T) {
			p, err := audit.ParseEquivocation(document)
			if err != nil {
				t.Fatal(err)
			}
			change(p)
			if _, err := p.Verify(); !errors.Is(err, audit.ErrNotEquivocation) {
				t.Errorf("it proves something: %v", err)
			}
		})
	}
}

// TestBundleOfTheNewestRental: an export from a renter's database that names no channel is of its newest rental, and a provider's
// has to be told which.
func TestBundleOfTheNewestRental(t *testing.T) {
	m := testrig.NewMarket(t)
	var payee string
	server, config := serveProvider(t, m, func(c *Config) { payee = c.Database }), renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	for range 3 {
		l, err := r.Rent(t.Context(), server.URL, renter.Options{Deposit: "1"})
		if err != nil {
			t.Fatal(err)
		}
		if b, err := renter.ExportFile(t.Context(), config.Database, common.Hash{}); err != nil || b.Channel != l.ID() {
			t.Errorf("the newest rental is %s: %v", l.ID(), err)
		}
		if _, err := l.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b, err := renter.ExportFile(t.Context(), config.Database, common.Hash{}); err != nil || b.Channel != l.ID() {
			t.Errorf("the newest rental, which is closed, is %s: %v", l.ID(), err)
		}
	}
	if _, err := ExportFile(t.Context(), payee, common.Hash{}); err == nil || !strings.Contains(err.Error(), "it knows 3 channels; name one of them: [0x") {
		t.Errorf("of a provider: %v", err)
	}
}

// TestBundleOfAnUnknownChannel: an export names what it did not find, and makes
// no database.
func TestBundleOfAnUnknownChannel(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.db")
	if _, err := renter.ExportFile(t.Context(), path, common.Hash{1}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	m := testrig.NewMarket(t)
	config := renterrig.Config(t, m, m.Payer)
	r := renterrig.Open(t, config)
	if _, err := r.Export(t.Context(), common.Hash{1}); !errors.Is(err, channel.ErrUnknown) {
		t.Error(err)
	}
	if _, err := renter.ExportFile(t.Context(), config.Database, common.Hash{1}); !errors.Is(err, channel.ErrUnknown) {
		t.Error(err)
	}
	for _, wrong := range []string{`{"kind":"gpupay bundle","version":2}`, `{"kind":"gpupay bundle","version":2,"version":1}`, `{"kind":"gpupay bundle","Version":1}`,
		`{"kind":"gpupay bundle","version":1} {}`} {
		if _, err := audit.Parse([]byte(wrong)); err == nil {
			t.Errorf("%s was read", wrong)
		}
	}
}
