package chain

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bindings"
)

// VerifyCode compares the code at the escrow's address with what our constructor leaves there, to the byte. A contract
// of a stranger's could answer every question like ours and still keep the deposit. Each immutable is held to the word
// that belongs in its own place: with another's word there, the same code does something else. Of several endpoints two must
// have it (Agreed). The error wraps ErrUnreachable or ErrNotEscrow. What stands in its storage no code tells: see
// VerifyOrigin.
func (e *Escrow) VerifyCode(ctx context.Context) error {
	want, err := e.runtime()
	if err != nil {
		return err
	}
	code, err := Agreed(e.backend).CodeAt(ctx, e.address, nil)
	if err != nil {
		return Unread("the code of escrow "+e.address.String(), err)
	}
	if len(code) != len(want) {
		return fmt.Errorf("%w: %s has %d bytes of code, ours has %d", ErrNotEscrow, e.address, len(code), len(want))
	}
	if bytes.Equal(code, want) {
		return nil
	}
	at := 0
	for code[at] == want[at] {
		at++
	}
	return fmt.Errorf("%w: %s has other code than ours at byte %d", ErrNotEscrow, e.address, at)
}

// VerifyOrigin is VerifyCode of an escrow that the factory deployed under the zero salt, as Deploy does: its storage was empty
// when our constructor began. Of any other with our code somebody's word must be taken that nothing was in it. The error
// wraps ErrUnreachable or ErrNotEscrow.
func (e *Escrow) VerifyOrigin(ctx context.Context) error {
	if err := e.VerifyCode(ctx); err != nil {
		return err
	}
	if want := DeployedAt(e.grace, common.Hash{}); e.address != want {
		return fmt.Errorf("%w: %s has our code, but not the address %s at which factory %s deploys an escrow with %s of grace: whoever put it there may have written himself a credit first",
			ErrNotEscrow, e.address, want, Factory, e.grace)
	}
	return nil
}

// runtime is the code of an escrow of ours at this address, on this chain, with this grace period.
func (e *Escrow) runtime() ([]byte, error) {
	code := common.FromHex(bindings.ChannelEscrowRuntime)
	words := e.immutables()
	places := bindings.ChannelEscrowImmutables()
	if len(places) != len(words) {
		return nil, fmt.Errorf("chain: the bindings name %d immutables of the escrow, %d are known", len(places), len(words))
	}
	for name, offsets := range places {
		word, known := words[name]
		if !known {
			return nil, fmt.Errorf("chain: the escrow has an immutable %s, of which nothing is known", name)
		}
		for _, at := range offsets {
			copy(code[at:at+common.HashLength], word[:])
		}
	}
	return code, nil
}

// immutables are the words that the escrow's constructor puts into the code, by the names in the contract's source.
func (e *Escrow) immutables() map[string]common.Hash {
	return map[string]common.Hash{
		"gracePeriod":            wordOf(uint64(e.grace / time.Second)),
		"_cachedThis":            common.BytesToHash(e.address[:]),
		"_cachedChainId":         wordOf(e.chainID),
		"_cachedNameHash":        crypto.Keccak256Hash([]byte(domainName)),
		"_cachedVersionHash":     crypto.Keccak256Hash([]byte(domainVersion)),
		"_cachedDomainSeparator": e.domain.Separator(),
	}
}

func wordOf(n uint64) (word common.Hash) {
	binary.BigEndian.PutUint64(word[common.HashLength-8:], n)
	return word
}
