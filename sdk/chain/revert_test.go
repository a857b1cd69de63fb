package chain

import (
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

func TestRevertText(t *testing.T) {
	exceeds := escrowErrors.Errors["ExceedsDeposit"]
	args, err := exceeds.Inputs.Pack([32]byte{0xab}, big.NewInt(7), big.NewInt(5))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string][]byte{
		"reverted without a reason":              nil,
		"reverted with unknown error 0x01":       {1},
		"reverted with unknown error 0xdeadbeef": {0xde, 0xad, 0xbe, 0xef, 9},
		"reverted: no":                           common.FromHex("08c379a0000000000000000000000000000000000000000000000000000000000000002000000000000000000000000000000000000000000000000000000000000000026e6f000000000000000000000000000000000000000000000000000000000000"),
		"reverted: ExceedsDeposit(0xab" + strings.Repeat("0", 62) + ", 7, 5)": append(exceeds.ID[:4:4], args...),
		// A known name over arguments that are cut off.
		"reverted with unknown error 0x" + common.Bytes2Hex(exceeds.ID[:4]): append(exceeds.ID[:4:4], args[:40]...),
	}
	for want, data := range cases {
		if got := parseRevert(data).Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// Whatever a stranger's contract reverts with, it must not take the program down.
func FuzzRevert(f *testing.F) {
	for _, known := range escrowErrors.Errors {
		f.Add(append(known.ID[:4:4], make([]byte, 96)...))
	}
	f.Add(common.FromHex("4e487b710000000000000000000000000000000000000000000000000000000000000011"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if parseRevert(data).Error() == "" {
			t.Error("no text")
		}
	})
}
