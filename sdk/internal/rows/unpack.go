package rows

import (
	"encoding/binary"
	"errors"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// ErrMalformed says that bytes are not the rows of a settlement.
var ErrMalformed = errors.New("malformed rows of a settlement")

// Unpack reads what Pack laid out: of each row the payer, the salt and the signer of its terms, and the amount, in base units,
// cumulative. The signatures are left out.
func Unpack(rows []byte) (states []channel.State, err error) {
	take := func(n int) []byte {
		if n > len(rows) {
			err, rows = ErrMalformed, nil
			return make([]byte, n)
		}
		part := rows[:n:n]
		rows = rows[n:]
		return part
	}
	for len(rows) > 0 {
		head := take(4)
		salt, amount := int(head[0]&^shapeNamed), int(head[1])
		if salt > common.HashLength || amount > maxAmountBits/8 {
			return nil, ErrMalformed
		}
		for n := binary.BigEndian.Uint16(head[2:]); n > 0 && err == nil; n-- {
			var s channel.State
			take(vOffset)
			s.Terms.Payer = common.BytesToAddress(take(common.AddressLength))
			s.Accepted.SetBytes(take(amount))
			s.Terms.Salt = common.BytesToHash(take(salt))
			if head[0]&shapeNamed != 0 {
				s.Terms.AuthorizedSigner = common.BytesToAddress(take(common.HashLength))
			}
			states = append(states, s)
		}
	}
	if err != nil {
		return nil, err
	}
	return states, nil
}
