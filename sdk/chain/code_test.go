package chain_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// The code of an escrow holds six words of its constructor's, in more places. Each of them is taken in its own place only:
// the escrow's address where withdraw reads the grace period would keep deposits until the year 10122.
func TestVerifyCode(t *testing.T) {
	w := newWorld(t)
	genuine, err := w.Backend.CodeAt(t.Context(), w.Escrow, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.escrow.VerifyCode(t.Context()); err != nil {
		t.Fatalf("the code that Deploy put there: %v", err)
	}
	set := func(code []byte) { w.RPC(t, nil, "anvil_setCode", w.Escrow, hexutil.Bytes(code)) }
	refused := func(what string, code []byte) {
		t.Helper()
		set(code)
		if err := w.escrow.VerifyCode(t.Context()); !errors.Is(err, chain.ErrNotEscrow) {
			t.Errorf("%s: %v, want ErrNotEscrow", what, err)
		}
	}

	words := make(map[string][]byte)
	for name, offsets := range bindings.ChannelEscrowImmutables() {
		words[name] = genuine[offsets[0] : offsets[0]+32]
	}
	words["nothing"] = make([]byte, 32)
	words["anything"] = binaryWord(rand.Uint64())
	words["the grace period and a bit"] = append([]byte{1}, words["gracePeriod"][1:]...)
	for name, offsets := range bindings.ChannelEscrowImmutables() {
		for _, at := range offsets {
			for other, word := range words {
				if other == name {
					continue
				}
				code := bytes.Clone(genuine)
				copy(code[at:], word)
				refused(fmt.Sprintf("%s at %d, where %s belongs", other, at, name), code)
			}
		}
	}

	refused("no code", nil)
	refused("a byte more", append(bytes.Clone(genuine), 0))
	refused("a byte less", genuine[:len(genuine)-1])
	for range 100 {
		code := bytes.Clone(genuine)
		at := rand.IntN(len(code))
		code[at] ^= byte(1 + rand.IntN(255))
		refused(fmt.Sprintf("another byte %d", at), code)
	}
	set(genuine)
	if err := w.escrow.VerifyCode(t.Context()); err != nil {
		t.Fatalf("our own code again: %v", err)
	}
}

func binaryWord(n uint64) []byte {
	return common.LeftPadBytes(hexutil.MustDecode(fmt.Sprintf("%#018x", n|1<<63)), 32)
}

// The contract takes more seconds than a time.Duration holds: 584 years and a day count as a day then, and pass for it.
func TestGraceForEver(t *testing.T) {
	c := chaintest.Anvil(t)
	key := channel.NewKey(c.Keys[0])
	address, err := chain.Deploy(t.Context(), c.Backend, key, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	code, err := c.Backend.CodeAt(t.Context(), address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, seconds := range []uint64{18446744074 + 86400, 1<<40 - 1} {
		for _, at := range bindings.ChannelEscrowImmutables()["gracePeriod"] {
			copy(code[at:], common.LeftPadBytes(hexutil.MustDecode(fmt.Sprintf("%#016x", seconds)), 32))
		}
		c.RPC(t, nil, "anvil_setCode", address, hexutil.Bytes(code))
		if _, err := chain.NewEscrow(t.Context(), c.Backend, address); !errors.Is(err, chain.ErrNotEscrow) {
			t.Errorf("a grace period of %d seconds: %v, want ErrNotEscrow", seconds, err)
		}
	}
}
