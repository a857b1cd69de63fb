package x402client

import (
	"bytes"
	"context"
	"errors"
	"math/big"
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/sdk/chain"
	testrig "github.com/gpupay/gpupay/sdk/internal/rig"
	"github.com/gpupay/gpupay/sdk/x402"
)

// deaf is an endpoint that does not say whether authorizations were used.
type deaf struct {
	chain.Backend
	on atomic.Bool
}

var asksForUse = crypto.Keccak256([]byte("authorizationState(address,bytes32)"))[:4]

func (d *deaf) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	if d.on.Load() && bytes.HasPrefix(msg.Data, asksForUse) {
		return nil, errors.New("no answer")
	}
	return d.Backend.CallContract(ctx, msg, block)
}

// TestUnknownDepositIsNoSecondOne: while nobody says what became of a deposit that was signed, no other is.
func TestUnknownDepositIsNoSecondOne(t *testing.T) {
	s := newStall(t, testrig.NewX402Market(t))
	signed, demand := make(map[x402.Hash]bool), s.Server.Config.Handler
	s.Server.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p, err := x402.ParsePaymentPayload(r.Header)
		if err != nil {
			demand.ServeHTTP(w, r)
			return
		}
		if p.Payload.Deposit != nil { // it keeps what it gets
			signed[p.Payload.Deposit.Authorization.Salt] = true
		}
		w.WriteHeader(http.StatusBadGateway)
	})
	x := s.client(stallCaps, stallOptions)
	endpoint := &deaf{Backend: x.w.Backend}
	token, err := chain.NewToken(t.Context(), endpoint, s.Token)
	if err != nil {
		t.Fatal(err)
	}
	x.w.Token = token
	for n := range 6 {
		endpoint.on.Store(n%2 == 1)
		resp, err := s.get(x)
		if n%2 == 1 && err == nil {
			t.Errorf("try %d is answered %s, and nobody said what became of the deposit", n, resp.Status)
		}
		if len(signed) != 1 {
			t.Fatalf("%d deposits are signed after %d tries", len(signed), n+1)
		}
	}
}
