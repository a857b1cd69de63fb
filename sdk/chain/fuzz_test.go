package chain

import (
	"context"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/bindings"
)

// FuzzSkipped: whatever an endpoint puts into a receipt, reading it ends.
func FuzzSkipped(f *testing.F) {
	at := common.Address{1}
	parsed, err := bindings.ChannelEscrowMetaData.ParseABI()
	if err != nil {
		f.Fatal(err)
	}
	skipped := parsed.Events["SettlementSkipped"].ID
	f.Add(skipped.Bytes(), make([]byte, 64), 1)
	f.Add(skipped.Bytes(), []byte{}, 1)
	f.Add(skipped.Bytes(), make([]byte, 32), 2)
	f.Add(skipped.Bytes(), common.FromHex("0x"+"ff"), 0)
	e := &Escrow{packer: packer{bindings.NewChannelEscrow(), at}}
	f.Fuzz(func(t *testing.T, topic, data []byte, indexed int) {
		log := &types.Log{Address: at, Data: data, Topics: []common.Hash{common.BytesToHash(topic)}}
		for range min(max(indexed, 0), 3) {
			log.Topics = append(log.Topics, common.Hash{7})
		}
		for _, s := range e.Skipped(&types.Receipt{Logs: []*types.Log{log, {Address: at}}}) {
			if log.Topics[0] != skipped || s.Channel != (common.Hash{7}) {
				t.Fatalf("%+v was read from %+v", s, log)
			}
		}
	})
}

// FuzzViews: whatever an endpoint says of a channel, its amounts have 96 bits, as everything that reckons with them relies on.
func FuzzViews(f *testing.F) {
	e := &Escrow{packer: packer{abi: bindings.NewChannelEscrow()}}
	seed := make([]byte, 2*32+6*32)
	seed[31], seed[63] = 32, 1
	for i := range 6 {
		seed[2*32+i*32+31] = 1
	}
	f.Add(seed)
	huge := append([]byte(nil), seed...)
	for i := range 32 {
		huge[2*32+i] = 0xff
	}
	f.Add(huge)
	f.Fuzz(func(t *testing.T, answer []byte) {
		views, err := e.views(t.Context(), []common.Hash{{1}}, func(context.Context, []byte) ([]byte, error) { return answer, nil })
		if err != nil {
			return
		}
		if len(views) != 1 || views[0].Deposit.BitLen() > 96 || views[0].Settled.BitLen() > 96 {
			t.Fatalf("%x was read as %+v", answer, views)
		}
	})
}
