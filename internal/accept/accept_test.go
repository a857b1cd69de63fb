package accept

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
)

var (
	cases = flag.Int("cases", 3000, "vouchers that are given to the payee and to the contract")
	seed  = flag.Uint64("seed", 1, "of the vouchers")
)

// rule says, for each answer of the payee, what the contract may say to the same voucher.
func rule(s *subject, v channel.Voucher, outcome channel.Outcome, err error) (answer string, allowed []string) {
	switch {
	case err == nil && outcome == channel.Accepted && !v.Cumulative.Gt(&s.view.Settled):
		return "accepted, and paid before", []string{"Stale"}
	case err == nil && outcome == channel.Accepted:
		return "accepted", []string{paid}
	case err == nil:
		return outcome.String(), []string{paid, "Stale"} // it is rightly signed
	case errors.Is(err, channel.ErrUnknown):
		return "unknown", []string{"UnknownChannel"}
	case errors.Is(err, channel.ErrAmount):
		return "no amount", []string{"Stale", "ExceedsDeposit", "InvalidSignature", "UnknownChannel", "ChannelFinalized", "reverted"}
	case errors.Is(err, channel.ErrSignature):
		return "bad signature", []string{"InvalidSignature", "Stale", "ExceedsDeposit", "ChannelFinalized"}
	case errors.Is(err, channel.ErrFinalized):
		return "finalized", []string{"ChannelFinalized"}
	case errors.Is(err, channel.ErrClosing):
		return "closing", []string{paid, "Stale", "ExceedsDeposit"} // what was accepted before is still paid
	case errors.Is(err, channel.ErrDelta):
		return "too small a step", []string{paid, "Stale"}
	case errors.Is(err, channel.ErrExceedsDeposit) && v.Cumulative.Gt(&s.view.Deposit):
		return "over the deposit", []string{"ExceedsDeposit"}
	case errors.Is(err, channel.ErrExceedsDeposit):
		return "over the confirmed deposit", []string{paid}
	}
	return fmt.Sprintf("failed: %v", err), nil
}

// trial is a payee and a contract that are asked the same.
type trial struct {
	ledger
	keys
	subjects []*subject
	payee    *channel.Payee
}

func (tr *trial) register(ctx context.Context) error {
	for _, s := range tr.subjects {
		if !s.known {
			continue
		}
		if _, err := tr.payee.Register(ctx, s.terms, s.told); err != nil {
			return err
		}
	}
	return nil
}

// try gives one voucher to both.
func (tr *trial) try(ctx context.Context, src *source) (a attempt, answer string, err error) {
	s := tr.subjects[int(src.next())%len(tr.subjects)]
	before, err := tr.payee.State(ctx, s.terms.ID())
	if err != nil && s.known {
		return a, "", err
	}
	a = tr.attempt(s, before, tr.subjects, src)
	receipt, refusal := tr.payee.Accept(ctx, a.Voucher)
	verdict := tr.settle(s.terms, a.Voucher)
	answer, allowed := rule(s, a.Voucher, receipt.Outcome, refusal)
	if !slices.Contains(allowed, verdict) {
		return a, answer, fmt.Errorf("channel %q, %s with %s signature by %s in domain %q over %s: the payee says %q (%v), the contract %q",
			s.name, a.Cumulative.Dec(), a.forgery, a.signer, a.domain, a.amount, answer, refusal, verdict)
	}
	if after := receipt.State; refusal == nil && receipt.Outcome == channel.Accepted && after.Accepted != a.Cumulative {
		return a, answer, fmt.Errorf("channel %q: accepted %s, kept %s", s.name, a.Cumulative.Dec(), after.Accepted.Dec())
	}
	return a, answer, nil
}

// What the payee accepts the contract pays: thousands of vouchers to both, right and wrong ones, and at the end of each
// round what the payee has kept is settled on the chain.
func TestWhatThePayeeAcceptsTheContractPays(t *testing.T) {
	k := newKeys()
	a := newAnvil(t, k)
	tr := &trial{ledger: a, keys: k, subjects: subjects(a, k)}
	random := rand.New(rand.NewPCG(*seed, 0))
	counts := map[string]int{}
	settled := 0
	const round = 250
	for n := 0; n < *cases; n += round {
		var snapshot string
		a.RPC(t, &snapshot, "evm_snapshot")
		db, err := store.Open(t.Context(), filepath.Join(t.TempDir(), fmt.Sprintf("%d.db", n)))
		if err != nil {
			t.Fatal(err)
		}
		tr.payee = &channel.Payee{Store: db.Payee(), Domain: a.escrow.Domain(), MinDelta: *uint256.NewInt(uint64(n/round%2) * 20)}
		if err := tr.register(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range round {
			var bytes [160]byte
			for i := range bytes {
				bytes[i] = byte(random.Uint32())
			}
			_, answer, err := tr.try(t.Context(), &source{bytes[:]})
			if err != nil {
				t.Fatalf("seed %d: %v", *seed, err)
			}
			counts[answer]++
		}
		settled += tr.settleAll(t, k.stranger)
		a.RPC(t, nil, "evm_revert", snapshot)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, answer := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%6d %s", counts[answer], answer)
	}
	t.Logf("%6d settled by transaction, each to the base unit", settled)
	for _, answer := range []string{"accepted", "replayed", "stale", "bad signature", "closing", "finalized", "unknown", "no amount",
		"over the deposit", "over the confirmed deposit", "too small a step", "accepted, and paid before"} {
		if counts[answer] == 0 {
			t.Errorf("no voucher was answered with %q: the test does not test it", answer)
		}
	}
}

// settleAll settles by transaction what the payee has kept, and compares.
func (tr *trial) settleAll(t *testing.T, from *ecdsa.PrivateKey) (settled int) {
	t.Helper()
	open, err := tr.payee.Unsettled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	escrow, _ := tr.contracts()
	for _, s := range open {
		tr.transact(from, escrow, escrowABI.PackSettle(abiTerms(s.Terms), s.Accepted.ToBig(), s.Signature))
		if view := tr.view(s.ID); view.Settled != s.Accepted {
			t.Fatalf("channel %s: settled %s, accepted %s", s.ID, view.Settled.Dec(), s.Accepted.Dec())
		}
		settled++
	}
	return settled
}

// FuzzAccept is the same without a node: the escrow's code in an EVM in this process. The bytes are up to 16 vouchers, one
// after the other, of which each sees what the ones before it left.
func FuzzAccept(f *testing.F) {
	k := newKeys()
	m := newMachine()
	all := subjects(m, k)
	for n := range all {
		at, bad := byte(n), byte(dishonest+n)
		f.Add([]byte{at, 0, 0, 0, 0, 9, at, 0, 0, 0, 0, 9}) // an honest voucher, and a second
		f.Add([]byte{at, bad})                              // by another signer
		f.Add([]byte{at, 0, bad, 0, 0, 7, 3})               // in another domain
		f.Add([]byte{at, 0, 0, bad, 0, 7})                  // of an amount at an edge
		f.Add([]byte{at, 0, 0, 0, bad, 1, 2})               // forged
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		tr := &trial{ledger: m, keys: k, subjects: all, payee: &channel.Payee{Store: &memory{states: map[common.Hash]channel.State{}},
			Domain: channel.EscrowDomain(m.id(), m.escrow)}}
		if err := tr.register(t.Context()); err != nil {
			t.Fatal(err)
		}
		src := &source{script}
		for n := 0; n < 16 && len(src.bytes) > 0; n++ {
			if _, _, err := tr.try(t.Context(), src); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// memory is a payee's store for a moment: a disk would make a fuzzer slow.
type memory struct {
	mu     sync.Mutex
	states map[common.Hash]channel.State
}

var _ channel.Store = (*memory)(nil)

func (m *memory) Create(_ context.Context, s channel.State) (channel.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if kept, ok := m.states[s.ID]; ok {
		return kept, nil
	}
	m.states[s.ID] = s
	return s, nil
}

func (m *memory) Update(_ context.Context, id common.Hash, change func(*channel.State) error) (channel.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.states[id]
	if !ok {
		return s, channel.ErrUnknown
	}
	if err := change(&s); err != nil {
		return s, err
	}
	s.Signature = slices.Clone(s.Signature)
	m.states[id] = s
	return s, nil
}

func (m *memory) Terms(ctx context.Context, id common.Hash) (channel.Terms, error) {
	s, err := m.Load(ctx, id)
	return s.Terms, err
}

func (m *memory) Load(_ context.Context, id common.Hash) (channel.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.states[id]
	if !ok {
		return s, channel.ErrUnknown
	}
	return s, nil
}

func (m *memory) List(context.Context, ...channel.Status) ([]channel.State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.states)), nil
}

func (m *memory) Unsettled(ctx context.Context) ([]channel.State, error) {
	all, err := m.List(ctx)
	return slices.DeleteFunc(all, func(s channel.State) bool { u := s.Unsettled(); return u.IsZero() }), err
}
