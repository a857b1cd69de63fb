package provider

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/sessionscheme"
	"github.com/gpupay/gpupay/sdk/wire"
)

// begins asks for another lease on a channel, by a proof.
func (t *tab) begins(amount uint64) *http.Response {
	t.Helper()
	cred := t.credential(wire.ActionVoucher, amount)
	cred.Payload.Proof = t.proof(cred.Challenge.ID, "attach")
	return t.do("GET", "", cred)
}

// beginsNot has a lease refused with a status and a word of the reason.
func (t *tab) beginsNot(amount uint64, status int, word string) {
	t.Helper()
	resp := t.begins(amount)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		t.Fatal("a lease begins on a channel that can be closed below what it will be paid")
	}
	if problem := wire.ParseProblem(resp); resp.StatusCode != status || !strings.Contains(problem.Error(), word) {
		t.Fatalf("refused with %v, want %d and %q", problem, status, word)
	}
}

// TestNothingIsServedOnAnotherKeysChannel: who has the key that a channel pays can close it at what is settled. After the
// key was changed no lease goes on on such a channel, though its records' key is the same, none begins, and no deposit is
// sent into one.
func TestNothingIsServedOnAnotherKeysChannel(t *testing.T) {
	meter := testKey(t)
	r := newRig(t, quiet, generousCredit, func(c *Config) { c.Metering.Key = meter })
	lease := r.open(1, 100_000, "")
	paid := owedIn(lease.record())
	lease.pay(paid)
	late := r.openCredential(r.payer, r.terms(r.payer.Address(), 2), 100_000, 0)
	r.shut()
	r.config.Key = channel.NewKey(r.chain.Keys[1])
	r.start()
	if row := r.row(lease.lease.LeaseID); row.State != wire.StateEnded || !strings.Contains(row.Reason, "key") {
		t.Errorf("the lease is %s: %s", row.State, row.Reason)
	}
	lease.beginsNot(paid, http.StatusForbidden, "open another")
	before := r.balance(r.payer.Address())
	resp := r.do("GET", "", late)
	if resp.Body.Close(); resp.StatusCode == http.StatusOK || r.balance(r.payer.Address()) != before {
		t.Errorf("a channel that pays the old key: %s, and the payer has %d of %d", resp.Status, r.balance(r.payer.Address()), before)
	}
	r.open(3, 100_000, "")
}

// TestSignedCloseStandsUntilItsDeadline: a close that a past key signed was dropped, and the key from before is the
// provider's again. Whoever saw the close can send it until its deadline: no lease begins until then.
func TestSignedCloseStandsUntilItsDeadline(t *testing.T) {
	r := newAnvilRig(t)
	old := r.config.Key
	lease := r.open(1, 100_000, "")
	final := lease.release()
	paid := final.Owed.Uint64()
	lease.pay(paid)
	r.shut()
	r.config.Key, r.config.PastKeys = channel.NewKey(r.chain.Keys[3]), []channel.Signer{old}
	r.start()
	r.anvil.Automine(t, false)
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	call, err := sessionOf(r.provider).Closing.Call(t.Context(), s.Terms, s.Accepted, s.Signature)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.provider.sender.Submit(t.Context(), call); err != nil {
		t.Fatal(err)
	}
	r.shut()
	r.anvil.RPC(t, nil, "anvil_dropAllTransactions")
	r.anvil.Automine(t, true)
	r.config.Key, r.config.PastKeys = old, nil
	r.start()
	lease.beginsNot(paid, http.StatusGone, "signed")
	deadline, ok := chain.CloseDeadline(call)
	now, err := r.provider.escrow.Now(t.Context())
	if left := time.Unix(int64(deadline), 0).Sub(now); !ok || err != nil || left < sessionscheme.CloseDeadline-time.Minute || left > sessionscheme.CloseDeadline {
		t.Fatalf("the close is good for %s, %v, %v", left, ok, err)
	}
	r.anvil.RPC(t, nil, "evm_increaseTime", int64(sessionscheme.CloseDeadline/time.Second)+60)
	r.anvil.Mine(t, 1)
	lease.attach(lease.begins(paid))
}

// TestNoLeaseBeginsBesideACloseInTheOutbox: a close is in flight, whatever the books say of its channel.
func TestNoLeaseBeginsBesideACloseInTheOutbox(t *testing.T) {
	r := newAnvilRig(t)
	lease := r.open(1, 100_000, "")
	final := lease.release()
	paid := final.Owed.Uint64()
	lease.pay(paid)
	r.anvil.Automine(t, false)
	if _, err := r.provider.sender.Submit(t.Context(), r.provider.escrow.CloseCall(lease.terms, final.Owed, lease.sign(lease.key, lease.terms, paid))); err != nil {
		t.Fatal(err)
	}
	lease.beginsNot(paid, http.StatusGone, "its close is signed")
}

// TestNothingBeginsBesideWhatTheOutboxForgot: a database is restored from before a close that is still on its way. No lease
// begins until the chain has it.
func TestNothingBeginsBesideWhatTheOutboxForgot(t *testing.T) {
	r := newAnvilRig(t)
	lease := r.open(1, 100_000, "")
	final := lease.release()
	paid := final.Owed.Uint64()
	lease.pay(paid)
	r.shut()
	backup, err := os.ReadFile(r.config.Database)
	if err != nil {
		t.Fatal(err)
	}
	r.start()
	s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
	if err != nil {
		t.Fatal(err)
	}
	r.anvil.Automine(t, false)
	if _, err := sessionOf(r.provider).Closing.Send(t.Context(), s.ID, nil); err != nil {
		t.Fatal(err)
	}
	r.shut()
	r.putBack(backup)
	r.start()
	lease.beginsNot(paid, http.StatusServiceUnavailable, "database does not know")
	r.anvil.Automine(t, true)
	r.anvil.Mine(t, 1)
	waitFor(t, func() bool {
		s, err := r.provider.payee.State(t.Context(), lease.terms.ID())
		return err == nil && s.Status == channel.Finalized
	})
	lease.beginsNot(paid, http.StatusGone, "")
	second := r.open(2, 100_000, "")
	second.record()
}

// TestNothingBeginsBesideWhatNoNodeShows: a database is restored from before a close that no node shows, and somebody has kept.
// Nothing begins before its nonce is used: by the close, or by what the provider sends in its place.
func TestNothingBeginsBesideWhatNoNodeShows(t *testing.T) {
	t.Parallel()
	for _, kept := range []bool{false, true} {
		t.Run(fmt.Sprintf("mined after all %v", kept), func(t *testing.T) {
			r := newAnvilRig(t)
			lease := r.open(1, 100_000, "")
			final := lease.release()
			paid := final.Owed.Uint64()
			lease.pay(paid)
			r.shut()
			backup, err := os.ReadFile(r.config.Database)
			if err != nil {
				t.Fatal(err)
			}
			r.start()
			r.anvil.Automine(t, false)
			if _, err := sessionOf(r.provider).Closing.Send(t.Context(), lease.terms.ID(), nil); err != nil {
				t.Fatal(err)
			}
			sent, err := r.provider.sender.Find(t.Context(), lease.terms.ID(), chain.Close)
			if err != nil || len(sent) != 1 {
				t.Fatal(len(sent), err)
			}
			r.shut()
			r.anvil.RPC(t, nil, "anvil_dropAllTransactions")
			r.putBack(backup)
			r.start()
			lease.beginsNot(paid, http.StatusServiceUnavailable, "database does not know")
			waitFor(t, func() bool {
				pending, err := r.anvil.Backend.PendingNonceAt(t.Context(), r.config.Key.Address())
				return err == nil && pending == sent[0].Nonce+1
			})
			lease.beginsNot(paid, http.StatusServiceUnavailable, "database does not know") // what is sent in its place may lose
			if kept {
				r.anvil.RPC(t, nil, "anvil_dropAllTransactions")
				if err := r.anvil.Backend.SendTransaction(t.Context(), sent[0].Attempts[0].Signed); err != nil {
					t.Fatal(err)
				}
			}
			r.anvil.Automine(t, true)
			r.anvil.Mine(t, 1)
			if kept {
				waitFor(t, func() bool { return lease.state().Status == channel.Finalized })
				lease.beginsNot(paid, http.StatusGone, "")
				return
			}
			if err := r.anvil.Backend.SendTransaction(t.Context(), sent[0].Attempts[0].Signed); err == nil {
				t.Error("the close can still be mined")
			}
			resp := lease.begins(paid)
			lease.attach(resp)
			lease.record()
		})
	}
}

// putBack restores the provider's database.
func (r *rig) putBack(backup []byte) {
	r.Helper()
	for _, rest := range []string{"-wal", "-shm"} {
		_ = os.Remove(r.config.Database + rest)
	}
	if err := os.WriteFile(r.config.Database, backup, 0o600); err != nil {
		r.Fatal(err)
	}
}
