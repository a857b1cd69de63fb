package provider

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/internal/remote"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
	"github.com/gpupay/gpupay/sdk/wire"
)

// knocks is the header of requests that reach a node also where it is cut off.
const knocks = "Knocks"

// knock is one request of a gateway to a node.
func (o *outpost) knock(method, path string, body []byte) *http.Response {
	o.Helper()
	resp, err := o.ask(testGateway().DialTLS("north"), method, path, body)
	if err != nil {
		o.Fatal(err)
	}
	return resp
}

// ask is one request of whoever has such a TLS.
func (o *outpost) ask(who *tls.Config, method, path string, body []byte) (*http.Response, error) {
	o.Helper()
	req, err := http.NewRequestWithContext(o.Context(), method, o.server.URL+path, bytes.NewReader(body))
	if err != nil {
		o.Fatal(err)
	}
	req.Header.Set(knocks, "1")
	transport := &http.Transport{TLSClientConfig: who}
	o.Cleanup(transport.CloseIdleConnections)
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err == nil {
		o.Cleanup(func() { resp.Body.Close() })
	}
	return resp, err
}

// TestStrangersToANode: nobody but a gateway of the node's own authority gets a word in: another node with its certificate does
// not, and neither does the gateway of another provider.
func TestStrangersToANode(t *testing.T) {
	t.Parallel()
	o := newOutpost(t)
	other, err := testrig.NewAuthority().Gateway()
	if err != nil {
		t.Fatal(err)
	}
	crossed := testGateway() // who believes our authority, and is known to another
	crossed.Certificate = other.Certificate
	imposter, err := testCA().Issue("gateway.gpupay.internal", x509.ExtKeyUsageServerAuth)
	if err != nil {
		t.Fatal(err)
	}
	lease := "/leases/" + common.Hash{1}.Hex() + "/end"
	end := []byte(`{"reason":"because","closed":true}`)
	for name, who := range map[string]nodekeys.Identity{
		"no certificate": {CA: testGateway().CA}, "another authority's gateway": crossed,
		"another node": testNode("south"), "the node itself": testNode("north"), "a node that is called as gateways are": imposter,
	} {
		if resp, err := o.ask(who.DialTLS("north"), "POST", lease, end); err == nil {
			t.Errorf("%s is answered %s", name, resp.Status)
		}
	}
	if resp := o.knock("POST", lease, end); resp.StatusCode != http.StatusNotFound {
		t.Errorf("a gateway: %s", resp.Status)
	}
	large := bytes.Repeat([]byte(" "), nodelink.MaxRequest+1)
	if resp := o.knock("POST", "/leases", large); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body too large: %s", resp.Status)
	}
}

// TestNodeServedWithoutItsTLS: a node that is served in clear, or by a server that lets in any certificate, lets in nobody.
func TestNodeServedWithoutItsTLS(t *testing.T) {
	t.Parallel()
	o := newOutpost(t)
	other, err := testrig.NewAuthority().Gateway()
	if err != nil {
		t.Fatal(err)
	}
	stranger := other
	stranger.CA = testGateway().CA
	named, err := testCA().Issue("north.node.gpupay.internal", x509.ExtKeyUsageClientAuth)
	if err != nil {
		t.Fatal(err)
	}
	plain := httptest.NewServer(o.node)
	defer plain.Close()
	lax := httptest.NewUnstartedServer(o.node)
	lax.TLS = o.node.TLS()
	lax.TLS.ClientCAs.AddCert(other.CA)
	lax.StartTLS()
	defer lax.Close()
	for url, who := range map[string]nodekeys.Identity{plain.URL: testGateway(), lax.URL: stranger, lax.URL + "/": named} {
		o.server = &httptest.Server{URL: strings.TrimSuffix(url, "/")}
		resp, err := o.ask(who.DialTLS("north"), "GET", "/status", nil)
		if err != nil || resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s: %v, %v", url, resp, err)
		}
	}
	o.server = lax
}

// TestStartsThatANodeRefuses: a node meters under its own key, for its own payee,
// and what can be metered.
func TestStartsThatANodeRefuses(t *testing.T) {
	t.Parallel()
	o := newOutpost(t)
	payee := testKey(t)
	o.stop()
	o.config.Payee = payee.Address()
	o.start()
	start := func(key *channel.Key, change func(*wire.Offer, *nodelink.Start)) []byte {
		offer := wire.Offer{Version: 1, ChainID: 1, Escrow: wire.Address{1}, Token: wire.Address{2}, Payee: wire.Address(key.Address()),
			Meter: wire.Address(o.config.MeterKey.Address()), Amount: wireAmount(1000), Unit: "gpu_second", Credit: 60, Tick: 1000, MaxGap: 3000, RecordEvery: 5000}
		q := nodelink.Start{LeaseID: common.Hash{9}, GPUs: 1, OwedBefore: wireAmount(0), Money: nodelink.MoneyOf(uint256.Int{}, *uint256.NewInt(1000)),
			Terms: channel.Terms{ChainID: 1, Escrow: common.Address{1}, Payer: common.Address{7}, Payee: key.Address(), Token: common.Address{2}}}
		change(&offer, &q)
		signed, err := wire.SignOffer(t.Context(), key, offer)
		if err != nil {
			t.Fatal(err)
		}
		if q.Offer == nil {
			q.Offer = signed.Document
		}
		raw, err := json.Marshal(q)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	for name, c := range map[string]struct {
		body   []byte
		status int
	}{
		"no JSON":             {[]byte(`{`), 400},
		"two documents":       {[]byte(`{}{}`), 400},
		"nothing":             {[]byte(`{}`), 400},
		"another meter":       {start(payee, func(o *wire.Offer, _ *nodelink.Start) { o.Meter = wire.Address{5} }), 403},
		"another, version 2":  {start(payee, func(o *wire.Offer, _ *nodelink.Start) { o.Version, o.Meter = 2, wire.Address{5} }), 403},
		"another payee":       {start(testKey(t), func(*wire.Offer, *nodelink.Start) {}), 403},
		"another's channel":   {start(payee, func(_ *wire.Offer, q *nodelink.Start) { q.Terms.Payee = common.Address{5} }), 400},
		"an unsigned offer":   {start(payee, func(_ *wire.Offer, q *nodelink.Start) { q.Offer = json.RawMessage(`{"version":1}`) }), 400},
		"no tick":             {start(payee, func(o *wire.Offer, _ *nodelink.Start) { o.Tick = 0 }), 400},
		"too many records":    {start(payee, func(o *wire.Offer, _ *nodelink.Start) { o.Tick, o.RecordEvery = 1, 1 }), 400},
		"an endless tick":     {start(payee, func(o *wire.Offer, _ *nodelink.Start) { o.Tick, o.MaxGap, o.RecordEvery = 1<<60, 1<<60, 1<<60 }), 400},
		"no unit":             {start(payee, func(o *wire.Offer, _ *nodelink.Start) { o.Unit = "gpu_eon" }), 400},
		"no GPU":              {start(payee, func(_ *wire.Offer, q *nodelink.Start) { q.GPUs = 0 }), 400},
		"more GPUs than any":  {start(payee, func(_ *wire.Offer, q *nodelink.Start) { q.GPUs = wire.MaxGPUs + 1 }), 400},
		"more GPUs than here": {start(payee, func(_ *wire.Offer, q *nodelink.Start) { q.GPUs = 3 }), 503},
		"no scheme":           {start(payee, func(_ *wire.Offer, q *nodelink.Start) { q.Terms.Scheme = 99 }), 400},
	} {
		if resp := o.knock("POST", "/leases", c.body); resp.StatusCode != c.status {
			t.Errorf("%s: %v, want %d", name, wire.ParseProblem(resp), c.status)
		}
	}
	if free := o.gpus.Free(); free != 2 {
		t.Errorf("%d devices are free", free)
	}
	good := start(payee, func(o *wire.Offer, q *nodelink.Start) {
		q.LeaseID, o.Version, o.Meter = common.Hash{8}, 2, wire.Address{}
	})
	var first, second nodelink.Lease
	for _, into := range []*nodelink.Lease{&first, &second} { // asked twice, begun once
		resp := o.knock("POST", "/leases", good)
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
	}
	if meter := o.config.MeterKey.Address(); first.Meter == nil || *first.Meter != meter || second.Meter == nil || *second.Meter != meter {
		t.Errorf("signed by %v, then %v, the node's key is %s", first.Meter, second.Meter, meter)
	}
	if !slices.Equal(first.Allocation.Devices, second.Allocation.Devices) || o.gpus.Free() != 1 {
		t.Errorf("%+v, then %+v", first.Allocation, second.Allocation)
	}
}

// forge changes the records of a node's answers. The digest and the signature are
// made new with the key, if there is one.
func forge(o *outpost, key metering.Signer, change func(*metering.SignedRecord)) func(string, []byte) []byte {
	return func(path string, answer []byte) []byte {
		if !strings.HasSuffix(path, "/sync") {
			return answer
		}
		var l nodelink.Lease
		if err := json.Unmarshal(answer, &l); err != nil {
			o.Error(err)
		}
		for i := range l.Records {
			change(&l.Records[i])
			if key != nil {
				signature, err := key.Sign(context.Background(), l.Records[i].Digest(metering.Domain(o.chainID, o.escrow)))
				if err != nil {
					o.Error(err)
				}
				l.Records[i].Signature = signature
			}
		}
		raw, err := json.Marshal(l)
		if err != nil {
			o.Error(err)
		}
		return raw
	}
}

// TestHostileNodes: a record that does not hold is not stored, not charged and not
// shown, and ends its lease; what came before it stays.
func TestHostileNodes(t *testing.T) {
	t.Parallel()
	rehash := func(r *metering.SignedRecord) { r.EvidenceHash = r.Evidence.Hash() }
	for name, c := range map[string]struct {
		stranger bool // signs with another key
		change   func(*metering.SignedRecord)
	}{
		"signed by another":     {true, func(*metering.SignedRecord) {}},
		"changed, not signed":   {false, nil},
		"too dear":              {false, func(r *metering.SignedRecord) { r.Owed.AddUint64(&r.Owed, 1) }},
		"of another lease":      {false, func(r *metering.SignedRecord) { r.LeaseID[0]++ }},
		"of another channel":    {false, func(r *metering.SignedRecord) { r.ChannelID[0]++ }},
		"under another offer":   {false, func(r *metering.SignedRecord) { r.OfferHash[0]++ }},
		"after another record":  {false, func(r *metering.SignedRecord) { r.Previous[0]++ }},
		"one number too far":    {false, func(r *metering.SignedRecord) { r.Sequence++ }},
		"other debts":           {false, func(r *metering.SignedRecord) { r.OwedBefore.AddUint64(&r.OwedBefore, 5); r.Owed.AddUint64(&r.Owed, 5) }},
		"another device":        {false, func(r *metering.SignedRecord) { r.Evidence.Devices[0].Device.UUID = "SIM-GPU-7"; rehash(r) }},
		"more devices":          {false, func(r *metering.SignedRecord) { r.Devices++ }},
		"other evidence":        {false, func(r *metering.SignedRecord) { r.Evidence.Samples++ }},
		"gaps that were billed": {false, func(r *metering.SignedRecord) { r.Evidence.MaxGap *= 10; rehash(r) }},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOutpost(t)
			r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
			o.chainID, o.escrow = r.provider.escrow.ChainID(), r.chain.Escrow
			lease := r.open(1, 500_000, "")
			id := lease.lease.LeaseID
			lease.record()
			key, change := o.config.MeterKey, c.change
			if c.stranger {
				key = testKey(t)
			}
			if change == nil {
				key, change = nil, func(r *metering.SignedRecord) { r.Nanos++ }
			}
			var spared, refused uint64 // records that came before the lie, and the first that lies
			o.set(false, forge(o, key, func(rec *metering.SignedRecord) {
				if refused == 0 {
					spared, refused = rec.Sequence-1, rec.Sequence
				}
				change(rec)
			}))
			if s := lease.status(leasestore.Ended); s.Reason != remote.ErrInvalidRecord.Error() {
				t.Errorf("ended because %q", s.Reason)
			}
			records, err := r.provider.store.Records.After(t.Context(), id, 0, 1000)
			if err != nil || uint64(len(records)) != spared {
				t.Fatalf("%d records are kept, %d were good (%v)", len(records), spared, err)
			}
			s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
			if err != nil || s.Spent != records[len(records)-1].Owed {
				t.Errorf("charged %s, the last good record says %s (%v)", s.Spent.Dec(), records[len(records)-1].Owed.Dec(), err)
			}
			o.set(false, nil)
			o.wait(id, leasestore.Ended)
		})
	}
}

// TestRecordsDeliveredTwice: whatever a node sends again changes nothing, and
// another record of a number that is on disk is refused.
func TestRecordsDeliveredTwice(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	first := lease.record()
	o.set(false, func(path string, answer []byte) []byte { // all records, every time
		if !strings.HasSuffix(path, "/sync") {
			return answer
		}
		var l nodelink.Lease
		_ = json.Unmarshal(answer, &l)
		l.Records, _ = o.disk.Records.After(context.Background(), id, 0, 1000)
		l.Sequence = max(l.Sequence, uint64(len(l.Records)))
		raw, _ := json.Marshal(l)
		return raw
	})
	for range 5 {
		lease.record()
	}
	lease.status(leasestore.Suspended)
	records := o.same(r, id)
	fork := first
	fork.To++
	signature, err := o.config.MeterKey.Sign(t.Context(), fork.Digest(metering.Domain(lease.terms.ChainID, lease.terms.Escrow)))
	if err != nil {
		t.Fatal(err)
	}
	fork.Signature = signature
	o.set(false, func(path string, answer []byte) []byte {
		if !strings.HasSuffix(path, "/sync") {
			return answer
		}
		var l nodelink.Lease
		_ = json.Unmarshal(answer, &l)
		l.Records = []metering.SignedRecord{fork}
		raw, _ := json.Marshal(l)
		return raw
	})
	if s := lease.status(leasestore.Ended); s.Reason != remote.ErrInvalidRecord.Error() {
		t.Errorf("a fork ended the lease because %q", s.Reason)
	}
	kept, err := r.provider.store.Records.After(t.Context(), id, 0, 1000)
	if err != nil || len(kept) < len(records) || kept[0].Record != first.Record {
		t.Errorf("%d records, the first %+v (%v)", len(kept), kept[0].Record, err)
	}
}

// TestAnswersFromNobody: what does not come from the node, or is no answer of its, is none; the lease goes on where it was.
func TestAnswersFromNobody(t *testing.T) {
	t.Parallel()
	other, err := testrig.NewAuthority().Node("north")
	if err != nil {
		t.Fatal(err)
	}
	answer := func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) }
	for name, c := range map[string]struct {
		who     nodekeys.Identity
		handler http.HandlerFunc
		good    bool
	}{
		"the node":                     {testNode("north"), answer, true},
		"another node":                 {testNode("south"), answer, false},
		"another authority's":          {other, answer, false},
		"a gateway that poses as node": {testGateway(), answer, false},
		"a redirect": {testNode("north"), func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}, false},
		"endless": {testNode("north"), func(w http.ResponseWriter, _ *http.Request) {
			for range nodelink.MaxAnswer>>16 + 2 {
				_, _ = w.Write(make([]byte, 1<<16))
			}
		}, false},
	} {
		server := httptest.NewUnstartedServer(c.handler)
		server.TLS = c.who.ServeTLS()
		server.TLS.ClientCAs = x509.NewCertPool()
		server.TLS.ClientCAs.AddCert(testGateway().CA)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		client, err := nodelink.NewClient("north", server.URL, testGateway())
		if err != nil {
			t.Fatal(err)
		}
		var s nodelink.Status
		err = client.Call(t.Context(), time.Minute, "GET", "/status", nil, &s)
		if (err == nil) != c.good || nodelink.Gone(err) {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
	}
}

// TestNodeWithoutAKeyOfItsOwn: a node that does not say whose key signs a lease's records, as one from before, begins none.
func TestNodeWithoutAKeyOfItsOwn(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	o.set(false, func(path string, answer []byte) []byte {
		if path != "/leases" {
			return answer
		}
		var l nodelink.Lease
		_ = json.Unmarshal(answer, &l)
		l.Meter = nil
		raw, _ := json.Marshal(l)
		return raw
	})
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0))
	if err := problemIn(wire.NoCapacity, resp); err != nil {
		t.Error(err)
	}
	if free := o.gpus.Free(); free != 2 {
		t.Errorf("%d devices are free", free)
	}
}

// TestSpoolFromABackup: what a node signs that lost records which it had delivered
// is not believed, and its lease ends.
func TestSpoolFromABackup(t *testing.T) {
	o := newOutpost(t)
	o.config.Log = slog.New(slog.DiscardHandler)
	o.stop()
	o.start()
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	backup := filepath.Join(t.TempDir(), "backup.db")
	db, err := sqlx.Open("sqlite3", o.config.Database)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`VACUUM INTO ?`, backup); err != nil {
		t.Fatal(err)
	}
	db.Close()
	for range 3 {
		lease.record()
	}
	o.stop()
	for _, end := range []string{"-wal", "-shm"} {
		_ = os.Remove(o.config.Database + end)
	}
	if err := os.Rename(backup, o.config.Database); err != nil {
		t.Fatal(err)
	}
	delivered, err := r.provider.store.Records.Last(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	o.start()
	if s := lease.status(leasestore.Ended); s.Reason != remote.ErrInvalidRecord.Error() {
		t.Errorf("ended because %q", s.Reason)
	}
	o.wait(id, leasestore.Ended)
	if last, err := r.provider.store.Records.Last(t.Context(), id); err != nil || last.Record != delivered.Record {
		t.Errorf("the last record is %+v, was %+v (%v)", last, delivered.Record, err)
	}
}

// TestNodeThatForgotSignsNoMore: a gateway that has records which the node does not
// keeps it from signing others of their numbers.
func TestNodeThatForgotSignsNoMore(t *testing.T) {
	o := newOutpost(t)
	o.config.Log = slog.New(slog.DiscardHandler)
	o.stop()
	o.start()
	r := newRig(t, o.link, func(c *Config) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	r.shut()
	ahead := []byte(`{"accepted":"0","deposit":"500000","after":1000000}`)
	if resp := o.knock("POST", "/leases/"+id.Hex()+"/sync", ahead); resp.StatusCode != http.StatusConflict {
		t.Errorf("%s", resp.Status)
	}
	row := o.wait(id, leasestore.Ended)
	if _, records := o.spooled(id); row.Reason != leasestore.ErrRolledBack.Error() || records[len(records)-1].Final {
		t.Errorf("ended because %q, final: %v", row.Reason, records[len(records)-1].Final)
	}
	if free := o.gpus.Free(); free != 2 {
		t.Errorf("%d devices are free", free)
	}
}
