package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

func TestVouchersInAMessage(t *testing.T) {
	id := common.Hash{7}
	sent := []channel.Voucher{
		{ChannelID: id, Cumulative: *uint256.NewInt(1), Signature: bytes.Repeat([]byte{1}, 65)},
		{ChannelID: id, Cumulative: channel.MaxAmount(), Signature: bytes.Repeat([]byte{2}, 300)}, // a contract account's
		{ChannelID: id, Cumulative: uint256.Int{}, Signature: []byte{}},
	}
	var message []byte
	for _, v := range sent {
		var err error
		if message, err = AppendVoucher(message, v); err != nil {
			t.Fatal(err)
		}
	}
	if len(message) != 3*14+65+300 {
		t.Errorf("%d bytes", len(message))
	}
	waiting := []channel.Voucher{{}}
	got, err := ParseVouchers(message, id, waiting)
	if err != nil || len(got) != 4 {
		t.Fatalf("%d vouchers, %v", len(got), err)
	}
	for i, v := range got[1:] {
		if v.ChannelID != id || v.Cumulative != sent[i].Cumulative || !bytes.Equal(v.Signature, sent[i].Signature) {
			t.Errorf("%+v, was %+v", v, sent[i])
		}
	}
	_ = append(got[1].Signature, 9) // must not write into the next one
	if again, err := ParseVouchers(message, id, nil); err != nil || again[1].Cumulative != channel.MaxAmount() {
		t.Errorf("%+v, %v", again, err)
	}
	for cut := 1; cut < 14+65; cut++ {
		if _, err := ParseVouchers(message[:cut], id, nil); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d bytes: %v", cut, err)
		}
	}
}

func TestWhatDoesNotFitAMessage(t *testing.T) {
	over := uint256.Int{0, 1 << 32}
	if _, err := AppendVoucher(nil, channel.Voucher{Cumulative: over}); !errors.Is(err, ErrMalformed) {
		t.Errorf("an amount of 97 bits: %v", err)
	}
	if _, err := AppendVoucher(nil, channel.Voucher{Signature: make([]byte, 1<<16)}); !errors.Is(err, ErrMalformed) {
		t.Errorf("a signature of 64 KiB: %v", err)
	}
	if _, err := AppendReceipt(nil, over); !errors.Is(err, ErrMalformed) {
		t.Errorf("a receipt over 97 bits: %v", err)
	}
}

// FuzzParseVouchers: what is read is written the same again.
func FuzzParseVouchers(f *testing.F) {
	good, err := AppendVoucher(nil, channel.Voucher{Cumulative: *uint256.NewInt(5), Signature: make([]byte, 65)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(append(good, good[:40]...))
	f.Fuzz(func(t *testing.T, message []byte) {
		vouchers, err := ParseVouchers(message, common.Hash{1}, nil)
		if err != nil && !errors.Is(err, ErrMalformed) {
			t.Fatal(err)
		}
		var again []byte
		for _, v := range vouchers {
			if again, err = AppendVoucher(again, v); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(message, again) {
			t.Fatalf("%x became %x", message, again)
		}
	})
}

// FuzzParseReceiptMessage: 12 bytes are an amount, nothing else is.
func FuzzParseReceiptMessage(f *testing.F) {
	f.Add(make([]byte, 12))
	f.Fuzz(func(t *testing.T, message []byte) {
		amount, err := ParseReceiptMessage(message)
		if (err == nil) != (len(message) == 12) {
			t.Fatalf("%x: %v", message, err)
		}
		if err != nil {
			return
		}
		if again, err := AppendReceipt(nil, amount); err != nil || !bytes.Equal(again, message) {
			t.Fatalf("%x became %x, %v", message, again, err)
		}
	})
}
