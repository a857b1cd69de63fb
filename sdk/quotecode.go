package sdk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/sdk/chain"
)

// checkEscrow says whether a renter may put money into an escrow that a
// provider named. A contract of the provider's own could answer every question
// like ours and still pay the whole deposit to the provider: so it is either
// the one that the renter's configuration names, or its code is ours to the
// byte.
func (r *Renter) checkEscrow(ctx context.Context, escrow *chain.Escrow) error {
	if r.config.Escrow != (common.Address{}) {
		if escrow.Address() == r.config.Escrow {
			return nil
		}
		return fmt.Errorf("%w: the provider names %s, this renter trusts %s", ErrEscrow, escrow.Address(), r.config.Escrow)
	}
	if r.config.AllowUnknownEscrow {
		return nil
	}
	code, err := escrow.Backend().CodeAt(ctx, escrow.Address(), nil)
	if err != nil {
		return fmt.Errorf("%w: reading the code of escrow %s: %w", chain.ErrUnreachable, escrow.Address(), err)
	}
	return sameCode(code, escrow)
}

// sameCode compares a contract's code with what our bindings deploy. The code
// may differ only in its immutables, and those must be what the constructor
// would have put there.
func sameCode(code []byte, escrow *chain.Escrow) error {
	want, err := escrowRuntime()
	if err != nil {
		return err
	}
	if len(code) != len(want) {
		return fmt.Errorf("%w: %s has %d bytes of code, ours has %d: name it in the configuration if you trust it",
			ErrEscrow, escrow.Address(), len(code), len(want))
	}
	allowed := immutables(escrow)
	for i := 0; i < len(want); {
		if isSlot(want, i) && allowed[common.BytesToHash(code[i+1:i+33])] && code[i] == push32 {
			i += 33
			continue
		}
		if code[i] != want[i] {
			return fmt.Errorf("%w: %s has other code than ours at byte %d: name it in the configuration if you trust it",
				ErrEscrow, escrow.Address(), i)
		}
		i++
	}
	return nil
}

const push32 = 0x7f

// isSlot reports whether an immutable is put in at i: the compiler leaves a
// PUSH32 of zero.
func isSlot(template []byte, i int) bool {
	return template[i] == push32 && i+33 <= len(template) && bytes.Equal(template[i+1:i+33], make([]byte, 32))
}

// immutables are the words that our constructor puts into the code.
func immutables(escrow *chain.Escrow) map[common.Hash]bool {
	number := func(n uint64) (h common.Hash) {
		binary.BigEndian.PutUint64(h[24:], n)
		return h
	}
	return map[common.Hash]bool{
		number(uint64(escrow.Grace() / time.Second)):        true,
		number(escrow.ChainID()):                            true,
		common.BytesToHash(escrow.Address().Bytes()):        true,
		escrow.Domain().Separator():                         true,
		crypto.Keccak256Hash([]byte("EVM Payment Channel")): true,
		crypto.Keccak256Hash([]byte("1")):                   true,
	}
}

// escrowRuntime is the code that the bindings' creation code leaves on the
// chain, its immutables still zero. It stands at the end of the creation code,
// behind the copy that names its length and offset.
var escrowRuntime = sync.OnceValues(func() ([]byte, error) {
	creation := common.FromHex(bindings.ChannelEscrowMetaData.Bin)
	for offset := 3; offset < min(len(creation), 1<<16); offset++ {
		head := creation[:offset]
		if head[offset-1] == 0xfe && pushes(head, len(creation)-offset) && pushes(head, offset) {
			return creation[offset:], nil
		}
	}
	return nil, errors.New("the bindings' creation code has no runtime in it: generate them again")
})

func pushes(code []byte, n int) bool {
	return bytes.Contains(code, []byte{0x61, byte(n >> 8), byte(n)})
}
