package rows

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/eip712"
)

// unpack reads rows by the words of the contract's NatSpec.
func unpack(t *testing.T, rows []byte) []channel.State {
	t.Helper()
	var states []channel.State
	take := func(n int) []byte { part := rows[:n:n]; rows = rows[n:]; return part }
	for len(rows) > 0 {
		first, amount := take(1)[0], int(take(1)[0])
		salt, named := int(first&0x7f), first&0x80 != 0
		if salt > 32 || amount > 12 {
			t.Fatalf("a salt of %d bytes, an amount of %d", salt, amount)
		}
		for range binary.BigEndian.Uint16(take(2)) {
			var s channel.State
			s.Signature = append(take(64), 27)
			if s.Signature[32]&0x80 != 0 {
				s.Signature[32], s.Signature[64] = s.Signature[32]&0x7f, 28
			}
			s.Terms.Payer = common.BytesToAddress(take(20))
			s.Accepted.SetBytes(take(amount))
			s.Terms.Salt = common.BytesToHash(take(salt))
			if named {
				signer := new(uint256.Int).SetBytes(take(32))
				if signer.BitLen() > 160 {
					t.Fatalf("a signer of %d bits", signer.BitLen())
				}
				s.Terms.AuthorizedSigner = signer.Bytes20()
			}
			states = append(states, s)
		}
	}
	return states
}

func FuzzRows(f *testing.F) {
	f.Add([]byte{1}, []byte{}, []byte{}, []byte{5}, []byte{9}, []byte{9}, byte(27))
	f.Add([]byte{1}, []byte{2}, bytes.Repeat([]byte{0xff}, 32), bytes.Repeat([]byte{0xff}, 12), []byte{9}, []byte{0x7f}, byte(28))
	f.Add([]byte{1}, []byte{2}, []byte{1}, []byte{5}, []byte{9}, bytes.Repeat([]byte{0xff}, 32), byte(28))
	f.Add([]byte{1}, []byte{2}, []byte{1}, []byte{5}, []byte{9}, []byte{9}, byte(1))
	f.Fuzz(func(t *testing.T, payer, signer, salt, amount, r, s []byte, v byte) {
		var a, b channel.State
		a.Terms = channel.Terms{Payer: common.BytesToAddress(payer), AuthorizedSigner: common.BytesToAddress(signer), Salt: common.BytesToHash(salt)}
		a.Accepted = *new(uint256.Int).SetBytes(amount)
		a.Signature = append(append(common.LeftPadBytes(r, 32)[:32:32], common.LeftPadBytes(s, 32)[:32]...), v)
		b = a
		b.Accepted.SetOne()
		signature := bytes.Clone(a.Signature)
		rows, err := Pack(a.Terms.Payee, a.Terms.Token, []channel.State{a, b, a})
		if bad := eip712.Check(signature) != nil || a.Accepted.BitLen() > 96; (err != nil) != bad {
			t.Fatalf("amount of %d bits, signature %x: %v", a.Accepted.BitLen(), signature, err)
		}
		if err != nil {
			return
		}
		got := unpack(t, rows)
		read, err := Unpack(rows)
		if err != nil || len(read) != len(got) {
			t.Fatalf("%d rows, %v", len(read), err)
		}
		for i := range read {
			if read[i].Terms != got[i].Terms || read[i].Accepted != got[i].Accepted {
				t.Errorf("Unpack: %+v, want %+v", read[i], got[i])
			}
		}
		if cut, err := Unpack(rows[:len(rows)-1]); !errors.Is(err, ErrMalformed) {
			t.Errorf("of rows that are cut: %+v, %v", cut, err)
		}
		for i, want := range []channel.State{a, b, a} {
			if got[i].Terms != want.Terms || got[i].Accepted != want.Accepted || !bytes.Equal(got[i].Signature, signature) {
				t.Errorf("packed %+v, unpacked %+v", want, got[i])
			}
		}
	})
}

// Rows of one shape are together, in their order, and the longest amount of a group is the length of all.
func TestRowsOfManyShapes(t *testing.T) {
	signature := append(bytes.Repeat([]byte{1}, 64), 28)
	var states []channel.State
	for i := range 12 {
		s := channel.State{Accepted: *uint256.NewInt(1 << (5 * i)), Signature: signature}
		s.Terms.Payer[0] = byte(i)
		s.Terms.Salt[31-i%3] = 1
		if i%2 == 1 {
			s.Terms.AuthorizedSigner[0] = byte(i)
		}
		states = append(states, s)
	}
	rows, err := Pack(common.Address{}, common.Address{}, states)
	if err != nil {
		t.Fatal(err)
	}
	want := []int{0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11}
	for i, got := range unpack(t, rows) {
		if w := states[want[i]]; got.Terms != w.Terms || got.Accepted != w.Accepted || !bytes.Equal(got.Signature, signature) {
			t.Errorf("row %d is %+v, not row %d", i, got, want[i])
		}
	}
	const headers, fixed = 6 * 4, 12 * 84
	if amounts, salts, named := 2*(4+5+5+6+7+8), 4*(1+2+3), 6*32; len(rows) != headers+fixed+amounts+salts+named {
		t.Errorf("%d bytes", len(rows))
	}
}

// More rows of a shape than a group can count are several groups.
func TestRowsBeyondAGroup(t *testing.T) {
	states := make([]channel.State, 1<<16)
	for i := range states {
		states[i].Signature = append(bytes.Repeat([]byte{1}, 64), 27)
	}
	rows, err := Pack(common.Address{}, common.Address{}, states)
	if err != nil {
		t.Fatal(err)
	}
	if got := unpack(t, rows); len(got) != len(states) {
		t.Errorf("%d rows of %d", len(got), len(states))
	}
}

// A signature that the contract would read as another one makes no row.
func TestRowsTakeOnlyCanonicalSignatures(t *testing.T) {
	for name, signature := range map[string][]byte{
		"v 0":         append(bytes.Repeat([]byte{1}, 64), 0),
		"v 29":        append(bytes.Repeat([]byte{1}, 64), 29),
		"high s":      append(append(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{0x81}, 32)...), 27),
		"64 bytes":    bytes.Repeat([]byte{1}, 64),
		"of a wallet": bytes.Repeat([]byte{1}, 97),
	} {
		_, err := Pack(common.Address{}, common.Address{}, []channel.State{{Signature: signature}})
		if !errors.Is(err, eip712.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
