package chain

import (
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/channel"
)

// TestTooLargeIsOfSeveralChannels: what a node stops at the gas that it allows is split only where there is something to split: a call for
// one channel stays the error that it is.
func TestTooLargeIsOfSeveralChannels(t *testing.T) {
	said := errors.New("gas required exceeds allowance (50000)")
	for channels, split := range map[int]bool{0: false, 1: false, 2: true} {
		call := Call{Kind: Settle, Channels: make([]common.Hash, channels)}
		if err := beyondAllowance(call, said); errors.Is(err, ErrTooLarge) != split || !errors.Is(err, said) {
			t.Errorf("%d channels: %v", channels, err)
		}
	}
	if err := beyondAllowance(Call{Channels: make([]common.Hash, 2)}, errors.New("execution reverted")); errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
}

// TestTooDearSaysWhatItTakes: the operator reads which figure is too much, of gas or of wei.
func TestTooDearSaysWhatItTakes(t *testing.T) {
	for says, d := range map[string]*TooDear{
		"takes 900 gas, and may take 800": {Call: Call{Kind: Settle, MaxGas: 800}, Gas: 900},
		"costs 70 wei, and may cost 60":   {Call: Call{Kind: Settle, MaxCost: big.NewInt(60)}, Gas: 900, Cost: big.NewInt(70)},
	} {
		if got := d.Error(); !strings.Contains(got, says) {
			t.Errorf("%q, want %q", got, says)
		}
	}
}

// TestRefundedByIsOfItsChannel: of a receipt that refunds several channels, and has events of other contracts, only this channel's from
// the x402 escrow counts.
func TestRefundedByIsOfItsChannel(t *testing.T) {
	abi, err := batchsettlement.BatchSettlementMetaData.ParseABI()
	if err != nil {
		t.Fatal(err)
	}
	event := abi.Events["Refunded"]
	refunded := func(by common.Address, id common.Hash, amount int64) *types.Log {
		topics, data := []common.Hash{event.ID}, []byte(nil)
		for _, in := range event.Inputs {
			word := map[string]common.Hash{"channelId": id, "sender": {31: 7}, "amount": common.BigToHash(big.NewInt(amount))}[in.Name]
			if in.Indexed {
				topics = append(topics, word)
			} else {
				data = append(data, word[:]...)
			}
		}
		return &types.Log{Address: by, Topics: topics, Data: data}
	}
	one, other := common.Hash{1}, common.Hash{2}
	receipt := &types.Receipt{Logs: []*types.Log{
		refunded(channel.BatchSettlementEscrow, one, 30), refunded(channel.BatchSettlementEscrow, other, 50), refunded(common.Address{9}, one, 70),
	}}
	for id, want := range map[common.Hash]uint64{one: 30, other: 50, {3}: 0} {
		if got := RefundedBy(receipt, id); got.Uint64() != want {
			t.Errorf("channel %s got %s back, want %d", id, got.Dec(), want)
		}
	}
}
