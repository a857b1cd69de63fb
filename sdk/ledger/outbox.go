package ledger

import (
	"bytes"
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/rows"
)

// sent is a transaction of the outbox that was mined, one that reverted included.
type sent struct {
	ID        string
	Chain     uint64
	Kind      chain.Kind
	Recipient string
	Data      string
	Hash      string
	Block     uint64
	Succeeded int
	Cost      string
	CreatedAt int64 `db:"created_at"`

	channels []common.Hash
}

// mined reads all transactions of the outbox that were mined, by block and nonce.
func mined(ctx context.Context, db *store.DB) ([]sent, error) {
	var txs []sent
	if err := db.View().SelectContext(ctx, &txs, `SELECT id, chain, kind, recipient, data, hash, block, succeeded, cost, created_at
		FROM chain_tx WHERE hash <> '' ORDER BY block, nonce, id`); err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	var about []struct{ Tx, Channel string }
	if err := db.View().SelectContext(ctx, &about, `SELECT tx, channel FROM chain_tx_channel ORDER BY tx, channel`); err != nil {
		return nil, fmt.Errorf("reading the outbox: %w", err)
	}
	channels := make(map[string][]common.Hash)
	for _, row := range about {
		channels[row.Tx] = append(channels[row.Tx], common.HexToHash(row.Channel))
	}
	for i := range txs {
		txs[i].channels = channels[txs[i].ID]
	}
	return txs, nil
}

// line is what all lines of a transaction have.
func (tx sent) line(kind Kind) Entry {
	return Entry{Kind: kind, Time: time.UnixMilli(tx.CreatedAt).UTC(), Transaction: common.HexToHash(tx.Hash), Block: tx.Block, Detail: string(tx.Kind)}
}

// cost is in wei.
func (tx sent) cost() (*big.Int, error) {
	cost, ok := new(big.Int).SetString(tx.Cost, 10)
	if !ok {
		return nil, fmt.Errorf("transaction %s in the outbox has no cost that is a number", tx.Hash)
	}
	return cost, nil
}

// settles is up to what each channel is settled where a transaction did all that it asked for: base units, cumulative. The contract may
// have left a channel out, or have settled more of it before.
func (tx sent) settles() (map[common.Hash]uint256.Int, error) {
	upTo := make(map[common.Hash]uint256.Int)
	if tx.Succeeded != 1 {
		return upTo, nil
	}
	data, err := hexutil.Decode(tx.Data)
	if err == nil {
		err = tx.decode(data, upTo)
	}
	if err != nil {
		return nil, fmt.Errorf("transaction %s, a %s in the outbox, cannot be read: %w", tx.Hash, tx.Kind, err)
	}
	return upTo, nil
}

func (tx sent) decode(data []byte, upTo map[common.Hash]uint256.Int) error {
	switch tx.Kind {
	case chain.Settle, chain.Close:
		_, args, err := call(escrowABI, data)
		if err != nil {
			return err
		}
		for _, id := range tx.channels { // one
			upTo[id] = *uint256.MustFromBig(args[1].(*big.Int))
		}
	case chain.SettleBatch:
		_, args, err := call(escrowABI, data)
		if err != nil {
			return err
		}
		states, err := rows.Unpack(args[2].([]byte))
		if err != nil {
			return err
		}
		for _, s := range states {
			s.Terms.ChainID, s.Terms.Escrow = tx.Chain, common.HexToAddress(tx.Recipient)
			s.Terms.Payee, s.Terms.Token = args[0].(common.Address), args[1].(common.Address)
			upTo[s.Terms.ID()] = s.Accepted
		}
	case chain.Claim, chain.Refund: // a refund claims first what is not claimed yet
		return tx.claims(data, upTo)
	}
	return nil
}

// claims reads the claims of a call of x402's contract, alone or in a multicall.
func (tx sent) claims(data []byte, upTo map[common.Hash]uint256.Int) error {
	name, args, err := call(chain.BatchSettlementABI(), data)
	if err != nil {
		return err
	}
	switch name {
	case "claim", "claimWithSignature":
		for _, row := range *abi.ConvertType(args[0], new([]batchsettlement.VoucherClaim)).(*[]batchsettlement.VoucherClaim) {
			c := row.Voucher.Channel
			terms := channel.Terms{
				ChainID: tx.Chain, Escrow: channel.BatchSettlementEscrow, Payer: c.Payer, Payee: c.Receiver, Token: c.Token, Salt: c.Salt,
				AuthorizedSigner: c.PayerAuthorizer, Scheme: channel.BatchSettlement, PayeeAuthorizer: c.ReceiverAuthorizer, WithdrawDelay: c.WithdrawDelay.Uint64(),
			}
			upTo[terms.ID()] = *uint256.MustFromBig(row.TotalClaimed)
		}
	case "multicall":
		for _, part := range args[0].([][]byte) {
			if err := tx.claims(part, upTo); err != nil {
				return err
			}
		}
	}
	return nil
}

var escrowABI = func() *abi.ABI {
	parsed, err := bindings.ChannelEscrowMetaData.ParseABI()
	if err != nil {
		panic("ledger: the escrow's interface does not parse: " + err.Error())
	}
	return parsed
}()

// call reads which method of a contract is called, and with what.
func call(contract *abi.ABI, data []byte) (name string, args []any, err error) {
	for _, method := range contract.Methods {
		if bytes.HasPrefix(data, method.ID) {
			args, err = method.Inputs.Unpack(data[len(method.ID):])
			return method.Name, args, err
		}
	}
	return "", nil, fmt.Errorf("it calls no method that is known")
}
