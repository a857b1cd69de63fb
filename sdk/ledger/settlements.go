package ledger

import (
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/u256"
)

// settlements adds a line for each channel of each transaction by which more of it was settled, one for what no transaction here
// accounts for, and one for each transaction that settled nothing and cost gas. The sum of a channel's lines is what the chain says was
// settled of it, whatever a transaction asked for: the contract leaves out of a batch what it cannot pay. What others settled of a
// channel between two transactions of ours is in the line of the second.
func (b *Books) settlements(accounts map[common.Hash]*account, txs []sent) error {
	booked := make(map[common.Hash]uint256.Int)
	for _, tx := range txs {
		upTo, err := tx.settles()
		if err != nil {
			return err
		}
		var lines []Entry
		for _, id := range tx.channels {
			of, to := accounts[id], upTo[id]
			if of == nil {
				continue
			}
			if to.Gt(&of.settled) {
				to = of.settled
			}
			before := booked[id]
			if more := u256.SaturatingSub(to, before); !more.IsZero() {
				booked[id] = to
				lines = append(lines, of.settlement(tx.line(Settlement), id, more))
			}
		}
		if lines, err = shared(tx, lines, accounts); err != nil {
			return err
		}
		b.Entries = append(b.Entries, lines...)
	}
	for id, of := range accounts {
		before := booked[id]
		if rest := u256.SaturatingSub(of.settled, before); !rest.IsZero() {
			b.Entries = append(b.Entries, of.settlement(Entry{Kind: Settlement, Time: of.seen.UTC(), Detail: "by others"}, id, rest))
		}
	}
	return nil
}

func (a *account) settlement(e Entry, id common.Hash, amount uint256.Int) Entry {
	e.Channel, e.Counterparty, e.Token, e.Amount = id, a.counterparty, a.terms.Token, amount
	if len(a.leases) == 1 {
		e.Lease = a.leases[0]
	}
	return e
}

// shared divides what a transaction cost among its lines so that their sum is exact; where it settled nothing it has a line of its own.
func shared(tx sent, lines []Entry, accounts map[common.Hash]*account) ([]Entry, error) {
	cost, err := tx.cost()
	if err != nil {
		return nil, err
	}
	if len(lines) == 0 {
		e := tx.line(Gas)
		if tx.Succeeded != 1 {
			e.Detail += ", failed"
		}
		if len(tx.channels) == 1 {
			if of := accounts[tx.channels[0]]; of != nil { // else it is about no channel of these books
				e.Channel, e.Counterparty, e.Token = tx.channels[0], of.counterparty, of.terms.Token
			}
		}
		lines = []Entry{e}
	}
	each, rest := new(big.Int).QuoRem(cost, big.NewInt(int64(len(lines))), new(big.Int))
	for i := range lines {
		lines[i].Gas = each
	}
	lines[0].Gas = rest.Add(rest, each)
	return lines, nil
}
