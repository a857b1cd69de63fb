package store

import (
	"database/sql/driver"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// amount is a column of 16 bytes, big-endian: compared as bytes it is compared
// as a number.
type amount uint256.Int

// Value encodes the amount.
func (a amount) Value() (driver.Value, error) {
	n := uint256.Int(a)
	if n.BitLen() > 128 {
		return nil, fmt.Errorf("store: %w: %s is over 128 bits", channel.ErrAmount, n.Dec())
	}
	word := n.Bytes32()
	return word[16:], nil
}

// appendAmount encodes an amount at the end of a buffer that has room for it.
func appendAmount(buffer *[]byte, a uint256.Int) []byte {
	word := a.Bytes32()
	from := len(*buffer)
	*buffer = append(*buffer, word[16:]...)
	return (*buffer)[from:]
}

// Scan decodes the amount.
func (a *amount) Scan(src any) error {
	b, ok := src.([]byte)
	if !ok {
		return fmt.Errorf("store: an amount is %T, want bytes: the file is damaged", src)
	}
	return a.ScanBytes(b)
}

// ScanBytes decodes the amount: pgx asks for this, without a copy of the bytes.
func (a *amount) ScanBytes(b []byte) error {
	if len(b) != 16 {
		return fmt.Errorf("store: an amount has %d bytes, want 16: the file is damaged", len(b))
	}
	(*uint256.Int)(a).SetBytes(b)
	return nil
}

// termsColumns and termsValues are the columns of channel.Terms.
const (
	termsColumns = "chain_id, escrow, payer, payee, token, salt, authorized_signer, scheme, payee_authorizer, withdraw_delay"
	termsValues  = ":chain_id, :escrow, :payer, :payee, :token, :salt, :authorized_signer, :scheme, :payee_authorizer, :withdraw_delay"
)

// terms are the columns of channel.Terms.
type terms struct {
	ChainID          int64          `db:"chain_id"`
	Escrow           common.Address `db:"escrow"`
	Payer            common.Address `db:"payer"`
	Payee            common.Address `db:"payee"`
	Token            common.Address `db:"token"`
	Salt             common.Hash    `db:"salt"`
	AuthorizedSigner common.Address `db:"authorized_signer"`
	Scheme           uint8          `db:"scheme"`
	PayeeAuthorizer  common.Address `db:"payee_authorizer"`
	WithdrawDelay    int64          `db:"withdraw_delay"`
}

func termsOf(t channel.Terms) terms {
	return terms{int64(t.ChainID), t.Escrow, t.Payer, t.Payee, t.Token, t.Salt, t.AuthorizedSigner,
		uint8(t.Scheme), t.PayeeAuthorizer, int64(t.WithdrawDelay)}
}

func (t terms) terms() channel.Terms {
	return channel.Terms{ChainID: uint64(t.ChainID), Escrow: t.Escrow, Payer: t.Payer, Payee: t.Payee,
		Token: t.Token, Salt: t.Salt, AuthorizedSigner: t.AuthorizedSigner,
		Scheme: channel.Scheme(t.Scheme), PayeeAuthorizer: t.PayeeAuthorizer, WithdrawDelay: uint64(t.WithdrawDelay)}
}
