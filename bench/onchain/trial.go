package onchain

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/sdk/chain"
)

// A Trial is what an option costs, in gas, beside the contract as it is and what a Settler sends it.
type Trial struct {
	Name, Verdict string
	More          int64 // for an open, or for each channel of a batch
}

// trials measures every option, with batches of n channels: the contract as it is first, then each patched one.
func (r *rig) trials(ctx context.Context, n int) (opens, batches []Trial) {
	root, err := chaintest.Root()
	if err != nil {
		r.t.Fatal(err)
	}
	sets := [][]patch{nil}
	all := slices.Concat(openings, rows)
	for _, o := range all {
		if o.patches != nil {
			sets = append(sets, o.patches)
		}
	}
	codes, err := compile(ctx, root, sets)
	if err != nil {
		r.t.Fatal(err)
	}
	asItIs, next := codes[0], 1
	code := func(o option) hexutil.Bytes {
		if o.patches == nil {
			return asItIs
		}
		next++
		return codes[next-1]
	}
	open, row := r.openOf(option{}, asItIs), r.rowOf(option{}, asItIs, n)
	for _, o := range openings {
		opens = append(opens, Trial{o.name, o.verdict, r.openOf(o, code(o)) - open})
	}
	for _, o := range rows {
		batches = append(batches, Trial{o.name, o.verdict, (r.rowOf(o, code(o), n) - row) / int64(n)})
	}
	return opens, batches
}

// on is the rig with an escrow of that code, and with the same people each time, so that nothing else differs.
func (r *rig) on(code hexutil.Bytes) *rig {
	c, other := *r.Chain, *r
	opts := bind.NewKeyedTransactor(r.Keys[9], new(big.Int).SetUint64(r.escrow.ChainID()))
	opts.Context = r.t.ctx
	grace := big.NewInt(int64(chaintest.Grace.Seconds()))
	address, tx, err := bind.DeployContract(opts, code, r.Backend, r.abi.PackConstructor(grace))
	if err == nil {
		_, err = bind.WaitDeployed(r.t.ctx, r.Backend, tx.Hash())
	}
	if err != nil {
		r.t.Fatal(err)
	}
	c.Escrow, other.Chain, other.people = address, &c, 1<<20
	if other.escrow, err = chain.NewEscrow(r.t.ctx, r.Backend, address); err != nil {
		r.t.Fatal(err)
	}
	return &other
}

// openOf is what an open takes with an option.
func (r *rig) openOf(o option, code hexutil.Bytes) int64 {
	r = r.on(code)
	r.opens(limited, nil) // stays, so that the escrow's balance is not zero
	if o.listed {
		return int64(r.opens(limited, r.touched))
	}
	return int64(r.opens(limited, nil))
}

// touched is the access list that the node makes for a call, without what is called: that is warm, and would be paid for.
func (r *rig) touched(call chain.Call, key *ecdsa.PrivateKey) types.AccessList {
	var made struct{ AccessList types.AccessList }
	r.RPC(r.t, &made, "eth_createAccessList", map[string]any{
		"from": crypto.PubkeyToAddress(key.PublicKey), "to": call.To, "data": hexutil.Bytes(call.Data),
	})
	if len(made.AccessList) == 0 {
		r.t.Fatal("the node made an empty access list")
	}
	return slices.DeleteFunc(made.AccessList, func(t types.AccessTuple) bool { return t.Address == call.To })
}

// rowOf is what a batch takes with an option.
func (r *rig) rowOf(o option, code hexutil.Bytes, n int) int64 {
	r = r.on(code)
	if o.row != nil || o.alone {
		r.pack = func(states []channel.State) []byte { return r.reshaped(o, states) }
	}
	all := r.opened(n, o.terms)
	if !o.listed {
		return int64(r.batch(all, nil))
	}
	list := types.AccessList{{Address: r.Escrow}}
	for _, a := range all {
		list[0].StorageKeys = append(list[0].StorageKeys, a.state.ID)
	}
	return int64(r.batch(all, list))
}

// reshaped is the rows of channels of one shape, as an option has them.
func (r *rig) reshaped(o option, states []channel.State) (packed []byte) {
	for i, s := range states {
		group := r.group(s)
		header, row := group[:headerLength], group[headerLength:]
		if o.amount != 0 {
			header[1] = o.amount
		}
		if !o.alone {
			binary.BigEndian.PutUint16(header[2:], uint16(len(states)))
		}
		if o.row != nil {
			row = o.row(row, s)
		}
		if i == 0 || o.alone {
			packed = append(packed, header...)
		}
		packed = append(packed, row...)
	}
	return packed
}

const headerLength = 4

// group is a batch of one row as sdk/chain packs it: the last argument of its call.
func (r *rig) group(s channel.State) []byte {
	const head = 4 + 3*common.HashLength // selector, payee, token, where the bytes are
	data := r.settlement([]channel.State{s}).Data
	length := new(big.Int).SetBytes(data[head : head+common.HashLength]).Uint64()
	return bytes.Clone(data[head+common.HashLength:][:length])
}
