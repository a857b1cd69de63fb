package chain

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
)

// OpenedBy finds the channels that a payer opened in the blocks from..to, both included, oldest first. An event whose
// terms do not hash to the channel that it names is none of the contract's and left out.
func (e *Escrow) OpenedBy(ctx context.Context, payer common.Address, from, to uint64) ([]channel.Terms, error) {
	opened := mustParse(bindings.ChannelEscrowMetaData.ParseABI()).Events[bindings.ChannelEscrowOpenedEventName]
	query := ethereum.FilterQuery{Addresses: []common.Address{e.address}, Topics: [][]common.Hash{{opened.ID}, nil, {common.BytesToHash(payer[:])}}}
	var all []channel.Terms
	for ; from <= to; from += logSpan {
		query.FromBlock, query.ToBlock = new(big.Int).SetUint64(from), new(big.Int).SetUint64(min(to, from+logSpan-1))
		logs, err := e.backend.FilterLogs(ctx, query)
		if err != nil {
			return nil, Unread(fmt.Sprintf("who opened channels in blocks %s to %s", query.FromBlock, query.ToBlock), err)
		}
		for i := range logs {
			event, err := e.abi.UnpackOpenedEvent(&logs[i])
			if err != nil || logs[i].Removed {
				continue
			}
			terms := channel.Terms{ChainID: e.chainID, Escrow: e.address, Payer: event.Payer, Payee: event.Payee,
				Token: event.Token, Salt: event.Salt, AuthorizedSigner: event.AuthorizedSigner}
			if event.Payer == payer && terms.ID() == common.Hash(event.ChannelId) {
				all = append(all, terms)
			}
		}
	}
	return all, nil
}
