package chain

import (
	"context"
	"fmt"
	"math/big"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/bindings"
)

// SkipReason says why the contract did not pay a row of a batch. The numbers are the contract's.
type SkipReason uint8

// The reasons, in the order in which the contract checks.
const (
	Unknown SkipReason = iota
	Finalized
	Stale
	ExceedsDeposit
	BadSignature
)

var skipReasons = [...]string{"unknown", "finalized", "stale", "exceeds deposit", "bad signature"}

func (r SkipReason) String() string {
	if int(r) < len(skipReasons) {
		return skipReasons[r]
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Skipped is a row of a batch that was not paid. Rows are numbered as they were packed, those of one shape together.
type Skipped struct {
	Channel common.Hash
	Row     uint64
	Reason  SkipReason
}

// Skipped reads from a receipt which rows of a batch were not paid.
func (e *Escrow) Skipped(receipt *types.Receipt) []Skipped {
	var skipped []Skipped
	for _, log := range receipt.Logs {
		if log.Address != e.address || len(log.Topics) == 0 {
			continue
		}
		event, err := e.abi.UnpackSettlementSkippedEvent(log)
		if err != nil || event.Row == nil || !event.Row.IsUint64() {
			continue // another event, or none that the contract wrote: an endpoint can say anything
		}
		skipped = append(skipped, Skipped{Channel: event.ChannelId, Row: event.Row.Uint64(), Reason: SkipReason(event.Reason)})
	}
	return skipped
}

// logSpan is how many blocks one request for events covers; endpoints commonly refuse more than a few thousand.
const logSpan = 1000

// channelEvents are the escrow's events that are about a channel, which they name first. Those about credit name an account.
var channelEvents = func() []common.Hash {
	var topics []common.Hash
	for _, event := range mustParse(bindings.ChannelEscrowMetaData.ParseABI()).Events {
		if len(event.Inputs) > 0 && event.Inputs[0].Name == "channelId" {
			topics = append(topics, event.ID)
		}
	}
	return topics
}()

// Touched lists the channels that the contract says anything about in the blocks from..to, both included. What it says is
// read from its state, so that an event believed twice or in the wrong order does no harm.
func (e *Escrow) Touched(ctx context.Context, from, to uint64) (map[common.Hash]bool, error) {
	query := ethereum.FilterQuery{Addresses: []common.Address{e.address}, Topics: [][]common.Hash{channelEvents}}
	return touched(ctx, e.backend, query, from, to)
}

// touched lists the channels of the events that a query finds in the blocks from..to; they have the channel first.
func touched(ctx context.Context, backend Backend, query ethereum.FilterQuery, from, to uint64) (map[common.Hash]bool, error) {
	channels := make(map[common.Hash]bool)
	for ; from <= to; from += logSpan {
		query.FromBlock = new(big.Int).SetUint64(from)
		query.ToBlock = new(big.Int).SetUint64(min(to, from+logSpan-1))
		logs, err := backend.FilterLogs(ctx, query)
		if err != nil {
			return nil, fmt.Errorf("chain: reading events of blocks %d to %d: %w", from, to, err)
		}
		for _, log := range logs {
			if len(log.Topics) > 1 {
				channels[log.Topics[1]] = true
			}
		}
	}
	return channels, nil
}
