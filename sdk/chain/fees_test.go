package chain_test

import (
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

const tipMethod = "eth_maxPriorityFeePerGas"

// versions are those of the one transaction in flight.
func versions(t *testing.T, s *chain.Sender) []chain.Attempt {
	t.Helper()
	flying, err := s.InFlight(t.Context())
	if err != nil || len(flying) != 1 {
		t.Fatalf("in flight: %v, %v", flying, err)
	}
	return flying[0].Attempts
}

// On a chain that makes no blocks no fee helps, so none is raised; nor is one for blocks that had no room.
func TestHaltedChainRaisesNoFee(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	w.Automine(t, false)
	approve := w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "out of order")) // no block takes it
	if _, err := s.Submit(t.Context(), approve); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		time.Sleep(s.Stuck / 4)
		if err := s.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := versions(t, s); len(got) != 1 {
		t.Fatalf("the chain made no block, and there are %d versions", len(got))
	}
	bad.On("eth_getBlockByNumber", badrpc.With("gasUsed", hexutil.Uint64(30_000_000)), badrpc.With("gasLimit", hexutil.Uint64(30_000_000)))
	w.looks(t, s, 10)
	if got := versions(t, s); len(got) != 1 {
		t.Fatalf("no block had room, and there are %d versions", len(got))
	}
	bad.Heal()
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "out of order"))
	w.looks(t, s, 10)
	if got := versions(t, s); len(got) < 2 {
		t.Errorf("blocks had room for it, and there are %d versions", len(got))
	}
}

// A replacement offers the builder more as well: with the old tip it would wait as long.
func TestReplacementRaisesTheTip(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	w.Automine(t, false)
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "out of order"))
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	within(t, "a replacement", func() bool {
		w.looks(t, s, 1)
		return len(versions(t, s)) > 1
	})
	got := versions(t, s)
	first, second := got[0].Signed, got[1].Signed
	for what, pair := range map[string][2]*big.Int{"tip": {first.GasTipCap(), second.GasTipCap()}, "cap": {first.GasFeeCap(), second.GasFeeCap()}} {
		least := new(big.Int).Div(new(big.Int).Mul(pair[0], big.NewInt(1125)), big.NewInt(1000))
		if pair[1].Cmp(least) < 0 {
			t.Errorf("the %s went from %s to %s: less than an eighth", what, pair[0], pair[1])
		}
	}
}

// One false answer about the tip does not give the purse away, where nobody has set a bound.
func TestFalseTipIsBounded(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	bad.On(tipMethod, badrpc.Says((*hexutil.Big)(big.NewInt(5e17)))) // half a coin for a unit of gas
	before := balance(t, w, s)
	send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
	spent := new(big.Int).Sub(before, balance(t, w, s))
	if most := big.NewInt(5e15); spent.Cmp(most) > 0 { // 0.005 coins
		t.Errorf("an approval cost %s wei", spent)
	}
	if !strings.Contains(log.String(), "out of proportion") {
		t.Error("no word of it")
	}
	bad.On("eth_getBlockByNumber", badrpc.With("baseFeePerGas", (*hexutil.Big)(big.NewInt(1e18))))
	_, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
	if err != nil && !errors.Is(err, chain.ErrFunds) {
		t.Fatal(err)
	}
	flying, err := s.InFlight(t.Context())
	for _, tx := range flying {
		if fee := tx.Attempts[0].Signed.GasFeeCap(); fee.Cmp(chain.DefaultMaxFee(31337)) > 0 {
			t.Errorf("offered %s wei per gas", fee)
		}
	}
	if err != nil {
		t.Error(err)
	}
}

func balance(t *testing.T, w *world, s *chain.Sender) *big.Int {
	t.Helper()
	b, err := w.Backend.BalanceAt(t.Context(), s.Address(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What a higher fee would cost is asked again before it is offered.
func TestReplacementMustBeAffordable(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	w.Automine(t, false)
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "out of order"))
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	bad.On("eth_getBalance", badrpc.Says("0x1"))
	w.looks(t, s, 10)
	if got := versions(t, s); len(got) != 1 {
		t.Errorf("%d versions, and no coin", len(got))
	}
	if !strings.Contains(log.String(), "a higher fee cannot be paid") {
		t.Error("no word of it")
	}
}

// A node that suggests no tip is usable.
func TestNoTipSuggestion(t *testing.T) {
	for name, fault := range map[string]badrpc.Fault{"unknown": badrpc.Fail(-32601, "the method eth_maxPriorityFeePerGas does not exist"), "null": badrpc.Null} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			s, bad, _ := w.badSender(t)
			bad.On(tipMethod, fault)
			send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1)))
			bad.On("eth_gasPrice", badrpc.Null)
			send(t, s, w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(2)))
		})
	}
}

// What a node says when it refuses a transaction is said at once, once, with what to do.
func TestRefusalIsSaid(t *testing.T) {
	w := newWorld(t)
	s, bad, log := w.badSender(t)
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "transaction underpriced: gas tip cap 1, minimum needed 25000000000"))
	if _, err := s.Submit(t.Context(), w.token.ApproveCall(w.escrow.Address(), *uint256.NewInt(1))); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	if n := strings.Count(text, "level=WARN"); n != 1 || !strings.Contains(text, "25000000000") || !strings.Contains(text, "MaxFee") {
		t.Errorf("%d warnings", n)
	}
	time.Sleep(2 * s.Resend)
	_ = s.Sync(t.Context())
	if n := strings.Count(log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings of one refusal", n)
	}
}
