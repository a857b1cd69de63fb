package chain

import (
	"bytes"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// The header byte of a row of a batch: the length of the salt, and whether the row names its signer.
const rowHasSigner = 0x80

const signatureLength = 65

// amountOffset is where the low 96 bits of a 32-byte word begin.
const amountOffset = 20

// packRows lays out the rows of a batch: header, payer, signer if the terms name one, salt without its leading zero
// bytes, amount in 12 bytes, signature. What the contract would refuse as malformed is refused here: it would take the
// whole batch with it.
func packRows(payee, token common.Address, states []channel.State) ([]byte, error) {
	var rows []byte
	for _, s := range states {
		if s.Terms.Payee != payee || s.Terms.Token != token {
			return nil, fmt.Errorf("chain: channel %s pays %s in %s and does not belong in a batch for %s in %s",
				s.ID, s.Terms.Payee, s.Terms.Token, payee, token)
		}
		if len(s.Signature) != signatureLength {
			return nil, fmt.Errorf("chain: channel %s: a signature of %d bytes does not fit a batch; settle it alone", s.ID, len(s.Signature))
		}
		if s.Accepted.BitLen() > 96 {
			return nil, fmt.Errorf("chain: channel %s: %s is beyond 96 bits", s.ID, s.Accepted.Dec())
		}
		rows = packRow(rows, s)
	}
	return rows, nil
}

func packRow(rows []byte, s channel.State) []byte {
	salt := bytes.TrimLeft(s.Terms.Salt[:], "\x00")
	header := byte(len(salt))
	named := s.Terms.AuthorizedSigner != (common.Address{})
	if named {
		header |= rowHasSigner
	}
	rows = append(rows, header)
	rows = append(rows, s.Terms.Payer[:]...)
	if named {
		rows = append(rows, s.Terms.AuthorizedSigner[:]...)
	}
	rows = append(rows, salt...)
	word := s.Accepted.Bytes32()
	rows = append(rows, word[amountOffset:]...)
	return append(rows, s.Signature...)
}
