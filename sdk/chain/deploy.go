package chain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
)

// Factory is the deterministic deployment proxy (EIP-7997) that most chains have: what it deploys has the same address on
// each of them.
var Factory = common.HexToAddress("0x4e59b44847b379578588920cA78FbF26c0B4956C")

// Deploy puts an escrow with this grace period on the chain and returns its address. Where the factory exists, the
// address depends on nothing but the code and the grace period, and an escrow that is there already is used. The key pays
// the gas and has no say in the contract.
func Deploy(ctx context.Context, backend Backend, key channel.Signer, grace time.Duration) (common.Address, error) {
	return DeploySalted(ctx, backend, key, grace, common.Hash{})
}

// DeploySalted is Deploy of another instance, one for each salt: an issuer that blocks one instance's address, or a
// deployment that wants its deposits apart from everybody else's, is no reason to change the code. Zero is Deploy's. Where
// there is no factory, every deployment is an instance of its own whatever the salt.
func DeploySalted(ctx context.Context, backend Backend, key channel.Signer, grace time.Duration, salt common.Hash) (common.Address, error) {
	if grace < MinGrace || grace%time.Second != 0 {
		return common.Address{}, fmt.Errorf("%w: %s; the contract wants whole seconds, %s or more", ErrGrace, grace, MinGrace)
	}
	code := initCode(grace)
	proxy, err := backend.CodeAt(ctx, Factory, nil)
	if err != nil {
		return common.Address{}, Unread("the code of the factory of contracts", err)
	}
	if len(proxy) == 0 {
		return create(ctx, backend, key, code)
	}
	return create2(ctx, backend, key, salt, code)
}

// DeployedAt is the address at which the factory puts an escrow with this grace period and salt, on any chain. Only our own
// constructor can have run there, whoever called the factory: code that is ours to the byte may stand elsewhere on storage that
// another constructor wrote, and a credit or a channel in it takes what others deposit.
func DeployedAt(grace time.Duration, salt common.Hash) common.Address {
	return crypto.CreateAddress2(Factory, salt, crypto.Keccak256(initCode(grace)))
}

// initCode is what makes an escrow: our constructor, and its argument.
func initCode(grace time.Duration) []byte {
	seconds := big.NewInt(int64(grace / time.Second))
	return append(common.FromHex(bindings.ChannelEscrowMetaData.Bin), bindings.NewChannelEscrow().PackConstructor(seconds)...)
}

func create2(ctx context.Context, backend Backend, key channel.Signer, salt common.Hash, code []byte) (common.Address, error) {
	address := crypto.CreateAddress2(Factory, salt, crypto.Keccak256(code))
	if found, err := backend.CodeAt(ctx, address, nil); err != nil || len(found) > 0 {
		return address, err
	}
	data := bytes.Join([][]byte{salt[:], code}, nil)
	if _, err := transact(ctx, backend, key, &Factory, data); err != nil {
		return common.Address{}, fmt.Errorf("chain: deploying the escrow: %w", err)
	}
	found, err := backend.CodeAt(ctx, address, nil)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%w: the factory deployed nothing at %s", ErrNoContract, address)
	}
	return address, err
}

func create(ctx context.Context, backend Backend, key channel.Signer, code []byte) (common.Address, error) {
	receipt, err := transact(ctx, backend, key, nil, code)
	if err != nil {
		return common.Address{}, fmt.Errorf("chain: deploying the escrow: %w", err)
	}
	return receipt.ContractAddress, nil
}

// transact sends one transaction without the outbox, and waits for it: for deployments, which a person watches and can
// repeat.
func transact(ctx context.Context, backend Backend, key channel.Signer, to *common.Address, data []byte) (*types.Receipt, error) {
	s := (&Sender{Backend: backend, Key: key}).parts()
	id, err := s.chainID(ctx)
	if err != nil {
		return nil, err
	}
	gas, err := backend.EstimateGas(ctx, ethereum.CallMsg{From: key.Address(), To: to, Data: data})
	if err != nil {
		return nil, decode(err)
	}
	f, err := s.prices.fees(ctx)
	if err != nil {
		return nil, err
	}
	gas += gas / 10
	if _, err := s.prices.payable(ctx, Call{Kind: "deployment"}, gas, f); err != nil {
		return nil, err
	}
	nonce, err := backend.PendingNonceAt(ctx, key.Address())
	if err != nil {
		return nil, err
	}
	signed, err := s.signing.seal(ctx, &types.DynamicFeeTx{
		ChainID: new(big.Int).SetUint64(id), Nonce: nonce, GasTipCap: f.tip, GasFeeCap: f.cap, Gas: gas, To: to, Value: new(big.Int), Data: data,
	})
	if err != nil {
		return nil, err
	}
	if err := backend.SendTransaction(ctx, signed); err != nil {
		return nil, err
	}
	return mined(ctx, backend, signed.Hash())
}

func mined(ctx context.Context, backend Backend, hash common.Hash) (*types.Receipt, error) {
	for {
		receipt, err := Receipt(ctx, backend, hash)
		switch {
		case err == nil && receipt.Status == types.ReceiptStatusSuccessful:
			return receipt, nil
		case err == nil:
			return nil, fmt.Errorf("transaction %s reverted", hash)
		case !errors.Is(err, ethereum.NotFound) && !errors.Is(err, ErrIndexing):
			return nil, err
		}
		if err := Pause(ctx, 100*time.Millisecond); err != nil {
			return nil, fmt.Errorf("waiting for %s: %w", hash, err)
		}
	}
}
