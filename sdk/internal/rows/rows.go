// Package rows lays out the rows of a settlement of many channels, as the escrow reads them.
package rows

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

// A row has r and s of its signature as they are, and v in the highest bit of s, which is free in the lower half of the
// order, as EIP-2098 says.
const sOffset, vOffset = 32, 64

// maxAmountBits is what a row's amount has room for.
const maxAmountBits = 96

// A shape is what rows of one group have in common, other than the length of their amounts.
type shape struct {
	salt  int  // bytes, without leading zeros
	named bool // the terms name a signer
}

const shapeNamed = 0x80

func shapeOf(t channel.Terms) shape {
	return shape{len(bytes.TrimLeft(t.Salt[:], "\x00")), t.AuthorizedSigner != (common.Address{})}
}

// Pack lays out the rows of a batch, those of one shape together. What the contract would refuse as malformed is
// refused here: it would take the whole batch with it.
func Pack(payee, token common.Address, states []channel.State) ([]byte, error) {
	var shapes []shape
	groups := make(map[shape][]channel.State)
	for _, s := range states {
		if s.Terms.Payee != payee || s.Terms.Token != token {
			return nil, fmt.Errorf("chain: channel %s pays %s in %s and does not belong in a batch for %s in %s",
				s.ID, s.Terms.Payee, s.Terms.Token, payee, token)
		}
		if err := eip712.Check(s.Signature); err != nil {
			return nil, fmt.Errorf("chain: channel %s: its signature does not fit a batch; settle it alone: %w", s.ID, err)
		}
		if s.Accepted.BitLen() > maxAmountBits {
			return nil, fmt.Errorf("chain: channel %s: %s is beyond %d bits", s.ID, s.Accepted.Dec(), maxAmountBits)
		}
		key := shapeOf(s.Terms)
		if groups[key] == nil {
			shapes = append(shapes, key)
		}
		groups[key] = append(groups[key], s)
	}
	var rows []byte
	for _, key := range shapes {
		for group := range slices.Chunk(groups[key], math.MaxUint16) {
			rows = packGroup(rows, key, group)
		}
	}
	return rows, nil
}

// packGroup appends a group: its shape, the length of its amounts, how many rows it has, and the rows.
func packGroup(rows []byte, key shape, states []channel.State) []byte {
	amount := 0
	for _, s := range states {
		amount = max(amount, s.Accepted.ByteLen())
	}
	header := byte(key.salt)
	if key.named {
		header |= shapeNamed
	}
	rows = append(rows, header, byte(amount))
	rows = binary.BigEndian.AppendUint16(rows, uint16(len(states)))
	for _, s := range states {
		rows = packRow(rows, key, amount, s)
	}
	return rows
}

// packRow appends a row: compact signature, payer, the low bytes of amount and salt, the signer as a word if it is named.
func packRow(rows []byte, key shape, amount int, s channel.State) []byte {
	compact := append(rows, s.Signature[:vOffset]...)
	compact[len(rows)+sOffset] |= (s.Signature[vOffset] - 27) << 7
	rows = append(compact, s.Terms.Payer[:]...)
	word := s.Accepted.Bytes32()
	rows = append(rows, word[len(word)-amount:]...)
	rows = append(rows, s.Terms.Salt[len(s.Terms.Salt)-key.salt:]...)
	if key.named {
		rows = append(rows, common.LeftPadBytes(s.Terms.AuthorizedSigner[:], 32)...)
	}
	return rows
}
