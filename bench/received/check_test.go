package received

import (
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/channel"
)

// TestWaysToCheckTakeTheBooksVouchers: each way takes all of them, and the table
// has them all.
func TestWaysToCheckTakeTheBooksVouchers(t *testing.T) {
	ways, err := checks(t.Context(), bench.Settings{Rounds: 1, Span: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	if rows := checksTable(ways).Rows; len(rows) != 3 || rows[0][2] != "" || rows[1][2] == "" || rows[2][2] == "" {
		t.Errorf("rows %q", rows)
	}
}

// TestOnlyARecoverySeesAFlippedV is what the page says of the other ways.
func TestOnlyARecoverySeesAFlippedV(t *testing.T) {
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	b := bookOf(private, 1)
	if err := b.fill(1); err != nil {
		t.Fatal(err)
	}
	v := b.vouchers[0][0]
	v.Signature[64] ^= 27 ^ 28
	digest := b.domain.Digest(v.ChannelID, &v.Cumulative)
	if !crypto.VerifySignature(crypto.FromECDSAPub(&private.PublicKey), digest[:], v.Signature[:64]) {
		t.Error("a check against the known key refuses a flipped v: the page says otherwise")
	}
	if verify(b, v) == nil {
		t.Error("a payee takes a flipped v")
	}
	if verify(b, channel.Voucher{ChannelID: common.Hash{1}, Cumulative: v.Cumulative, Signature: v.Signature}) == nil {
		t.Error("a payee takes another channel's signature")
	}
}
