package chain_test

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// strict is a token in the place of another one, which it does everything by, but that it takes an approval only where
// nothing is approved, as Tether does.
func strict(behind common.Address) string {
	delegate := func(in, out string) string {
		return "60" + out + "6000" + in + "600073" + hex.EncodeToString(behind[:]) + "5af4"
	}
	check := "60003560e01c63095ea7b31415606057" + // another method: on
		"602435" + "15606057" + // nothing is approved: on
		"63dd62ed3e60e01b600052" + "33600452" + "600435602452" + delegate("6044", "20") + "50" + "600051"
	// where something was approved before, revert
	code := check + "15" + "606057" + "60006000fd"
	code += strings.Repeat("5b", 0x60-len(code)/2) // up to the place that is jumped to
	code += "5b" + "3660006000" + "37" + "6000600036600073" + hex.EncodeToString(behind[:]) + "5af4" + "3d60006000" + "3e"
	end := len(code)/2 + 3 + 4
	return "0x" + code + "60" + hex.EncodeToString([]byte{byte(end)}) + "57" + "3d6000fd" + "5b3d6000f3"
}

// A token that changes an allowance only from nothing is paid in all the same, whatever is left over.
func TestAllowWhereSomethingIsLeft(t *testing.T) {
	w := newWorld(t)
	behind := common.Address{0xab}
	code, err := w.Backend.CodeAt(t.Context(), w.Token, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.RPC(t, nil, "anvil_setCode", behind, hexutil.Bytes(code))
	w.RPC(t, nil, "anvil_setCode", w.Token, strict(behind))
	s := w.sender(t, w.Keys[0])
	for _, step := range []struct{ amount, want, nonce uint64 }{{5, 5, 1}, {3, 5, 1}, {10, 10, 3}} {
		if err := w.token.Allow(t.Context(), s, w.Escrow, *uint256.NewInt(step.amount), 1); err != nil {
			t.Fatalf("%d: %v", step.amount, err)
		}
		got, err := w.token.Allowance(t.Context(), s.Address(), w.Escrow)
		if err != nil || got.Uint64() != step.want || w.nonce(t, s.Address()) != step.nonce {
			t.Errorf("%d: allowance %s after %d transactions (%v), want %d after %d", step.amount, got.Dec(), w.nonce(t, s.Address()), err, step.want, step.nonce)
		}
	}
	terms := w.terms(1)
	send(t, s, w.escrow.OpenCall(terms, *uint256.NewInt(10)))
	if got := w.view(t, terms).Deposit; got.Uint64() != 10 {
		t.Errorf("deposit %s", got.Dec())
	}
}

// refusing is code that reverts with a reason, whatever it is asked.
func refusing(reason string) string {
	data := common.FromHex("08c379a0")
	data = append(data, common.LeftPadBytes([]byte{32}, 32)...)
	data = append(data, common.LeftPadBytes([]byte{byte(len(reason))}, 32)...)
	data = append(data, common.RightPadBytes([]byte(reason), 32*((len(reason)+31)/32))...)
	n := hex.EncodeToString([]byte{byte(len(data))})
	return "0x60" + n + "600c60003960" + n + "6000fd" + hex.EncodeToString(data)
}

// Where the token refuses, that is said of the token, in its words, and with what to do.
func TestTokenRefuses(t *testing.T) {
	for reason, do := range map[string]string{
		"Blacklistable: account is blacklisted": "another account", "Pausable: paused": "wait", "FiatTokenV2: invalid signature": "7702",
		"ERC20: transfer amount exceeds balance": "too little", "what is that": "ask its issuer",
	} {
		w := newWorld(t)
		s := w.sender(t, w.Keys[1])
		terms := w.terms(1)
		call := w.escrow.OpenAuthorizedCall(terms, w.authorize(t, 10, channel.OpenNonce(terms.Payer, terms)))
		w.RPC(t, nil, "anvil_setCode", w.Token, refusing(reason))
		_, err := s.Submit(t.Context(), call)
		var refused *chain.Revert
		if !errors.As(err, &refused) {
			t.Fatalf("%s: %v", reason, err)
		}
		if text := refused.Refusal(); !strings.HasPrefix(text, "the token refuses it: "+reason) || !strings.Contains(text, do) || strings.Contains(text, "\n") {
			t.Errorf("%s: %q", reason, text)
		}
	}
	w := newWorld(t)
	terms := w.terms(1)
	for prefix, call := range map[string]chain.Call{
		"the token refuses it":  w.escrow.OpenCall(terms, *uint256.NewInt(10)), // nothing is approved
		"the escrow refuses it": w.escrow.WithdrawCall(terms),
	} {
		_, err := w.sender(t, w.Keys[0]).Submit(t.Context(), call)
		var refused *chain.Revert
		if !errors.As(err, &refused) || !strings.HasPrefix(refused.Refusal(), prefix) {
			t.Errorf("want that %s, got %v", prefix, err)
		}
	}
}

// Nodes of one endpoint that are blocks apart: what needs the last transaction is asked again, and so is a read at a block
// that the next node does not have yet.
func TestNodesBehindABalancer(t *testing.T) {
	w := newWorld(t, "--block-time", "1")
	s, bad, _ := w.badSender(t)
	w.Mine(t, 3)
	bad.Balance(1)
	terms, ctx := w.terms(1), t.Context()
	for range 2 {
		if err := w.token.Allow(ctx, s, w.Escrow, *uint256.NewInt(10), 1); err != nil {
			t.Fatal(err)
		}
		id, err := s.SubmitAfter(ctx, w.escrow.OpenCall(terms, *uint256.NewInt(10)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Wait(ctx, id, 1); err != nil {
			t.Fatal(err)
		}
		terms = w.terms(2)
	}
	escrow, err := chain.NewEscrow(ctx, s.Backend, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, _, err := escrow.Confirmed(ctx, []common.Hash{terms.ID()}, 1); err != nil {
			t.Error(err)
		}
	}
}

// A node that is behind refuses what the last transaction allows, or does not have the block that another one told of: both
// are asked again.
func TestRefusalByANodeBehind(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	send(t, s, w.token.ApproveCall(w.Escrow, *uint256.NewInt(10)))
	bad.On("eth_estimateGas", badrpc.Times(2, badrpc.Fail(3, "execution reverted")))
	id, err := s.SubmitAfter(t.Context(), w.escrow.OpenCall(w.terms(1), *uint256.NewInt(10)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Wait(t.Context(), id, 1); err != nil {
		t.Fatal(err)
	}
	escrow, err := chain.NewEscrow(t.Context(), s.Backend, w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	bad.On("eth_call", badrpc.Times(2, badrpc.Fail(-32000, "header not found")))
	terms := w.terms(1)
	if got, _, err := escrow.Confirmed(t.Context(), []common.Hash{terms.ID()}, 1); err != nil || got[0].View.Deposit.Uint64() != 10 {
		t.Errorf("%+v, %v", got, err)
	}
}

// An endpoint whose state does not reach back as far as deposits need is found at the start.
func TestHistoryIsTooShort(t *testing.T) {
	w := newWorld(t)
	w.Mine(t, 20)
	bad := badrpc.New(t, w.URL)
	client, err := chain.Dial(t.Context(), bad.URL)
	if err != nil {
		t.Fatal(err)
	}
	escrow, err := chain.NewEscrow(t.Context(), chain.Checked(client), w.Escrow)
	if err != nil {
		t.Fatal(err)
	}
	if err := escrow.CheckHistory(t.Context(), 12); err != nil {
		t.Error(err)
	}
	bad.On("eth_call", func(x *badrpc.Exchange) {
		if !strings.Contains(string(x.Params), "latest") {
			badrpc.Fail(-32000, "missing trie node 0123 (path )")(x)
		}
	})
	oneLine(t, escrow.CheckHistory(t.Context(), 12), chain.ErrHistory)
}

// An interrupt is answered at once, though another goroutine waits for the endpoint.
func TestInterruptWhileTheEndpointHangs(t *testing.T) {
	w := newWorld(t)
	s, bad, _ := w.badSender(t)
	bad.Instead("eth_sendRawTransaction", badrpc.Fail(-32000, "out of order"))
	id, err := s.Submit(t.Context(), w.token.ApproveCall(w.Escrow, *uint256.NewInt(1)))
	if err != nil {
		t.Fatal(err)
	}
	hang, asked := make(chan struct{}), bad.Count("eth_getBlockByNumber")
	bad.On("eth_getBlockByNumber", func(*badrpc.Exchange) { <-hang })
	defer close(hang)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	go func() { _ = s.Run(ctx) }()
	within(t, "it hangs", func() bool { return bad.Count("eth_getBlockByNumber") > asked })
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := s.Wait(short, id, 1); err == nil || time.Since(began) > 20*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}
