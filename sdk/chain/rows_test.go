package chain

import (
	"bytes"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// unpack reads rows by the words of the contract's NatSpec.
func unpack(t *testing.T, rows []byte) []channel.State {
	t.Helper()
	var states []channel.State
	for len(rows) > 0 {
		var s channel.State
		header := rows[0]
		take := func(n int) []byte { part := rows[:n]; rows = rows[n:]; return part }
		take(1)
		s.Terms.Payer = common.BytesToAddress(take(20))
		if header&0x80 != 0 {
			s.Terms.AuthorizedSigner = common.BytesToAddress(take(20))
		}
		if header&0x40 != 0 {
			t.Fatal("bit 6 is set")
		}
		s.Terms.Salt = common.BytesToHash(take(int(header & 0x3f)))
		s.Accepted.SetBytes(take(12))
		s.Signature = take(65)
		states = append(states, s)
	}
	return states
}

func FuzzRows(f *testing.F) {
	f.Add([]byte{1}, []byte{}, []byte{}, []byte{5}, []byte{9})
	f.Add([]byte{1}, []byte{2}, bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 12), []byte{9})
	f.Fuzz(func(t *testing.T, payer, signer, salt, amount, signature []byte) {
		var s channel.State
		s.Terms = channel.Terms{Payer: common.BytesToAddress(payer), AuthorizedSigner: common.BytesToAddress(signer), Salt: common.BytesToHash(salt)}
		s.Accepted = *new(uint256.Int).SetBytes(amount)
		s.Signature = common.RightPadBytes(signature, 65)[:65]
		twice := []channel.State{s, s}
		rows, err := packRows(s.Terms.Payee, s.Terms.Token, twice)
		if (err != nil) != (s.Accepted.BitLen() > 96) {
			t.Fatalf("amount of %d bits: %v", s.Accepted.BitLen(), err)
		}
		if err != nil {
			return
		}
		for _, got := range unpack(t, rows) {
			if got.Terms != s.Terms || got.Accepted != s.Accepted || !bytes.Equal(got.Signature, s.Signature) {
				t.Errorf("packed %+v, unpacked %+v", s, got)
			}
		}
	})
}
