package provider

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// FuzzRequest gives the lease's handler whatever a renter can put into a request under a real challenge. It never fails
// by an error of its own, and a voucher counts only if its signer signed it within the deposit.
func FuzzRequest(f *testing.F) {
	p, key, terms := fuzzProvider(f)
	challenge, err := sessionOf(p).Challenges.Mint(context.Background(), "")
	if err != nil {
		f.Fatal(err)
	}
	sessionOf(p).Challenges.Minter.TTL = 24 * time.Hour // outlives the fuzzer
	if challenge, err = sessionOf(p).Challenges.Mint(context.Background(), ""); err != nil {
		f.Fatal(err)
	}
	voucher, err := p.payee.Domain.Sign(f.Context(), key, terms.ID(), *uint256.NewInt(500))
	if err != nil {
		f.Fatal(err)
	}
	amount := wire.NewAmount(voucher.Cumulative)
	for _, action := range []string{wire.ActionVoucher, wire.ActionRelease, wire.ActionClose, wire.ActionOpen, wire.ActionTopUp} {
		payload, err := json.Marshal(wire.Payload{Action: action, Type: wire.TypeHash, ChannelID: terms.ID(), CumulativeAmount: &amount,
			Signature: voucher.Signature, Salt: &terms.Salt, Hash: &common.Hash{1}, AdditionalDeposit: &amount, Proof: voucher.Signature})
		if err != nil {
			f.Fatal(err)
		}
		f.Add("POST", "gpus=1", wire.Source(terms.ChainID, terms.Payer), payload)
		f.Add("GET", "", "", payload)
	}
	f.Fuzz(func(t *testing.T, method, query, source string, payload []byte) {
		if !json.Valid(payload) || method == "" || strings.ContainsFunc(method, func(r rune) bool { return r < 'A' || r > 'Z' }) {
			return
		}
		raw, err := json.Marshal(map[string]any{"challenge": challenge, "source": source, "payload": json.RawMessage(payload)})
		if err != nil {
			return
		}
		before, err := p.payee.State(t.Context(), terms.ID())
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest("GET", "/lease", nil)
		r.Method, r.URL.RawQuery = method, query
		r.Header.Set("Authorization", "Payment "+base64.RawURLEncoding.EncodeToString(raw))
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s ?%s %s: %s", method, query, payload, w.Body)
		}
		after, err := p.payee.State(t.Context(), terms.ID())
		if err != nil {
			t.Fatal(err)
		}
		if after.Accepted.Lt(&before.Accepted) || after.Accepted.Gt(&after.Deposit) || after.Spent != before.Spent {
			t.Fatalf("from %+v to %+v", before, after)
		}
		if after.Accepted != before.Accepted && p.payee.Domain.Verify(after.Voucher(), terms.Signer()) != nil {
			t.Fatalf("a voucher counts that nobody signed: %+v", after)
		}
	})
}

// fuzzProvider is a provider with one channel of a deposit of 1000.
func fuzzProvider(f *testing.F) (*Server, *channel.Key, channel.Terms) {
	f.Helper()
	net, err := devchain.Start(context.Background(), devchain.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { net.Close() })
	p, err := New(f.Context(), Config{
		RPC: net.URL, Escrow: net.Escrow, Token: net.Token, Key: channel.NewKey(net.Keys[0]), Source: testclock.GPUs(1), Metering: Metering{Clock: testclock.Process()},
		Database: filepath.Join(f.TempDir(), "provider.db"), PricePerGPUHour: hour, Chain: Chain{ClockTolerance: 24 * time.Hour, Poll: 5 * time.Millisecond},
		Deposits: Deposits{Timeout: 10 * time.Millisecond}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { p.Close() })
	key := channel.NewKey(net.Keys[1])
	terms := channel.Terms{ChainID: devchain.ChainID, Escrow: net.Escrow, Payer: key.Address(), Payee: p.config.Key.Address(), Token: net.Token, Salt: common.Hash{31: 1}}
	if _, err := p.payee.Register(f.Context(), terms, channel.ChainView{Deposit: *uint256.NewInt(1000)}); err != nil {
		f.Fatal(err)
	}
	return p, key, terms
}

// FuzzParseBundle: what anybody hands in as a bundle is checked to the end, whatever it holds.
func FuzzParseBundle(f *testing.F) {
	var record metering.SignedRecord
	amount := wire.NewAmount(*uint256.NewInt(5))
	seed, err := json.Marshal(audit.Bundle{
		Kind: audit.Kind, Version: 1, Keeper: audit.KeptByPayer, Deposit: amount, Settled: amount, Prepaid: amount,
		Leases:       []audit.Lease{{Offer: json.RawMessage(`{}`), Devices: []string{"a"}, Records: []metering.SignedRecord{record}, Proofs: []audit.Proof{{}}}},
		Vouchers:     []audit.Voucher{{Cumulative: amount, Signature: make([]byte, 65)}},
		Transactions: []audit.Transaction{{Kind: "open"}}, Evidence: []audit.Evidence{{Reason: "x", Document: "{}"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte(`{"kind":"gpupay bundle","version":1,"leases":[{}],"vouchers":[{}],"evidence":[{"document":"null"}]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		b, err := audit.Parse(document)
		if err != nil {
			return
		}
		if len(audit.Verify(t.Context(), b, nil)) == 0 {
			t.Fatal("nothing was checked")
		}
		if proofs := b.Equivocations(); len(proofs) > 0 {
			t.Fatalf("a fuzzer proved that somebody signed twice: %s", document)
		}
	})
}

func FuzzParseEquivocationProof(f *testing.F) {
	f.Add([]byte(`{"kind":"` + audit.EquivocationKind + `","offer":{},"records":[{},{}]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		if _, err := audit.ParseEquivocation(document); err == nil {
			t.Fatalf("a fuzzer proved that somebody signed twice: %s", document)
		} else if !errors.Is(err, audit.ErrNotEquivocation) {
			t.Fatalf("unexpected kind of error: %v", err)
		}
	})
}
