package chain

import (
	"context"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// Contracts asks contract accounts for their signatures (ERC-1271), by the rule the escrow has.
type Contracts struct {
	Backend Backend
}

var _ channel.ContractVerifier = Contracts{}

// accountGas bounds what a hostile account can make a node compute for one voucher. A voucher that costs more to check
// than this is not worth settling either.
const accountGas = 1_000_000

// magic is what a contract account answers to its own signature.
var magic = [4]byte{0x16, 0x26, 0xba, 0x7e}

var accountABI = parsed(strings.NewReader(`[{"type":"function","name":"isValidSignature","stateMutability":"view",
	"inputs":[{"type":"bytes32"},{"type":"bytes"}],"outputs":[{"type":"bytes4"}]}]`))

// IsValidSignature reports whether the account says that the signature is its own. An account without code says
// nothing, and one that reverts says no; an error means that the endpoint did not answer.
func (c Contracts) IsValidSignature(ctx context.Context, account common.Address, digest common.Hash, signature []byte) (bool, error) {
	code, err := c.Backend.CodeAt(ctx, account, nil)
	if err != nil {
		return false, Unread("the code of "+account.String(), err)
	}
	if len(code) == 0 {
		return false, nil
	}
	data, err := accountABI.Pack("isValidSignature", digest, signature)
	if err != nil {
		panic("chain: packing isValidSignature: " + err.Error())
	}
	out, err := c.Backend.CallContract(ctx, ethereum.CallMsg{To: &account, Data: data, Gas: accountGas, GasPrice: new(big.Int)}, nil)
	if err != nil {
		return false, endpointOnly(err)
	}
	return len(out) == 32 && [4]byte(out[:4]) == magic, nil
}
