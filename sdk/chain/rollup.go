package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
)

// gasPriceOracle is where chains of the OP stack say what they charge for a transaction's data, beside its gas.
var gasPriceOracle = common.HexToAddress("0x420000000000000000000000000000000000000F")

var oracleABI = func() abi.ABI {
	parsed, err := abi.JSON(strings.NewReader(`[{"type":"function","name":"getL1Fee","stateMutability":"view",
	"inputs":[{"type":"bytes"}],"outputs":[{"type":"uint256"}]}]`))
	if err != nil {
		panic("chain: oracle ABI: " + err.Error())
	}
	return parsed
}()

// envelope is about how many bytes a transaction has beside its calldata: the oracle adds those of a signature itself.
const envelope = 110

// DataFee is about what the chain charges for a transaction with so many bytes of calldata, beside its gas, in wei: 0 where it
// charges nothing.
func (s *Sender) DataFee(ctx context.Context, calldata int) (*big.Int, error) {
	data := make([]byte, calldata)
	for i := range data {
		data[i] = byte(i) | 1
	}
	most, _, err := s.parts().prices.dataFee(ctx, data)
	return most, err
}

// dataFee is what the chain charges for a transaction with this calldata, beside its gas, in wei: 0 where it has no oracle
// that says so. It is an estimate: the charge follows another chain's fees, so a quarter more is reckoned with. Of two
// endpoints it is what either says.
func (p *pricing) dataFee(ctx context.Context, data []byte) (most, least *big.Int, err error) {
	charges, err := p.chargesForData(ctx)
	if err != nil || !charges {
		return new(big.Int), new(big.Int), err
	}
	padded := append(make([]byte, 0, envelope+len(data)), data...)
	for i := range envelope {
		padded = append(padded, byte(i)|1) // zeros would be cheaper than what stands there
	}
	input, err := oracleABI.Pack("getL1Fee", padded)
	if err != nil {
		panic("chain: packing getL1Fee: " + err.Error())
	}
	said, err := two(ctx, p.backend, func(ctx context.Context, b Backend) (*big.Int, error) {
		out, err := b.CallContract(ctx, ethereum.CallMsg{To: &gasPriceOracle, Data: input}, nil)
		var reverted *Revert
		if err = decode(err); errors.As(err, &reverted) {
			return new(big.Int), nil // another contract has that address here
		}
		if err != nil {
			return nil, fmt.Errorf("chain: asking what data costs: %w", err)
		}
		values, err := oracleABI.Unpack("getL1Fee", out)
		if err != nil || len(values) != 1 {
			return new(big.Int), nil
		}
		fee, ok := values[0].(*big.Int)
		if !ok {
			return new(big.Int), nil
		}
		return fee.Add(fee, new(big.Int).Rsh(fee, 2)), nil
	})
	if err != nil {
		return nil, nil, err
	}
	least, most = bounds(said, (*big.Int).Cmp)
	return most, least, nil
}

// chargesForData asks once whether the chain has the oracle, by what either of two endpoints says.
func (p *pricing) chargesForData(ctx context.Context) (bool, error) {
	p.mu.Lock()
	known := p.rollup
	p.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	said, err := two(ctx, p.backend, func(ctx context.Context, b Backend) ([]byte, error) { return b.CodeAt(ctx, gasPriceOracle, nil) })
	if err != nil {
		return false, Unread("whether data is charged for", err)
	}
	found := slices.ContainsFunc(said, func(by statement[[]byte]) bool { return len(by.say) > 0 })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rollup = &found
	return found, nil
}
