package gateway

import (
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/core/vm/runtime"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wire"
)

// escrow is where the contract with the channels is from the first block on.
var escrow = common.HexToAddress("0xe5c0000000000000000000000000000000000001")

// deposit of each channel, base units: 100 dollars.
const deposit = 100_000_000

// World is a chain with open channels of one payer, told apart by their salts.
type World struct {
	Chain  *devchain.Chain
	Domain channel.Domain
	Payee  *channel.Key
	key    *ecdsa.PrivateKey // the payee's
	Payer  *channel.Key
	Terms  []channel.Terms
	IDs    []common.Hash
}

// NewWorld starts a chain on which n channels are open.
func NewWorld(ctx context.Context, n int) (*World, error) {
	secret := crypto.Keccak256Hash([]byte("gpupay bench leases payer"))
	payer, err := crypto.ToECDSA(secret[:])
	if err != nil {
		return nil, err
	}
	code, err := escrowCode()
	if err != nil {
		return nil, err
	}
	w := &World{Domain: channel.EscrowDomain(devchain.ChainID, escrow), Payer: channel.NewKey(payer)}
	// The token's address and the payee's key are the same on every such chain.
	empty, err := devchain.Start(ctx, devchain.Options{Manual: true})
	if err != nil {
		return nil, err
	}
	token := empty.Token
	w.key = empty.Keys[0]
	w.Payee = channel.NewKey(w.key)
	if err := empty.Close(); err != nil {
		return nil, err
	}
	account := types.Account{Code: code, Balance: new(big.Int), Storage: w.open(n, token)}
	w.Chain, err = devchain.Start(ctx, devchain.Options{Genesis: types.GenesisAlloc{escrow: account}})
	if err == nil && w.Chain.Token != token {
		err = errors.Join(fmt.Errorf("the token is at %s, before it was at %s", w.Chain.Token, token), w.Chain.Close())
	}
	return w, err
}

// open lays the channels out as the contract stores them: a word each, at the channel's id.
func (w *World) open(n int, token common.Address) map[common.Hash]common.Hash {
	word := new(uint256.Int).Lsh(uint256.NewInt(1), 248)
	word.Or(word, new(uint256.Int).Lsh(uint256.NewInt(deposit), 96))
	storage := make(map[common.Hash]common.Hash, n)
	for i := range n {
		t := channel.Terms{ChainID: devchain.ChainID, Escrow: escrow, Payer: w.Payer.Address(), Payee: w.Payee.Address(), Token: token}
		binary.BigEndian.PutUint32(t.Salt[:], uint32(i+1))
		id := t.ID()
		w.Terms, w.IDs = append(w.Terms, t), append(w.IDs, id)
		storage[id] = common.Hash(word.Bytes32())
	}
	return storage
}

// escrowCode is what the contract's constructor leaves on a chain.
func escrowCode() ([]byte, error) {
	seconds := big.NewInt(int64(chain.MinGrace / time.Second))
	input := append(common.FromHex(bindings.ChannelEscrowMetaData.Bin), bindings.NewChannelEscrow().PackConstructor(seconds)...)
	rules := *params.AllDevChainProtocolChanges
	rules.ChainID = big.NewInt(devchain.ChainID)
	code, _, _, err := runtime.Create(input, &runtime.Config{ChainConfig: &rules, GasLimit: 30_000_000, BaseFee: new(big.Int), Random: new(common.Hash)})
	if err != nil {
		return nil, fmt.Errorf("running the escrow's constructor: %w", err)
	}
	return code, nil
}

// Close ends the chain.
func (w *World) Close() error { return w.Chain.Close() }

// Start fills a database as a gateway leaves it that let its leases and was ended, and starts one on it, which takes them up.
func (w *World) Start(ctx context.Context, o Options) (*Process, error) {
	if err := w.fill(ctx, o); err != nil {
		return nil, err
	}
	return launch(ctx, hex.EncodeToString(crypto.FromECDSA(w.key)), o)
}

// Credential is the Authorization header that pays amount for the n-th lease and, where attach is set, shows that it is
// its renter who asks.
func (w *World) Credential(ctx context.Context, challenge wire.Challenge, n int, amount uint64, attach bool) (string, error) {
	v, err := w.Domain.Sign(ctx, w.Payer, w.IDs[n], *uint256.NewInt(amount))
	if err != nil {
		return "", err
	}
	sum := wire.NewAmount(v.Cumulative)
	payload := wire.Payload{Action: wire.ActionVoucher, ChannelID: v.ChannelID, CumulativeAmount: &sum, Signature: v.Signature}
	if attach {
		payload.LeaseSecret = secret(n)
	}
	return wire.Credential{Challenge: challenge, Payload: payload}.Header()
}
