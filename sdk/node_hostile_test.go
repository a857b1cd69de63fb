package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// knock is one request to a node, with whatever is wrong with it.
func (o *outpost) knock(method, path string, body []byte, key nodeKey, at time.Time, spoil func(*http.Request)) *http.Response {
	o.Helper()
	req, err := http.NewRequestWithContext(o.Context(), method, o.server.URL+path, bytes.NewReader(body))
	if err != nil {
		o.Fatal(err)
	}
	key.sign(req, body, at)
	if spoil != nil {
		spoil(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		o.Fatal(err)
	}
	o.Cleanup(func() { resp.Body.Close() })
	return resp
}

func (o *outpost) key(name, secret string) nodeKey {
	o.Helper()
	key, err := newNodeKey(name, secret)
	if err != nil {
		o.Fatal(err)
	}
	return key
}

// TestHostileRequestsToANode: who does not hold the secret, or sends what was sent
// before, gets nothing and changes nothing.
func TestHostileRequestsToANode(t *testing.T) {
	t.Parallel()
	o := newOutpost(t)
	good, now := o.key("north", nodeSecret), time.Now()
	if resp := o.knock("GET", "/status", nil, good, now, nil); resp.StatusCode != http.StatusOK {
		t.Fatalf("a good request: %s", resp.Status)
	}
	end := []byte(`{"reason":"because","closed":true}`)
	lease := "/leases/" + common.Hash{1}.Hex() + "/end"
	for name, c := range map[string]struct {
		key    nodeKey
		at     time.Time
		spoil  func(*http.Request)
		status int
	}{
		"another secret":      {o.key("north", strings.Repeat("x", 40)), now, nil, 401},
		"of another node":     {o.key("south", nodeSecret), now, nil, 401},
		"no MAC":              {good, now, func(r *http.Request) { r.Header.Del(headerNodeMAC) }, 401},
		"no headers at all":   {good, now, func(r *http.Request) { r.Header = http.Header{} }, 401},
		"another path":        {good, now, func(r *http.Request) { r.URL.Path = "/leases/" + common.Hash{2}.Hex() + "/end" }, 401},
		"another method":      {good, now, func(r *http.Request) { r.Method = "PUT" }, 401},
		"a query":             {good, now, func(r *http.Request) { r.URL.RawQuery = "x=1" }, 401},
		"another time":        {good, now, func(r *http.Request) { r.Header.Set(headerNodeTime, strconv.FormatInt(now.UnixMilli()+1, 10)) }, 401},
		"another nonce":       {good, now, func(r *http.Request) { r.Header.Set(headerNodeNonce, strings.Repeat("0", 32)) }, 401},
		"another body":        {good, now, func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(strings.NewReader(`{}`)), 2 }, 401},
		"from the past":       {good, now.Add(-2 * nodeWindow), nil, 401},
		"from the future":     {good, now.Add(2 * nodeWindow), nil, 401},
		"before the node's":   {good, o.node.gate.started.Add(-time.Millisecond), nil, 401},
		"right, but no lease": {good, now, nil, 404},
	} {
		if resp := o.knock("POST", lease, end, c.key, c.at, c.spoil); resp.StatusCode != c.status {
			t.Errorf("%s: %s, want %d", name, resp.Status, c.status)
		}
	}
	var first *http.Request
	o.knock("POST", lease, end, good, now, func(r *http.Request) { first = r.Clone(t.Context()) })
	for range 2 {
		resp := o.knock("POST", lease, end, good, now, func(r *http.Request) { r.Header = first.Header.Clone() })
		if problem := wire.ParseProblem(resp); resp.StatusCode != 401 || !strings.Contains(problem.Detail, errNodeReplay.Error()) {
			t.Errorf("played again: %s, %v", resp.Status, problem)
		}
	}
	large := bytes.Repeat([]byte(" "), maxNodeRequest+1)
	if resp := o.knock("POST", "/leases", large, good, now, nil); resp.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("a body too large: %s", resp.Status)
	}
	if n := len(o.node.gate.seen); n > 10 {
		t.Errorf("strangers' %d numbers are remembered", n)
	}
}

// TestNoncesAreForgotten: what a node remembers of requests is bounded by their
// rate, and none is forgotten while it could be played again.
func TestNoncesAreForgotten(t *testing.T) {
	t.Parallel()
	now := time.Now()
	g := &nodeGate{seen: make(map[string]time.Time)}
	for i := range 100_000 {
		if err := g.once(strconv.Itoa(i), now.Add(time.Duration(i)*time.Millisecond+nodeWindow), now.Add(time.Duration(i)*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(g.seen); n > 131_072 || n < 60_000 {
		t.Errorf("%d of 60,000 that count are remembered", n)
	}
	if err := g.once("99999", now, now.Add(99_999*time.Millisecond)); err == nil {
		t.Error("a number was taken twice")
	}
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
	start := func(key *channel.Key, change func(*wire.Offer, *nodeStart)) []byte {
		offer := wire.Offer{Version: 1, ChainID: 1, Escrow: wire.Address{1}, Token: wire.Address{2}, Payee: wire.Address(key.Address()),
			Meter: wire.Address(o.config.MeterKey.Address()), Amount: wireAmount(1000), Unit: "gpu_second", Credit: 60, Tick: 1000, MaxGap: 3000, RecordEvery: 5000}
		q := nodeStart{LeaseID: common.Hash{9}, GPUs: 1, OwedBefore: wireAmount(0), nodeMoney: moneyOf(uint256.Int{}, *uint256.NewInt(1000)),
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
		"another meter":       {start(payee, func(o *wire.Offer, _ *nodeStart) { o.Meter = wire.Address{5} }), 403},
		"another payee":       {start(testKey(t), func(*wire.Offer, *nodeStart) {}), 403},
		"another's channel":   {start(payee, func(_ *wire.Offer, q *nodeStart) { q.Terms.Payee = common.Address{5} }), 400},
		"an unsigned offer":   {start(payee, func(_ *wire.Offer, q *nodeStart) { q.Offer = json.RawMessage(`{"version":1}`) }), 400},
		"no tick":             {start(payee, func(o *wire.Offer, _ *nodeStart) { o.Tick = 0 }), 400},
		"an endless tick":     {start(payee, func(o *wire.Offer, _ *nodeStart) { o.Tick, o.MaxGap, o.RecordEvery = 1<<60, 1<<60, 1<<60 }), 400},
		"no unit":             {start(payee, func(o *wire.Offer, _ *nodeStart) { o.Unit = "gpu_eon" }), 400},
		"no GPU":              {start(payee, func(_ *wire.Offer, q *nodeStart) { q.GPUs = 0 }), 400},
		"more GPUs than any":  {start(payee, func(_ *wire.Offer, q *nodeStart) { q.GPUs = maxGPUs + 1 }), 400},
		"more GPUs than here": {start(payee, func(_ *wire.Offer, q *nodeStart) { q.GPUs = 3 }), 503},
		"no scheme":           {start(payee, func(_ *wire.Offer, q *nodeStart) { q.Terms.Scheme = 99 }), 400},
	} {
		if resp := o.knock("POST", "/leases", c.body, o.node.gate.key, time.Now(), nil); resp.StatusCode != c.status {
			t.Errorf("%s: %v, want %d", name, wire.ParseProblem(resp), c.status)
		}
	}
	if free := o.node.config.Allocator.(*HostAllocator).Free(); free != 2 {
		t.Errorf("%d devices are free", free)
	}
	good := start(payee, func(_ *wire.Offer, q *nodeStart) { q.LeaseID = common.Hash{8} })
	var first, second nodeLease
	for _, into := range []*nodeLease{&first, &second} { // asked twice, begun once
		resp := o.knock("POST", "/leases", good, o.node.gate.key, time.Now(), nil)
		if err := json.NewDecoder(resp.Body).Decode(into); err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status, err)
		}
	}
	if !slices.Equal(first.Allocation.Devices, second.Allocation.Devices) || o.node.config.Allocator.(*HostAllocator).Free() != 1 {
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
		var l nodeLease
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
			r := newRig(t, o.link, func(c *ProviderConfig) { c.Log = slog.New(slog.DiscardHandler) })
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
			if s := lease.status(leaseEnded); s.Reason != errUnfit.Error() {
				t.Errorf("ended because %q", s.Reason)
			}
			records, err := r.provider.store.records(t.Context(), id, 0, 1000)
			if err != nil || uint64(len(records)) != spared {
				t.Fatalf("%d records are kept, %d were good (%v)", len(records), spared, err)
			}
			s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
			if err != nil || s.Spent != records[len(records)-1].Owed {
				t.Errorf("charged %s, the last good record says %s (%v)", s.Spent.Dec(), records[len(records)-1].Owed.Dec(), err)
			}
			o.set(false, nil)
			o.wait(id, leaseEnded)
		})
	}
}

// TestRecordsDeliveredTwice: whatever a node sends again changes nothing, and
// another record of a number that is on disk is refused.
func TestRecordsDeliveredTwice(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *ProviderConfig) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	first := lease.record()
	o.set(false, func(path string, answer []byte) []byte { // all records, every time
		if !strings.HasSuffix(path, "/sync") {
			return answer
		}
		var l nodeLease
		_ = json.Unmarshal(answer, &l)
		l.Records, _ = o.node.store.records(context.Background(), id, 0, 1000)
		l.Sequence = max(l.Sequence, uint64(len(l.Records)))
		raw, _ := json.Marshal(l)
		return raw
	})
	for range 5 {
		lease.record()
	}
	lease.status(leaseSuspended)
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
		var l nodeLease
		_ = json.Unmarshal(answer, &l)
		l.Records = []metering.SignedRecord{fork}
		raw, _ := json.Marshal(l)
		return raw
	})
	if s := lease.status(leaseEnded); s.Reason != errUnfit.Error() {
		t.Errorf("a fork ended the lease because %q", s.Reason)
	}
	kept, err := r.provider.store.records(t.Context(), id, 0, 1000)
	if err != nil || len(kept) < len(records) || kept[0].Record != first.Record {
		t.Errorf("%d records, the first %+v (%v)", len(kept), kept[0].Record, err)
	}
}

// TestAnswersFromNobody: what does not come from the node, or answers another
// question, is no answer; the lease goes on where it was.
func TestAnswersFromNobody(t *testing.T) {
	t.Parallel()
	answers := map[string]http.HandlerFunc{
		"no MAC":         func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{}`)) },
		"another secret": sealWith(t, strings.Repeat("y", 40), func(r *http.Request) string { return r.Header.Get(headerNodeMAC) }),
		"to another":     sealWith(t, nodeSecret, func(*http.Request) string { return strings.Repeat("0", 64) }),
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		},
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			for range maxNodeAnswer>>16 + 2 {
				_, _ = w.Write(make([]byte, 1<<16))
			}
		},
	}
	for name, handler := range answers {
		server := httptest.NewServer(handler)
		c, err := newNodeClient(NodeLink{Name: "north", URL: server.URL, Secret: nodeSecret})
		if err != nil {
			t.Fatal(err)
		}
		var s nodeStatus
		if err := c.call(t.Context(), 10*time.Second, "GET", "/status", nil, &s); err == nil {
			t.Errorf("%s: taken for an answer", name)
		}
		server.Close()
	}
}

func sealWith(t *testing.T, secret string, request func(*http.Request) string) http.HandlerFunc {
	key, err := newNodeKey("north", secret)
	if err != nil {
		t.Fatal(err)
	}
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerNodeMAC, key.answer(request(r), http.StatusOK, []byte(`{}`)))
		_, _ = w.Write([]byte(`{}`))
	}
}

// TestNodeWithAnotherKey: a node whose records no renter would take gets no lease.
func TestNodeWithAnotherKey(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link, func(c *ProviderConfig) { c.Meter, c.Log = common.Address{1}, slog.New(slog.DiscardHandler) })
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0))
	if err := problemIn(wire.NoCapacity, resp); err != nil {
		t.Error(err)
	}
}

// TestSpoolFromABackup: what a node signs that lost records which it had delivered
// is not believed, and its lease ends.
func TestSpoolFromABackup(t *testing.T) {
	o := newOutpost(t)
	o.config.Log = slog.New(slog.DiscardHandler)
	o.stop()
	o.start()
	r := newRig(t, o.link, func(c *ProviderConfig) { c.Log = slog.New(slog.DiscardHandler) })
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
	delivered, err := r.provider.store.last(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	o.start()
	if s := lease.status(leaseEnded); s.Reason != errUnfit.Error() {
		t.Errorf("ended because %q", s.Reason)
	}
	o.wait(id, leaseEnded)
	if last, err := r.provider.store.last(t.Context(), id); err != nil || last.Record != delivered.Record {
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
	r := newRig(t, o.link, func(c *ProviderConfig) { c.Log = slog.New(slog.DiscardHandler) })
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	r.shut()
	ahead := []byte(`{"accepted":"0","deposit":"500000","after":1000000}`)
	if resp := o.knock("POST", "/leases/"+id.Hex()+"/sync", ahead, o.node.gate.key, time.Now(), nil); resp.StatusCode != http.StatusConflict {
		t.Errorf("%s", resp.Status)
	}
	row := o.wait(id, leaseEnded)
	if _, records := o.spooled(id); row.Reason != errRolledBack.Error() || records[len(records)-1].Final {
		t.Errorf("ended because %q, final: %v", row.Reason, records[len(records)-1].Final)
	}
	if free := o.node.config.Allocator.(*HostAllocator).Free(); free != 2 {
		t.Errorf("%d devices are free", free)
	}
}

// TestVoucheredNeverFalls: a gateway that is behind takes nothing back of what
// another one said is vouchered, and a restart of the node neither.
func TestVoucheredNeverFalls(t *testing.T) {
	o := newOutpost(t)
	r := newRig(t, o.link)
	lease := r.open(1, 500_000, "")
	id := lease.lease.LeaseID
	lease.record()
	r.shut()
	for _, accepted := range []string{"700", "300"} {
		body := []byte(`{"accepted":"` + accepted + `","deposit":"500000","after":1}`)
		if resp := o.knock("POST", "/leases/"+id.Hex()+"/sync", body, o.node.gate.key, time.Now(), nil); resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
	}
	o.stop()
	o.start()
	v, _ := o.node.running(lease.terms.ID()).snapshot()
	if got := o.accepted(id); got != 700 || v.accepted.Uint64() != 700 {
		t.Errorf("the spool says %d, the lease %s; want 700", got, v.accepted.Dec())
	}
}
