package chain_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// reads are what a renter reads through chain.Agreed: each returns what was said, as text.
func (w *world) reads(id common.Hash, backend chain.Backend) map[string]func(context.Context) (string, error) {
	escrow := func(ctx context.Context) (*chain.Escrow, error) { return chain.NewEscrow(ctx, backend, w.Escrow) }
	token := func(ctx context.Context) (*chain.Token, error) { return chain.NewToken(ctx, backend, w.Token) }
	said := func(v any, err error) (string, error) { return fmt.Sprintf("%+v", v), err }
	return map[string]func(context.Context) (string, error){
		"code": func(ctx context.Context) (string, error) {
			e, err := escrow(ctx)
			if err != nil {
				return "", err
			}
			return said("ours", e.VerifyCode(ctx))
		},
		"grace": func(ctx context.Context) (string, error) {
			e, err := escrow(ctx)
			if err != nil {
				return "", err
			}
			return said(e.Grace(), nil)
		},
		"channel": func(ctx context.Context) (string, error) {
			e, err := escrow(ctx)
			if err != nil {
				return "", err
			}
			return said(e.View(ctx, id, nil))
		},
		"close requests": func(ctx context.Context) (string, error) {
			e, err := escrow(ctx)
			if err != nil {
				return "", err
			}
			return said(e.CloseRequests(ctx, id))
		},
		"time": func(ctx context.Context) (string, error) {
			header, err := backend.HeaderByNumber(ctx, nil)
			if err != nil {
				return "", err
			}
			return said(header.Time, nil)
		},
		"head": func(ctx context.Context) (string, error) { return said(backend.BlockNumber(ctx)) },
		"decimals": func(ctx context.Context) (string, error) {
			t, err := token(ctx)
			if err != nil {
				return "", err
			}
			return said(t.Decimals, nil)
		},
		"authorization": func(ctx context.Context) (string, error) {
			t, err := token(ctx)
			if err != nil {
				return "", err
			}
			return said(t.AuthorizationUsed(ctx, w.payer.Address(), common.Hash{9}))
		},
		"separator": func(ctx context.Context) (string, error) {
			t, err := token(ctx)
			if err != nil {
				return "", err
			}
			return said(t.DomainSeparator(ctx))
		},
		"balance": func(ctx context.Context) (string, error) {
			t, err := token(ctx)
			if err != nil {
				return "", err
			}
			b, err := t.Balance(ctx, w.payer.Address())
			return said(b.Dec(), err)
		},
		"ERC-3009": func(ctx context.Context) (string, error) {
			t, err := token(ctx)
			if err != nil {
				return "", err
			}
			return said(t.SupportsAuthorization(ctx))
		},
	}
}

// another changes the last digit of an answer, which is a number, a flag or the end of code.
func another(x *badrpc.Exchange) {
	text := string(x.Result)
	if x.Error != nil || !strings.HasPrefix(text, `"0x`) || len(text) < 5 {
		return
	}
	digit := "1"
	if text[len(text)-2] == '1' {
		digit = "2"
	}
	x.Result = []byte(text[:len(text)-2] + digit + `"`)
}

// nothing is an answer of the same length that is all zero.
func nothing(x *badrpc.Exchange) {
	if text := string(x.Result); x.Error == nil && strings.HasPrefix(text, `"0x`) {
		x.Result = []byte(`"0x` + strings.Repeat("0", len(text)-4) + `"`)
	}
}

// Of two endpoints the first or the second lies about any read, in each way, also of a block that the other one does not have:
// what is believed is true, and else it is one line that says who contradicts whom, which waiting callers wait out.
func TestNoEndpointAloneIsBelieved(t *testing.T) {
	w := newWorld(t)
	backend, one, two, _ := w.pair(t)
	payee := w.sender(t, w.Keys[1])
	terms := w.open(t, payee, 1, 1000)
	send(t, payee, w.escrow.TopUpAuthorizedCall(terms, common.Hash{1}, w.authorize(t, 500, channel.TopUpNonce(terms.ID(), *uint256.NewInt(500), w.payer.Address(), common.Hash{1}))))
	w.Mine(t, 40)
	truth := make(map[string]string)
	for name, read := range w.reads(terms.ID(), w.Backend) {
		said, err := read(t.Context())
		if err != nil {
			t.Fatal(name, err)
		}
		truth[name] = said
	}
	lies := map[string]map[string]badrpc.Fault{
		"another answer":     {"eth_call": another, "eth_getCode": another},
		"all zero":           {"eth_call": nothing, "eth_getCode": nothing},
		"no code":            {"eth_getCode": badrpc.Says("0x")},
		"refuses":            {"eth_call": badrpc.Fail(3, "execution reverted")},
		"another time":       {"eth_getBlockByNumber": badrpc.With("timestamp", "0xfffffff0")},
		"ahead":              {"eth_blockNumber": badrpc.Says(hexutil.Uint64(w.Head(t) + 5)), "eth_call": another, "eth_getCode": another},
		"far ahead":          {"eth_blockNumber": badrpc.Says(hexutil.Uint64(1 << 40)), "eth_call": another, "eth_getCode": another},
		"before the channel": {"eth_blockNumber": badrpc.Says("0x1")},
		"null":               {"eth_call": badrpc.Null, "eth_getCode": badrpc.Null, "eth_blockNumber": badrpc.Null, "eth_getBlockByNumber": badrpc.Null},
	}
	for name, read := range w.reads(terms.ID(), chain.Agreed(backend)) {
		contradicted := 0
		for lie, faults := range lies {
			for i, liar := range []*badrpc.Endpoint{one, two} {
				for method, fault := range faults {
					liar.On(method, fault)
				}
				said, err := read(t.Context())
				switch {
				case err == nil && said != truth[name]:
					t.Errorf("%s, endpoint %d, %s: %s is believed, %s is true", name, i+1, lie, said, truth[name])
				case err != nil:
					contradicted++
					if text := err.Error(); !errors.Is(err, chain.ErrContradiction) || !errors.Is(err, chain.ErrUnreachable) || strings.Contains(text, "\n") || len(text) > 400 {
						t.Errorf("%s, endpoint %d, %s: not one clear line: %q", name, i+1, lie, text)
					}
				}
				liar.Heal()
			}
		}
		if said, err := read(t.Context()); err != nil || said != truth[name] {
			t.Errorf("%s: %q, %v when both are well", name, said, err)
		}
		if contradicted == 0 {
			t.Errorf("%s: no lie is noticed", name)
		}
	}
}
