package tower

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// FuzzRequest posts whatever a stranger can to a watchtower that serves one channel. It answers for each voucher, has
// no failure of its own, keeps no channel but one that is on the chain, counts only what the payer signed within the
// deposit, and spends gas on the payer's own close request at most.
func FuzzRequest(f *testing.F) {
	tower, key, terms := fuzzTower(f)
	domain := tower.escrow.Domain()
	v, err := domain.Sign(f.Context(), key, terms.ID(), *uint256.NewInt(500))
	if err != nil {
		f.Fatal(err)
	}
	voucher := Voucher{Terms: wire.NewTerms(terms), Cumulative: wire.NewAmount(v.Cumulative), Signature: v.Signature}
	const deadline = 1 << 40
	signature, err := key.Sign(f.Context(), domain.RequestCloseDigest(terms.ID(), 0, deadline))
	if err != nil {
		f.Fatal(err)
	}
	strange := voucher
	strange.Salt = common.Hash{9}
	t := wire.NewTerms(terms)
	for _, seed := range []struct {
		path     string
		document any
	}{
		{"/vouchers", Vouchers{Vouchers: []Voucher{voucher, strange, {}}}},
		{"/close-requests", wire.LeaveRequest{Terms: t, Deadline: deadline, Signature: signature}},
		{"/withdrawals", t},
	} {
		body, err := json.Marshal(seed.document)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(seed.path, body)
	}
	f.Add("/vouchers", []byte(`{"vouchers":null}`))
	f.Add("/vouchers", []byte(`{"vouchers":[{"signature":"0x"}]}{}`))
	f.Add("/withdrawals", []byte(`{"chainId":-1}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
		r.URL.Path = path
		tower.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %s: %s", path, body, w.Body)
		}
		if path == "/vouchers" && w.Code == http.StatusOK {
			checkReceipts(t, body, w.Body.Bytes())
		}
		checkTower(t, tower, terms)
	})
}

// checkReceipts wants one word on each voucher, in the same order.
func checkReceipts(t *testing.T, body, answer []byte) {
	t.Helper()
	var asked Vouchers
	var told Receipts
	if err := errors.Join(json.Unmarshal(body, &asked), json.Unmarshal(answer, &told)); err != nil {
		t.Fatalf("%s was answered by %s: %v", body, answer, err)
	}
	if len(told.Receipts) != len(asked.Vouchers) {
		t.Fatalf("%d receipts for %d vouchers", len(told.Receipts), len(asked.Vouchers))
	}
	for i, receipt := range told.Receipts {
		if receipt.ChannelID != asked.Vouchers[i].Channel().ID() || (receipt.Outcome == "") == (receipt.Problem == nil) {
			t.Fatalf("%s was answered by %s", body, answer)
		}
		if p := receipt.Problem; p != nil && p.Status == http.StatusInternalServerError {
			t.Fatalf("%s was answered by %s", body, answer)
		}
	}
}

// checkTower looks at what the tower holds, and at what it has sent.
func checkTower(t *testing.T, tower *Tower, terms channel.Terms) {
	t.Helper()
	states, err := tower.payee.Channels(t.Context(), channel.Open)
	closing, failed := tower.payee.Channels(t.Context(), channel.Closing)
	leaves, lost := tower.relay.leaves.open(t.Context())
	nonce, unknown := tower.escrow.Backend().PendingNonceAt(t.Context(), tower.Address())
	if err := errors.Join(err, failed, lost, unknown); err != nil {
		t.Fatal(err)
	}
	if states = append(states, closing...); len(states) > 1 || len(leaves) > 1 || nonce > 1 {
		t.Fatalf("%d channels, %d leaves, %d transactions", len(states), len(leaves), nonce)
	}
	for _, s := range states {
		if s.ID != terms.ID() || s.Accepted.Gt(&s.Deposit) {
			t.Fatalf("it holds %+v", s)
		}
		if !s.Accepted.IsZero() && tower.payee.Domain.Verify(s.Voucher(), terms.Signer()) != nil {
			t.Fatalf("a voucher counts that nobody signed: %+v", s)
		}
	}
}

// fuzzTower is a watchtower that acts only when asked, and one channel of a deposit of 1000 on its chain.
func fuzzTower(f *testing.F) (*Tower, *channel.Key, channel.Terms) {
	f.Helper()
	net, err := devchain.Start(context.Background(), devchain.Options{BlockTime: 50 * time.Millisecond})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { net.Close() })
	free := limit.Rate{PerSecond: -1}
	tower, err := New(f.Context(), Config{
		Chain: Chain{Backend: net.Backend}, Escrow: net.Escrow, Key: channel.NewKey(net.Keys[2]), Database: filepath.Join(f.TempDir(), "tower.db"),
		Tokens: map[common.Address]string{net.Token: "0.00005"}, Log: slog.New(slog.DiscardHandler),
		Limits: Limits{Requests: free, Vouchers: free, Channel: free, Leaves: free, Reads: free},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { tower.Close() })
	key := channel.NewKey(net.Keys[1])
	terms := channel.Terms{ChainID: devchain.ChainID, Escrow: net.Escrow, Payer: key.Address(), Payee: channel.NewKey(net.Keys[0]).Address(),
		Token: net.Token, Salt: common.Hash{31: 1}}
	fuzzOpen(f, net, tower.escrow, key, terms)
	return tower, key, terms
}

// fuzzOpen puts a channel on the chain.
func fuzzOpen(f *testing.F, net *devchain.Chain, escrow *chain.Escrow, key *channel.Key, terms channel.Terms) {
	f.Helper()
	deposit := *uint256.NewInt(1000)
	if err := net.Fund(f.Context(), key.Address(), new(big.Int), deposit); err != nil {
		f.Fatal(err)
	}
	db, err := store.Open(f.Context(), filepath.Join(f.TempDir(), "payer.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = db.Close() })
	txs, err := chain.OpenStore(f.Context(), db)
	if err != nil {
		f.Fatal(err)
	}
	token, err := chain.NewToken(f.Context(), net.Backend, net.Token)
	if err != nil {
		f.Fatal(err)
	}
	sender := &chain.Sender{Backend: net.Backend, Key: key, Store: txs, Poll: 20 * time.Millisecond}
	for _, call := range []chain.Call{token.ApproveCall(net.Escrow, deposit), escrow.OpenCall(terms, deposit)} {
		id, err := sender.Submit(f.Context(), call)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := sender.Wait(f.Context(), id, 1); err != nil {
			f.Fatal(err)
		}
	}
}

// answerer is a client whose server is a fuzzer.
type answerer struct {
	status int
	kind   string
	body   []byte
}

func (a answerer) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: a.status, Header: http.Header{"Content-Type": {a.kind}}, Body: io.NopCloser(bytes.NewReader(a.body)), Request: r}, nil
}

// FuzzAnswer: whatever a watchtower answers, a payee takes its vouchers for told only if there is a word on each, and a
// payer its request for done only at 200.
func FuzzAnswer(f *testing.F) {
	var batch []channel.State
	for i := range byte(2) {
		s := channel.State{Terms: channel.Terms{ChainID: 1, Salt: common.Hash{i}}, Accepted: *uint256.NewInt(5), Signature: make([]byte, 65)}
		s.ID = s.Terms.ID()
		batch = append(batch, s)
	}
	f.Add(200, "application/json", []byte(`{"receipts":[{"outcome":"accepted"},{"problem":{"status":404,"title":"x"}}]}`))
	f.Add(200, "application/json", []byte(`{"receipts":[{},{},{}]}`))
	f.Add(200, "", []byte(`{"receipts":[null,{"problem":null}]`))
	f.Add(429, "application/problem+json", []byte(`{"title":"y","status":200}`))
	f.Fuzz(func(t *testing.T, status int, kind string, body []byte) {
		client := &http.Client{Transport: answerer{status, kind, body}}
		feed := &Feed{http: client, log: slog.New(slog.DiscardHandler), now: time.Now}
		to := newListener()
		err := feed.push(t.Context(), "http://tower", batch, to)
		told := to.told
		var answer Receipts
		decoded := json.NewDecoder(bytes.NewReader(body)).Decode(&answer) == nil && status == http.StatusOK && len(answer.Receipts) == len(batch)
		if len(told) > 0 && !decoded {
			t.Fatalf("%d %s: %d channels count as told", status, body, len(told))
		}
		if err == nil && len(told)+len(to.refused) != len(batch) {
			t.Fatalf("%d %s: no error, and %d of %d channels are told, %d to be told again", status, body, len(told), len(batch), len(to.refused))
		}
		for _, s := range batch {
			if last, ok := told[s.ID]; ok && last.amount != s.Accepted {
				t.Fatalf("channel %s counts as told %s", s.ID, last.amount.Dec())
			}
		}
		relay := &Client{URL: "http://tower", HTTP: client, Log: feed.log}
		if err := relay.Withdraw(t.Context(), batch[0].Terms); (err == nil) != (status == http.StatusOK) {
			t.Fatalf("%d %s: %v", status, body, err)
		}
	})
}
